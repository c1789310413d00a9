"""Engines that share a past know the same of it, however they came by it, and go on as if nothing was shared."""

import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from regear.core.errors import DataError, RecipeError
from regear.core.journal import Journal
from regear.engine.drafters.base import Text
from regear.engine.drafters.suffix import SuffixDrafter, native
from regear.engine.follower import Follower
from regear.engine.local import LocalEngine
from regear.engine.past import Behind, Past
from regear.engine.types import Request
from tests.engine.small import model, tokens

TEXTS = 60


def text(draw, size=40):
    return [draw.randrange(4) for _ in range(size)]


def fill(past, texts=TEXTS, seed=0, size=40):
    """Texts of three versions and four groups, of which one has no name."""
    draw = random.Random(seed)
    for number in range(texts):
        group = [None, "a", "b", 7][number % 4]
        past.push(group, text(draw, size), version=number * 3 // texts, prompt=[number % 4, 1, 2])
    return past


def asked(number, known, prompt=3, group="a"):
    return Text(number, np.array(known, np.int32), prompt, Request(known[:prompt], seed=1, group=group))


def guesses(drafter, number=10**6):
    """What it guesses after many contexts."""
    draw = random.Random(1)
    texts = [asked(number + i, [i % 4, 1, 2, *text(draw, 8)], group=[None, "a", "b", 7][i % 4]) for i in range(16)]
    found = drafter.propose_weighed(texts, np.full(16, 6), np.zeros(16))
    for one in texts:
        drafter.finish(one.number, one.tokens, one.prompt, one.request.group)
    return [(guess.tolist(), chances.tolist()) for guess, chances in zip(*found, strict=True)]


def follower(past, until=None, most=1024):
    one = Follower(SuffixDrafter(), past)
    one.catch_up(until, most)
    return one


def learnt(past):
    """A drafter that was told all of a past's deltas one by one."""
    drafter = SuffixDrafter()
    for delta in past.since(0):
        delta.apply(drafter)
    return drafter


def test_followers_that_fetched_in_different_batches_know_the_same():
    past = Past()
    early = follower(past)
    for seed in range(3):
        fill(past, 1, seed)
        early.catch_up()
    fill(past)
    once, single = follower(past), follower(past, most=1)
    early.catch_up(most=7)
    assert once.number == single.number == early.number == TEXTS + 3
    assert once.base.state() == single.base.state() == early.base.state() == learnt(past).state()
    found = guesses(once.drafter)
    assert found == guesses(single.drafter) == guesses(early.drafter)
    assert sum(len(guess) for guess, _ in found) > 40


def test_a_new_version_is_a_new_epoch_at_its_place():
    past = fill(Past())
    assert [delta.number for delta in past.since(0) if delta.advance] == [21, 41]
    assert past.versions == (0, 1, 2)
    plain = SuffixDrafter()
    for delta in past.since(0):
        replace(delta, advance=False).apply(plain)
    assert plain.state() != learnt(past).state()


def test_texts_in_flight_help_their_siblings_and_count_once_when_they_come_back():
    past = Past()
    one, other = follower(past), follower(past)
    known = [3, 1, 2, *text(random.Random(5), 30)]
    own, sibling = asked(0, known), asked(1, known[:20])
    assert len(one.drafter.propose([own, sibling], np.full(2, 5))[1]) == 5
    one.drafter.finish(0, own.tokens, own.prompt, "a")
    past.push("a", known[3:], 0, known[:3])
    one.catch_up(), other.catch_up()
    assert one.base.state() == other.base.state() == learnt(past).state()
    assert guesses(one.drafter) == guesses(other.drafter)
    # The sibling goes on as if it had begun now.
    assert one.drafter.propose([sibling], np.array([5]))[0].tolist() == known[20:25]
    assert other.drafter.propose([sibling], np.array([5]))[0].tolist() == known[20:25]


@pytest.mark.parametrize("seed", range(5))
def test_reading_a_past_is_like_having_a_copy_of_it(seed):
    past = fill(Past(), seed=seed)
    base = learnt(past)
    before, reader, copy = base.state(), SuffixDrafter(), SuffixDrafter.of_state(base.state())
    reader.rest_on(base)
    copy.advance()
    draw = random.Random(seed)
    for number in range(20):
        assert guesses(reader) == guesses(copy)
        known = np.array([number % 4, 1, 2, *text(draw, 30)], np.int32)
        flight = asked(number, known[: draw.randrange(3, 34)])
        for drafter in (reader, copy):
            drafter.propose([flight], np.array([4]))
            drafter.finish(number, known, 3, "a")
        if number == 10:
            reader.advance(), copy.advance()
    assert reader.index.tokens == copy.index.tokens > base.index.tokens
    assert base.state() == before


def test_a_text_learnt_at_once_is_like_one_that_ran():
    learning, running = (native().Index(shared=True, generations=3, cap_bytes=1 << 20) for _ in range(2))
    draw = random.Random(0)
    for number in range(400):
        prompt, tokens = (np.array(text(draw, size), np.int32) for size in (draw.randrange(6), 100))
        group = draw.choice([b"a", b"b", b"c"])
        learning.learn(group, prompt, tokens)
        running.start(5, group, prompt)
        running.extend(5, tokens)
        running.finish(5)
        if number % 50 == 49:
            learning.advance(), running.advance()
    assert learning.save() == running.save()
    assert running.tokens < 2 * 400 * 100  # some were dropped


def test_a_conversation_of_no_named_group_goes_on_in_that_of_its_first_turn():
    past = Past()
    turns = [text(random.Random(k), 12 << k) for k in range(3)]
    answer = text(random.Random(9), 20)
    past.push(None, answer, 0, turns[0])
    past.push(None, [1], 0, turns[0] + turns[1][:10])
    one = follower(past)
    last = turns[0] + turns[1][:10] + turns[2][:20]  # the first turn is less than half of it
    known = [*last, *answer[:6]]
    assert one.drafter.propose([asked(0, known, len(last), None)], np.array([5]))[0].tolist() == answer[6:11]
    assert one.drafter.index.groups == 2  # the conversation's and that of all


def test_a_past_that_learns_while_it_is_read_changes_nothing_for_its_readers():
    base, reader = learnt(fill(Past())), SuffixDrafter()
    reader.rest_on(base)
    found, size = guesses(reader), base.index.tokens
    for _ in range(20):
        base.learn(np.array([0, 1, 2], np.int32), np.array([3] * 20, np.int32), "a")
    reader.let_go()
    assert reader.index.tokens == reader.index.groups == 0
    reader.rest_on(SuffixDrafter.of_state(learnt(fill(Past())).state()))
    assert guesses(reader) == found
    assert base.index.tokens == size + 2 * (3 + 20 * 20)


def test_how_far_the_counts_can_be_trusted_is_not_forgotten():
    past = fill(Past())
    one = follower(past)
    row = asked(0, [0, 1, 2, 3, 1])
    for _ in range(50):
        one.drafter.propose([row], np.array([1]))
        one.drafter.index.observe(np.array([0]), np.array([1]), np.array([0]))
    low = one.drafter.propose_weighed([row], np.array([1]), np.zeros(1))[1][0][0]
    one.drafter.finish(0, row.tokens, 3, "a")
    past.push("b", [1], 2)
    one.catch_up()
    again = one.drafter.propose_weighed([row], np.array([1]), np.zeros(1))[1][0][0]
    fresh = follower(past).drafter.propose_weighed([row], np.array([1]), np.zeros(1))[1][0][0]
    assert again == low < fresh / 2


@pytest.mark.parametrize("index_cap", [1 << 30, 1 << 20])
def test_one_too_far_behind_takes_the_snapshot_and_then_knows_the_same(index_cap):
    def settings():
        return SuffixDrafter(native().Index(shared=True, cap_bytes=index_cap))

    whole, short = Past(base=settings(), cap_bytes=1 << 26), Past(base=settings(), cap_bytes=40_000)
    near, far = follower(short), follower(short)
    for seed in range(12):
        fill(whole, 20, seed, size=400), fill(short, 20, seed, size=400)
        near.catch_up()
        assert short.log_bytes <= 40_000
    with pytest.raises(Behind, match="take a snapshot"):
        short.since(far.number)
    far.catch_up()
    new, told = follower(short), follower(whole)
    assert near.base.state() == far.base.state() == new.base.state() == told.base.state()
    assert guesses(near.drafter) == guesses(far.drafter) == guesses(new.drafter) == guesses(told.drafter)
    if index_cap == 1 << 20:
        assert 0 < told.base.index.bytes <= index_cap
        assert told.base.index.tokens < 2 * 240 * 400  # texts were dropped, the same everywhere


def test_ranks_stop_where_they_are_told():
    past = fill(Past())
    one = follower(past, until=20)
    fill(past, 5, seed=9)
    other = follower(past, until=20)
    assert one.number == other.number == 20
    assert one.base.state() == other.base.state()
    for until in (19, TEXTS + 6):
        with pytest.raises(DataError, match="wanted 20 to 65"):
            one.catch_up(until)
    short = fill(Past(cap_bytes=8_000))
    with pytest.raises(DataError, match="ask for a later one"):
        follower(short, until=2)


@pytest.mark.parametrize(
    ("pushed", "asked"), [(np.str_("q"), "q"), ("q", np.str_("q")), (np.int64(7), 7), (7, np.int32(7))]
)
def test_a_group_is_the_same_of_whatever_type_its_name_is(pushed, asked, tmp_path):
    with closing(Past(base=SuffixDrafter(shared=False), path=tmp_path / "past")) as past:
        past.push(pushed, [8, 9, 10], 0, [5])
    past = Past(path=tmp_path / "past")
    drafter = SuffixDrafter(shared=False)
    Follower(drafter, past).catch_up()
    request = Request([5], group=asked)
    found = drafter.propose([Text(0, np.array([5, 8], np.int32), 1, request)], np.array([2]))
    assert found[0].tolist() == [9, 10]


def test_what_the_index_does_not_take_costs_no_number(monkeypatch):
    past = fill(Past(cap_bytes=10_000), 3)
    numbers = [delta.number for delta in past.since(past.first)]

    def fails(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(SuffixDrafter, "learn", fails)
        with pytest.raises(MemoryError):
            past.push("a", [1] * 2300, 5)
    assert [delta.number for delta in past.since(past.first)] == numbers
    past.push("a", [1] * 2300, 5)
    assert past.number == numbers[-1] + 1


def test_another_past_is_noticed():
    one = follower(fill(Past()))
    one.past = fill(Past(), 5)
    with pytest.raises(DataError, match="found 5; wanted 60"):
        one.catch_up()
    with pytest.raises(DataError, match="another"):
        one.past.since(60)


def test_every_text_is_there_once_whatever_threads_push():
    past = Past()

    def work(name):
        for i in range(50):
            past.push(name, [i], version=i // 10)

    threads = [threading.Thread(target=work, args=(f"t{k}",)) for k in range(4)]
    seen = []
    for thread in threads:
        thread.start()
    while len(seen) < 200:
        seen += past.since(len(seen), most=9)
    for thread in threads:
        thread.join()
    assert [delta.number for delta in seen] == list(range(1, 201))
    for k in range(4):
        assert [delta.ids.tolist() for delta in seen if delta.group == f"t{k}"] == [[i] for i in range(50)]
    assert sum(delta.advance for delta in seen) == 4


def test_a_late_text_counts_with_the_newest_and_a_stale_one_is_refused():
    past = Past()
    for version in [*range(100, 1000, 100)]:
        past.push("a", [1], version)
    assert past.versions == tuple(range(200, 1000, 100))
    past.push("a", [2], 200)
    assert not past.since(9)[0].advance
    for version in (100, 250, -1, 2**63, "new", 1.5, None, True):
        with pytest.raises(RecipeError, match=r"version: found .*; wanted"):
            past.push("a", [1], version)
    assert past.number == 10


@pytest.mark.parametrize(
    ("group", "ids", "prompt"),
    [
        (("a", 1), [1], []),
        ("a" * 10**6, [1], []),
        ("\ud800", [1], []),
        (1 << 63, [1], []),
        (np.bool_(True), [1], []),
        ("a", [-1], []),
        ("a", [2**31], []),
        ("a", [[1]], []),
        ("a", [1.5], []),
        ("a", "text", []),
        ("a", [1], [10**30]),
        ("a", [[1], [1, 2]], []),
        ("a", [1] * 100_000, []),
    ],
)
def test_what_cannot_be_learnt_is_refused_and_leaves_no_trace(group, ids, prompt):
    past = Past(cap_bytes=100_000)
    with pytest.raises(RecipeError):
        past.push(group, ids, 0, prompt)
    assert (past.number, past.versions, past.since(0)) == (0, (), [])


def same(past, other):
    assert (past.number, past.first, past.versions) == (other.number, other.first, other.versions)
    assert [delta.encode() for delta in past.since(past.first)] == [delta.encode() for delta in other.since(past.first)]
    assert past.snapshot() == other.snapshot()


def test_a_journal_cut_at_every_byte_of_its_last_text_goes_on_without_it(tmp_path):
    path, twin = tmp_path / "past", fill(Past(), 5)
    past = fill(Past(path=path), 5)
    before = path.stat().st_size
    past.push("a", [1, 2, 3], 2, [4])
    past.close()
    whole = path.read_bytes()
    for cut in range(before, len(whole)):
        path.write_bytes(whole[:cut])
        again = Past(path=path)
        same(again, twin)
        assert again.push("a", [9], 3) == 6
        again.close()
    path.write_bytes(whole)
    twin.push("a", [1, 2, 3], 2, [4])
    same(Past(path=path), twin)


def test_a_process_that_is_killed_loses_nothing_that_it_gave_out(tmp_path):
    code = """
import sys
from pathlib import Path
from regear.engine.past import Past
past = Past(path=Path(sys.argv[1]), cap_bytes=20_000)
while True:
    n = past.push("a", [past.number % 50] * 20, past.number // 100, [1])
    if n % 10 == 0:
        print(past.since(n - 1)[0].number, flush=True)
"""
    path = tmp_path / "past"
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as child:
        given = [int(child.stdout.readline()) for _ in range(40)][-1]
        os.kill(child.pid, signal.SIGKILL)
    past, twin = Past(path=path, cap_bytes=20_000), Past(cap_bytes=20_000)
    assert past.number >= given == 400
    while twin.number < past.number:
        twin.push("a", [twin.number % 50] * 20, twin.number // 100, [1])
    assert past.versions == twin.versions
    assert follower(past).base.state() == follower(twin).base.state()


def test_a_journal_stays_bounded_and_holds_the_same(tmp_path, monkeypatch):
    path, cap, made, written, largest = tmp_path / "past", 20_000, [], 0, 0
    past, twin = (
        Past(path=place, cap_bytes=cap, base=SuffixDrafter(native().Index(generations=1))) for place in (path, None)
    )
    whole = Journal.replace
    monkeypatch.setattr(Journal, "replace", lambda self, contents: (made.append(1), whole(self, contents)))
    for number in range(1000):
        before = path.stat().st_size
        for one in (past, twin):
            one.push("a", [(number + 7 * k * k) % 1009 for k in range(100)], number // 20)
        written += max(0, path.stat().st_size - before)
        if number % 10 == 0:
            largest = max(largest, len(past.snapshot()[1]))
        assert path.stat().st_size < 2 * (largest + 2 * cap) + 1000
    assert written > 2 * path.stat().st_size
    assert 3 < len(made) < written / cap
    past.close()
    same(Past(path=path, cap_bytes=cap), twin)


def test_what_is_given_out_is_on_disk_and_one_wait_serves_all(tmp_path, monkeypatch):
    past, waits = Past(path=tmp_path / "past"), []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (waits.append(handle), real(handle)))
    for give in (lambda: past.since(0), past.snapshot):
        fill(past, 4)
        assert not waits
        give(), past.since(0), past.snapshot()
        assert len(waits) == 1
        waits.clear()


def test_a_snapshot_begins_a_past_elsewhere(tmp_path):
    past = fill(Past(cap_bytes=30_000))
    number, snapshot = past.snapshot()
    assert 20 < number < 40  # of the three versions the last is not in it
    other = Past(path=tmp_path / "past")
    other.restore(snapshot)
    for delta in past.since(number):
        assert other.push(delta.group, delta.ids, delta.version, delta.prompt) == delta.number
    assert follower(other).base.state() == follower(past).base.state()
    other.close()
    assert follower(Past(path=tmp_path / "past")).base.state() == follower(past).base.state()
    with pytest.raises(RecipeError, match="empty past"):
        other.restore(snapshot)


def test_a_damaged_snapshot_is_refused():
    _, snapshot = fill(Past(cap_bytes=8_000)).snapshot()
    draw, past = random.Random(0), Past()
    for at in [0, 20, len(snapshot) - 1, *(draw.randrange(len(snapshot)) for _ in range(50))]:
        with pytest.raises(DataError, match="no snapshot"):
            past.restore(snapshot[:at] + bytes([snapshot[at] ^ 4]) + snapshot[at + 1 :])
        with pytest.raises(DataError, match="no snapshot"):
            past.restore(snapshot[:at])
    past.restore(snapshot)


def test_a_journal_takes_no_other_past(tmp_path):
    fill(Past(path=tmp_path / "past"), 3).close()
    with pytest.raises(RecipeError, match="holds a past already"):
        Past(path=tmp_path / "past", base=SuffixDrafter())
    assert Past(path=tmp_path / "past").number == 3


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_two_engines_learn_from_each_other_and_write_what_they_would_alone(temperature):
    past = Past()
    engines = [LocalEngine(model(), drafter=SuffixDrafter(), draft=6) for _ in range(2)]
    followers = [Follower(engine.drafter.drafter, past) for engine in engines]
    plain = LocalEngine(model())
    draw = random.Random(0)
    prompts = [[draw.randrange(60) for _ in range(5)] for _ in range(4)]
    lengths = []
    for epoch in range(2):
        pace = []
        for rank, (engine, one) in enumerate(zip(engines, followers, strict=True)):
            one.catch_up()
            # Each engine has other problems than in the epoch before.
            mine = [k for k in range(4) if (k + epoch) % 2 == rank]
            requests = [Request(prompts[k], 40, temperature=temperature, seed=k, group=f"p{k}") for k in mine]
            answers = engine.generate(requests)
            assert tokens(answers) == tokens(plain.generate(requests))
            for k, answer in zip(mine, answers, strict=True):
                past.push(f"p{k}", answer.token_ids, epoch, prompts[k])
                pace.append(answer.acceptance_length)
        lengths.append(np.mean(pace))
    assert lengths[1] > 1.5 * lengths[0]
    for one in followers:
        one.catch_up()
    assert followers[0].base.state() == followers[1].base.state()
