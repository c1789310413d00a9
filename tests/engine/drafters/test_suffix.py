"""The drafter on the suffix index guesses from past texts, from siblings in flight, and with the engine's noise."""

import numpy as np
import pytest

from regear.core.errors import DataError, RegearError
from regear.engine.drafters import suffix
from regear.engine.drafters.base import Outcome, Text
from regear.engine.drafters.suffix import SuffixDrafter
from regear.engine.local import LocalEngine
from regear.engine.types import Request
from regear.ops.noise import gumbel, keys

BELOW = np.random.default_rng(0).integers


def ids(tokens):
    return np.array(tokens, np.int32)


def text(number, tokens, prompt=1, **request):
    return Text(number, ids(tokens), prompt, Request([1], **request))


def guess(drafter, one, most=4):
    (found,) = drafter.propose([one], np.array([most]))
    return found.tolist()


def test_past_texts_and_siblings_in_flight_are_gone_on_with():
    drafter = SuffixDrafter()
    drafter.learn(ids([1, 2, 3]), ids([4, 5, 6, 7]))
    assert guess(drafter, text(0, [1, 2, 3], 3)) == [4, 5, 6, 7]
    assert guess(drafter, text(0, [1, 2, 3, 4, 8, 9, 10, 11], 3)) == []
    assert guess(drafter, text(1, [1, 2, 3, 4, 8], 3)) == [9, 10, 11]  # as text 0 does right now
    assert guess(drafter, text(1, [1, 2, 3, 4, 8], 3), 1) == [9]


def test_no_texts_have_no_guesses():
    assert SuffixDrafter().propose([], np.zeros(0)) == []


def test_texts_go_on_one_by_one_or_in_pieces_alike():
    tokens = BELOW(0, 4, 300)
    one, many = SuffixDrafter(), SuffixDrafter()
    for length in range(10, 300):
        guess(one, text(0, tokens[:length], 10))
        if length % 13 == 0:
            assert guess(many, text(0, tokens[:length], 10)) == guess(one, text(0, tokens[:length], 10))
    for drafter in (one, many):
        drafter.finish(0, ids(tokens), 10, None)
        assert not drafter.read
    assert one.index.save() == many.index.save()


def test_what_a_text_wrote_after_its_last_guess_is_kept():
    drafter = SuffixDrafter()
    guess(drafter, text(0, [1, 2], 2))
    drafter.finish(0, ids([1, 2, 3, 4, 5]), 2, None)
    assert guess(drafter, text(1, [1, 2], 2)) == [3, 4, 5]
    drafter.finish(9, ids([1, 2, 9, 8]), 2, None)  # never asked about
    assert guess(drafter, text(2, [1, 2, 9], 2)) == [8]
    assert not drafter.read.keys() & {0, 9}


def test_groups_are_read_first_and_others_where_nothing_is_known():
    drafter = SuffixDrafter()
    drafter.learn(ids([1, 2, 3]), ids([4, 4]), "a")
    drafter.learn(ids([1, 2, 3]), ids([5, 5]), "b")
    assert guess(drafter, text(0, [1, 2, 3], 3, group="a"), 2) == [4, 4]
    assert guess(drafter, text(1, [1, 2, 3], 3, group="b"), 2) == [5, 5]
    assert guess(drafter, text(2, [9, 1, 2, 3], 4, group="c"), 1)[0] in (4, 5)
    alone = SuffixDrafter(shared=False)
    alone.learn(ids([1, 2, 3]), ids([4, 4]), "a")
    assert guess(alone, text(2, [9, 1, 2, 3], 4, group="c")) == []


def test_newer_epochs_weigh_more_and_the_oldest_leave():
    drafter = SuffixDrafter(shared=False)
    drafter.learn(ids([1, 2]), ids([3]), "g")
    drafter.advance()
    drafter.learn(ids([1, 2]), ids([4]), "g")
    assert guess(drafter, text(0, [1, 2], 2, group="g"), 1) == [4]
    for epoch in range(8):
        drafter.advance()
        drafter.learn(ids([7, 70 + epoch]), ids([8]), "g")
    assert guess(drafter, text(1, [1, 2], 2, group="g"), 1) == []


