"""Threads share an index: calls take turns, and Python goes on while one works."""

import threading
import time

import numpy as np

from regear._native import Index
from tests.native.pair import ints, propose, start

LIMIT = 60  # seconds


def run(*works):
    errors = []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors


def test_two_threads_write_and_guess_at_once():
    """What is written is the same as by one thread."""
    texts = np.random.default_rng(0).integers(0, 4, (2, 2000, 10)).astype(np.int32)
    shared, alone = Index(shared=True), Index(shared=True)

    def work(index, number):
        start(index, number, b"g", [1, 2])
        for part in texts[number]:
            index.extend(number, part)
            propose(index, number, 4)
            index.matched(number)
            assert index.bytes > 0
        index.finish(number)

    run(lambda: work(shared, 0), lambda: work(shared, 1))
    for number in (0, 1):
        work(alone, number)
    assert shared.tokens == alone.tokens
    for index in (shared, alone):
        index.advance()
    for probe in np.random.default_rng(1).integers(0, 4, (50, 6)):
        for index in (shared, alone):
            start(index, 5, b"g", probe)
        assert shared.matched(5) == alone.matched(5)
        assert propose(shared, 5) == propose(alone, 5)


def test_saving_and_advancing_beside_writing():
    index = Index(cap_bytes=1 << 20, shared=True)
    ended = threading.Event()

    def write():
        try:
            for i in range(4000):
                start(index, i % 3, b"g%d" % (i % 5), [i, 1])
                index.extend(i % 3, ints(np.arange(100) % (i + 1)))
        finally:
            ended.set()

    def save():
        while not ended.is_set():
            assert Index.load(index.save()).tokens >= 0
            index.advance()

    run(write, save)


def test_python_goes_on_during_long_calls():
    index, tokens = Index(), ints(np.random.default_rng(0).integers(0, 1000, 600_000))
    start(index, 0, b"g", [])
    span, ticks = [], []

    def work():
        span.append(time.perf_counter())
        index.extend(0, tokens)
        span.append(time.perf_counter())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    began, ended = span
    within = [began, *(tick for tick in ticks if began < tick < ended), ended]
    assert ended - began > 0.05  # long enough to see
    assert max(np.diff(within)) < 0.9 * (ended - began)
