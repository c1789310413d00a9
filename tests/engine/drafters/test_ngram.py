"""The index finds what a scan of the text finds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from regear.engine.drafters.base import Text
from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.types import Request


def scan(tokens, most, longest=4, shortest=2):
    """The naive form: the latest earlier place of the longest ending that stands earlier, gone on from, over and over."""
    for n in range(longest, shortest - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if len(tokens) > n and tokens[end - n : end] == tokens[-n:]:
                cycle = tokens[end:]
                return [cycle[i % len(cycle)] for i in range(most)]
    return []


def propose(drafter, number, tokens, most):
    text = Text(number, np.array(tokens, np.int32), 1, Request(tokens))
    (found,) = drafter.propose([text], np.array([most]))
    return found.tolist()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.lists(st.integers(1, 7)), st.integers(0, 6))
def test_equals_a_scan_however_the_text_grows(tokens, steps, most):
    drafter, length = NgramDrafter(), 1
    for step in [*steps, len(tokens)]:
        length = min(len(tokens), length + step)
        assert propose(drafter, 7, tokens[:length], most) == (scan(tokens[:length], most) if most else [])
        propose(drafter, 8, tokens[::-1], 2)  # another text beside it
    drafter.finish(7, np.array(tokens), 1, None)
    drafter.finish(8, np.array(tokens), 1, None)
    assert not drafter.places
    assert not drafter.read


def test_a_cycle_is_gone_on_with():
    assert propose(NgramDrafter(), 0, [9, 1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