@pytest.mark.parametrize("seed", [3, 2**63 + 5, -9])
def test_guesses_are_the_draws_that_the_noise_makes(seed):
    """Twenty tokens came equally often: the likeliest would be right once in twenty times."""
    drafter, tokens = SuffixDrafter(shared=False), 20
    for token in range(tokens):
        for _ in range(30):
            drafter.learn(ids([30]), ids([token]), "g")
    right = 0
    for length in range(1, 60):
        draw = gumbel(keys(seed, length), tokens)[0].argmax()
        one = text(length, [*range(100, 99 + length), 30], length, temperature=0.7, seed=seed, group="g")
        right += guess(drafter, one, 1) == [draw]
    assert right >= 57  # a share is kept for tokens that never came
    greedy = [text(n, [*range(100, 99 + n), 30], n, seed=seed, group="g") for n in range(60, 70)]
    assert {tuple(guess(drafter, one, 1)) for one in greedy} == {(0,)}


def test_chances_fall_along_a_guess_keep_to_the_least_and_follow_outcomes():
    drafter = SuffixDrafter()
    for token in (8, 8, 8, 9):
        drafter.learn(ids([1, 2]), ids([token, *range(20, 30)]), "g")

    def weighed(number, least):
        one = text(number, [1, 2], 2, group="g")
        (tokens,), (chances,) = drafter.propose_weighed([one], np.array([9]), np.array([least]))
        assert len(tokens) == len(chances)
        return chances

    before = weighed(0, 0.0)
    assert len(before) == 9
    assert (np.diff(before) < 0).all()
    assert (before > 0).all()
    np.testing.assert_array_equal(weighed(1, before[4] - 1e-6), before[:5])
    assert len(weighed(2, 1.0)) == 0
    for number in range(10, 40):
        drafter.observe([Outcome(number, len(weighed(number, 0.0)), 0, ids([5]))])
    assert weighed(50, 0.0)[0] < before[0] / 2
    for number in range(100, 400):
        drafter.observe([Outcome(number, len(weighed(number, 0.0)), 9, ids([5]))])
    assert weighed(500, 0.0)[0] > before[0]


def test_texts_of_an_engine_stay_the_same_and_are_guessed_when_they_come_again(model, requests, plain):
    drafter = SuffixDrafter()
    engine = LocalEngine(model, drafter=drafter)
    first = engine.generate(requests)
    drafter.advance()
    again = engine.generate(requests)
    assert [one.token_ids for one in first] == [one.token_ids for one in again] == plain

    def mean(found):
        return np.mean([one.acceptance_length for one in found])

    assert mean(again) > mean(first) + 0.5


def test_save_and_load(tmp_path):
    drafter = SuffixDrafter()
    drafter.learn(ids([1, 2, 3, 4]), ids([5, 6]))
    drafter.learn(ids([1, 2, 3, 4]), ids([7, 7]), "named")
    drafter.save(tmp_path / "new" / "index")
    loaded = SuffixDrafter.load(tmp_path / "new" / "index")
    assert guess(loaded, text(0, [1, 2, 3, 4, 9], 5), 0) == []
    assert loaded.routes.state()[-1][1] == drafter.routes.state()[0][1]  # the conversation's group
    assert guess(loaded, text(1, [1, 2, 3, 4], 4), 2) == [5, 6]
    assert guess(loaded, text(2, [1, 2, 3, 4], 4, group="named"), 2) == [7, 7]


def damaged(place):
    """Files that are no index, by what is wrong with them."""
    SuffixDrafter().save(place / "index")
    body = (place / "index").read_bytes()
    head = body.index(b"\n", len(suffix.MAGIC))
    rest = body[head:]
    yield from {
        "empty": b"",
        "magic": body.replace(b"index 1", b"index 2", 1),
        "no head": suffix.MAGIC,
        "no body": body[: head + 1],
        "cut": body[:-1],
        "flipped": body[:-9] + bytes([body[-9] ^ 4]) + body[-8:],
        "more": body + b"1",
        "no JSON": suffix.MAGIC + b"{" + rest,
        "no text": suffix.MAGIC + b"\xff\xfe" + rest,
        "no routes": suffix.MAGIC + b"{}" + rest,
        "no object": suffix.MAGIC + b"[1]" + rest,
        "routes of numbers": suffix.MAGIC + b'{"routes": [1, 2]}' + rest,
        "routes of threes": suffix.MAGIC + b'{"routes": [["a", "b", "c"]]}' + rest,
        "deep": suffix.MAGIC + b"[" * 200_000 + rest,
    }.items()


