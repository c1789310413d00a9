"""Whatever a drafter does wrong, the text stays the same, and one line says that it is switched off."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from regear.engine.drafters.base import NOTHING
from regear.engine.drafters.guard import Guarded
from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.local import LocalEngine


class Bad:
    """Guesses rightly shaped nonsense for a while, then what it is told to."""

    def __init__(self, act, when=2):
        self.act, self.left, self.calls, self.finished = act, when, 0, 0

    def propose(self, texts, most):
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            return [np.zeros(count, np.int32) for count in most]
        return self.act(texts, most)

    def observe(self, outcomes):
        pass

    def finish(self, number, tokens, prompt, group):
        self.finished += 1


def fail(texts, most):
    raise ValueError("no\nidea")


def write(texts, most):
    texts[0].tokens[:] = 0
    return [NOTHING] * len(texts)


FAULTS = {
    "raised ValueError: no idea": fail,
    "raised ValueError: assignment destination is read-only": write,
    "raised KeyError": lambda texts, most: {}["x"],
    "raised SystemExit": lambda texts, most: sys.exit(1),
    "did not answer within 0.2 s": lambda texts, most: time.sleep(30),
    "guesses for": lambda texts, most: [NOTHING] * (len(texts) + 1),
    "tokens were asked for": lambda texts, most: [np.zeros(count + 1, np.int32) for count in most],
    "of shape ()": lambda texts, most: [np.int32(1)] * len(texts),
    "of type float64": lambda texts, most: [np.full(count, np.nan) for count in most],
    "of type <U1": lambda texts, most: [np.full(count, "a") for count in most],
    "of type bool": lambda texts, most: [np.ones(count, bool) for count in most],
    "ids from -1": lambda texts, most: [np.full(count, -1) for count in most],
    "to 260 for a vocabulary of 260": lambda texts, most: [np.full(count, 260) for count in most],
    "not iterable": lambda texts, most: None,
}


@pytest.mark.parametrize("says", FAULTS)
def test_a_fault_changes_nothing_and_is_told_once(says, model, requests, plain, capfd):
    drafter = Bad(FAULTS[says])
    engine = LocalEngine(model, drafter=Guarded(drafter, 260, deadline=0.2))
    start = time.monotonic()
    assert [found.token_ids for found in engine.generate(requests)] == plain
    assert time.monotonic() - start < 25
    assert drafter.calls == 3
    assert engine.drafter.off
    assert [found.token_ids for found in engine.generate(requests[:3])] == plain[:3]
    (line,) = capfd.readouterr().err.strip().split("\n")
    assert line.startswith("regear: warning: Bad ")
    assert says in line


@pytest.mark.parametrize("part", ["observe", "finish"])
def test_faults_anywhere_else(part, model, requests, plain, capfd):
    drafter = NgramDrafter()
    setattr(drafter, part, lambda *words: 1 / 0)
    assert [found.token_ids for found in LocalEngine(model, drafter=drafter).generate(requests)] == plain
    assert capfd.readouterr().err.count("ZeroDivisionError") == 1


def test_what_is_right_passes_through(model, requests, plain, capfd):
    drafter = Bad(None, when=10_000)
    assert [found.token_ids for found in LocalEngine(model, drafter=drafter).generate(requests)] == plain
    assert drafter.finished == len(requests)
    assert not capfd.readouterr().err


def test_a_stall_does_not_hold_up_the_end_of_the_process():
    code = """
import time, numpy as np
from regear.engine.drafters.guard import Guarded
class Stalls:
    def propose(self, texts, most):
        while True:
            time.sleep(0.01)
guard = Guarded(Stalls(), 10, deadline=0.1)
print(guard.propose([], np.zeros(0, int)), guard.off)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[] True")


def test_a_guard_that_goes_lets_its_drafter_and_thread_go():
    before = set(threading.enumerate())
    drafter = NgramDrafter()
    gone, guard = weakref.ref(drafter), Guarded(drafter, 10)
    guard.propose([], np.zeros(0, int))
    (thread,) = set(threading.enumerate()) - before
    del guard, drafter
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    assert gone() is None
