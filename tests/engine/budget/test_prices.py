"""Against the makespan itself: what it falls by when a text has one token less."""

import numpy as np
import pytest

from regear.engine.budget.prices import makespan_prices, round_seconds


def makespan(left, rounds):
    ends = np.sort(left)
    return sum(
        (end - start) * rounds[len(left) - i] for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_price_is_what_one_token_less_saves(seed):
    random = np.random.default_rng(seed)
    left = random.permutation(np.arange(10, 80, 10)).astype(float)
    rounds = np.concatenate([[0], np.cumsum(random.uniform(0, 1, 7))])
    found = makespan_prices(left[None], rounds)
    for i in range(7):
        shorter = left - (np.arange(7) == i)
        assert found[i] == pytest.approx(makespan(left, rounds) - makespan(shorter, rounds))
    assert found.sum() == pytest.approx(rounds[-1])


def test_where_tokens_cost_nothing_only_the_last_text_matters():
    rounds = np.array([0.0, 1, 1, 1])
    assert makespan_prices(np.array([[5.0, 9, 7]]), rounds).tolist() == [0, 1, 0]
    assert makespan_prices(np.array([[5.0, 9, 7], [9, 5, 7]]), rounds).tolist() == [0.5, 0.5, 0]


def test_texts_that_end_together_share():
    np.testing.assert_allclose(makespan_prices(np.full((1, 4), 9.0), np.array([0, 1, 1, 1, 3.0])), 0.75)


def test_a_round_is_cheaper_where_guesses_stand():
    def seconds(tokens):
        return 1.0 * (np.asarray(tokens) > 0) + 0.1 * np.asarray(tokens)

    plain, guessing = (round_seconds(4, seconds, np.array(kept)) for kept in ([0.0], [0.0, 0.9]))
    np.testing.assert_allclose(plain, [0, 1.1, 1.2, 1.3, 1.4])
    np.testing.assert_allclose(guessing, [0, 1.2 / 1.9, 1.2 / 1.9 + 0.1, 1.2 / 1.9 + 0.2, 1.2 / 1.9 + 0.3])