def test_files_that_are_no_index_are_refused_in_one_line(tmp_path):
    for name, body in damaged(tmp_path):
        (tmp_path / "index").write_bytes(body)
        with pytest.raises(DataError, match="is no suffix index that can be read") as error:
            SuffixDrafter.load(tmp_path / "index")
        assert "\n" not in str(error.value), name
        assert len(str(error.value)) < 600, name
    with pytest.raises(DataError, match="is no suffix index"):
        SuffixDrafter.load(tmp_path / "missing")


def test_where_it_cannot_be_written_what_was_there_stays(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(RegearError):
        SuffixDrafter().save(tmp_path / "file" / "index")
    assert (tmp_path / "file").read_text() == "a file"
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(RegearError):
        SuffixDrafter().save(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_without_the_compiled_part_the_error_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "regear._native", None)
    monkeypatch.delattr("regear._native", raising=False)
    with pytest.raises(DataError, match="not built here"):
        SuffixDrafter()


def thought(*likely, sketch=0):
    """Three tokens and their probabilities, and a sketch."""
    words = [token << 8 | round(-16 * np.log(probability)) for token, probability in likely]
    return np.array([[*words, sketch & 0xFFFFFFFF, sketch >> 32]], np.uint32)


def test_what_the_model_thought_is_guessed_though_it_never_came():
    drafter = SuffixDrafter()
    drafter.learn(ids([1, 2]), ids([3]), "g", thought((9, 0.9), (3, 0.05), (4, 0.01)))
    assert guess(drafter, text(0, [1, 2], 2, group="g"), 1) == [9]
    counted = SuffixDrafter()
    counted.learn(ids([1, 2]), ids([3]), "g")
    assert guess(counted, text(0, [1, 2], 2, group="g"), 1) == [3]


def test_the_place_where_the_model_was_as_it_is_now_counts_most():
    one, other = 0x0F0F0F0F0F0F0F0F, 0xFF00FF00FF00FF00
    drafter = SuffixDrafter(shared=False)
    for sketch, next_ in ((one, 8), (other, 9)):
        told = np.concatenate([thought((5, 0.9), (1, 0.05), (2, 0.01), sketch=sketch),
                               thought((next_, 0.9), (1, 0.05), (2, 0.01))])  # fmt: skip
        drafter.learn(ids([1]), ids([5, 7]), "g", told)
    for sketch, wanted in ((one, 8), (other, 9)):
        writing = text(sketch & 1, [1, 5], group="g")
        guess(drafter, text(writing.number, [1], group="g"))
        drafter.observe(
            [Outcome(writing.number, 0, 0, ids([5]), thought((5, 0.9), (1, 0.05), (2, 0.01), sketch=sketch))]
        )
        assert guess(drafter, writing, 1) == [wanted]
        drafter.finish(writing.number, ids([1, 5]), 1, "g")
        drafter = SuffixDrafter.of_state(drafter.state())  # thoughts are kept with it


def test_thoughts_before_the_first_question_are_not_those_of_its_tokens():
    """What is told while the drafter rests belongs to the tokens that came meanwhile."""
    drafter = SuffixDrafter()
    guess(drafter, text(0, [1, 2], group="g"))
    for token, next_ in ((3, 7), (4, 8)):
        drafter.observe([Outcome(0, 0, 0, ids([token]), thought((next_, 0.9), (1, 0.05), (2, 0.01)))])
    drafter.finish(0, ids([1, 2, 3, 4]), 1, "g")
    drafter.learn(ids([1]), ids([2]), "g")
    assert guess(drafter, text(1, [1, 2], group="g"), 1) == [7]
    assert guess(drafter, text(2, [1, 2, 3], group="g"), 1) == [8]
