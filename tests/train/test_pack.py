"""Packing loses no token, mixes no documents, and predicts only what may be predicted."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from regear.train.pack import OPEN_ROWS, Example, Packer, lay

SEQUENCE = 8
example = st.builds(
    lambda targets, whole: (targets, whole), st.lists(st.booleans(), min_size=2, max_size=SEQUENCE), st.booleans()
)


def packed(drawn, packing=True):
    """Every drawn example with tokens of its own, laid into rows; what stays open counts as rows too."""
    packer, at = Packer(SEQUENCE, packing), 1
    for targets, whole in drawn:
        packer.add(Example(range(at, at + len(targets)), targets, whole))
        at += len(targets)
        assert len(packer.open) <= OPEN_ROWS
    return packer.ready + packer.open


@settings(max_examples=200, deadline=None)
@given(st.lists(example, min_size=1, max_size=40), st.booleans())
def test_every_token_is_laid_once_and_predictions_stay_inside_documents(drawn, packing):
    rows = packed(drawn, packing)
    batch = lay(rows, SEQUENCE, pad=0)
    seen = batch.tokens_BL[batch.tokens_BL > 0].tolist()
    every = sum(len(targets) for targets, _ in drawn)
    lost = every - len(seen)
    assert len(set(seen)) == len(seen)
    # Only the last token of a cut text may be left out, where it would stand alone.
    assert lost <= sum(not whole for _, whole in drawn)
    target = dict(enumerate((t for targets, _ in drawn for t in targets), 1))
    ends = set()
    at = 0
    for targets, _ in drawn:
        at += len(targets)
        ends.add(at)
    for tokens, positions, predict in zip(batch.tokens_BL, batch.positions_BL, batch.predict_BL, strict=True):
        for t in range(SEQUENCE):
            follows = t + 1 < SEQUENCE and positions[t + 1] == positions[t] + 1
            inside = follows and tokens[t] > 0 and tokens[t + 1] == tokens[t] + 1
            assert bool(predict[t]) == bool(inside and target[int(tokens[t + 1])])
            if tokens[t] in ends or tokens[t] == 0:
                assert not predict[t]


@settings(max_examples=100, deadline=None)
@given(st.lists(example, min_size=1, max_size=40))
def test_whole_examples_are_never_cut_and_rows_of_text_are_full(drawn):
    whole = packed([(targets, True) for targets, _ in drawn])
    assert all(part.start == 0 and part.stop == len(part.example.ids) for row in whole for part in row)
    text = packed([(targets, False) for targets, _ in drawn])
    assert all(sum(map(len, row)) == SEQUENCE for row in text[:-1])


def test_a_long_piece_keeps_its_row_to_itself_though_a_row_is_open():
    packer = Packer(SEQUENCE)
    packer.add(Example(range(3), [True] * 3))
    packer.add(Example(range(8), [True] * 8))
    assert [[len(part) for part in row] for row in packer.ready] == [[8]]


def test_positions_restart_at_every_document_and_padding_predicts_nothing():
    packer = Packer(SEQUENCE)
    packer.add(Example([1, 2, 3], [True] * 3, whole=True))
    packer.add(Example([4, 5], [False, True], whole=True))
    batch = lay(packer.open, SEQUENCE, pad=9)
    assert batch.tokens_BL.tolist() == [[1, 2, 3, 4, 5, 9, 9, 9]]
    assert batch.positions_BL.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.predict_BL.int().tolist() == [[1, 1, 0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("packing", [True, False])
def test_a_cut_text_goes_on_as_a_document_of_its_own(packing):
    packer = Packer(SEQUENCE, packing)
    for start in (1, 11):
        packer.add(Example(range(start, start + 5), [True] * 5))
    batch = lay(packer.ready + packer.open, SEQUENCE, pad=0)
    if packing:
        assert batch.tokens_BL.tolist() == [[1, 2, 3, 4, 5, 11, 12, 13], [14, 15, 0, 0, 0, 0, 0, 0]]
        assert batch.positions_BL[1, :2].tolist() == [0, 1]
        assert batch.predict_BL.int().sum(1).tolist() == [4 + 2, 1]
    else:
        assert batch.tokens_BL[:, :5].tolist() == [[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]]
