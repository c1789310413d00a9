"""Trees of guesses: exactly the path that was drawn stands."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from regear.engine.verify import descend, kept


def walk(drawn, tokens, parents):
    """The naive form: from the text down, to the child that was drawn."""
    place, path = 0, []
    while True:
        children = [j for j, parent in enumerate(parents) if parent == place - 1 and tokens[j] == drawn[place]]
        if not children:
            return path, drawn[place]
        path.append(children[0])
        place = children[0] + 1


@st.composite
def trees(draw):
    """Some texts' trees of up to 8 nodes, siblings of the same token among them."""
    count, nodes = draw(st.integers(1, 4)), draw(st.integers(0, 8))
    parents = [[draw(st.integers(-1, j - 1)) for j in range(nodes)] for _ in range(count)]
    for row in parents:
        for j in range(draw(st.integers(0, nodes)), nodes):
            row[j] = -2  # this text has fewer
    token = st.integers(0, 2)
    tokens = [[draw(token) for _ in range(nodes)] for _ in range(count)]
    drawn = [[draw(token) for _ in range(nodes + 1)] for _ in range(count)]
    shape = (count, nodes)
    return np.array(drawn), np.array(tokens, int).reshape(shape), np.array(parents, int).reshape(shape)


@given(trees())
def test_descending_equals_walking(case):
    drawn, tokens, parents = case
    paths, last = descend(drawn, tokens, parents)
    for i, path in enumerate(paths):
        assert ([node for node in path if node >= 0], last[i]) == walk(*(x[i].tolist() for x in case))
        assert all(node == -1 for node in path[np.sum(path >= 0) :])


@given(trees())
def test_a_chain_is_a_tree_of_one_branch(case):
    drawn, tokens, parents = case
    counts = (parents != -2).sum(1)
    chain = np.where(np.arange(tokens.shape[1]) < counts[:, None], np.arange(tokens.shape[1]) - 1, -2)
    paths, last = descend(drawn, tokens, chain)
    stood = kept(drawn, tokens, counts)
    assert ((paths >= 0).sum(1) == stood).all()
    assert (last == drawn[np.arange(len(drawn)), stood]).all()


def test_the_law_of_a_tree_is_the_targets():
    """Draws at every node are the target's own; the path that stands is therefore distributed as plain sampling."""
    random = np.random.default_rng(0)
    first, second = random.dirichlet(np.ones(3)), random.dirichlet(np.ones(3), 3)
    tokens, parents = np.array([0, 1, 2, 0]), np.array([-1, -1, 0, 1])  # 0 → 2, 1 → 0
    count = 40_000
    drawn = np.zeros((count, 5), int)
    drawn[:, 0] = random.choice(3, count, p=first)
    for node, token in enumerate(tokens):
        drawn[:, node + 1] = random.choice(3, count, p=second[token])
    paths, last = descend(drawn, np.tile(tokens, (count, 1)), np.tile(parents, (count, 1)))
    depth = (paths >= 0).sum(1)
    one = np.where(depth > 0, tokens[paths[:, 0]], last)
    plain = random.random(count)
    after = np.where(depth > 1, tokens[paths[:, 1]], last)
    after = np.where(depth == 0, (plain[:, None] > second[one].cumsum(1)).sum(1), after)
    found = np.bincount(one * 3 + after, minlength=9) / count
    assert np.abs(found - (first[:, None] * second).ravel()).sum() / 2 < 0.01
