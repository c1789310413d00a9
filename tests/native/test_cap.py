"""The index keeps to its bytes, whatever is written, and still works then; nothing makes it slow."""

import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from regear._native import Index
from tests.native.pair import ints, propose, start

CAP, CHUNK = 1 << 20, 5000


def de_bruijn(symbols, order):
    """Every string of `order` symbols once."""
    found, seen = [0] * order, {(0,) * order}
    while True:
        for token in reversed(range(symbols)):
            if (one := (*found[1 - order :], token)) not in seen:
                seen.add(one)
                found.append(token)
                break
        else:
            return found


TEXTS = {
    "random": lambda: np.random.default_rng(0).integers(0, 50_000, 60_000),
    "coins": lambda: np.random.default_rng(0).integers(0, 2, 60_000),
    "one token": lambda: np.zeros(200_000),
    "two in turn": lambda: np.arange(200_000) % 2,
    "runs": lambda: np.repeat(np.arange(40_000) % 2, np.arange(40_000) % 9 + 1),
    "distinct": lambda: np.arange(100_000),
    "de Bruijn": lambda: de_bruijn(3, 10),
}


def answers(index):
    """It guesses what it was just told."""
    start(index, 70, b"after", range(900, 920))
    index.finish(70)
    start(index, 71, b"after", range(900, 910))
    return propose(index, 71, 3)[0] == [910, 911, 912]


@pytest.mark.parametrize("generations", [1, 8])
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("prompt", [False, True])
def test_long_texts(name, generations, prompt):
    tokens = ints(TEXTS[name]())
    index = Index(generations=generations, cap_bytes=CAP, shared=True)
    began = time.perf_counter()
    start(index, 0, b"g", tokens if prompt else [])
    assert index.bytes <= CAP
    for at in range(0, 0 if prompt else len(tokens), CHUNK):
        index.extend(0, tokens[at : at + CHUNK])
        assert index.bytes <= CAP
        propose(index, 0)
        assert index.bytes <= CAP
    assert time.perf_counter() - began < 10  # half a second alone
    assert index.bytes > CAP / 64
    assert answers(index)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_repetition_takes_no_time_without_a_cap_either(tokens):
    index, longest = Index(), 0
    start(index, 0, b"g", [])
    began = time.perf_counter()
    for _ in range(60):
        index.extend(0, ints(np.arange(3333) % tokens))
        longest = max(longest, index.matched(0))
        assert propose(index, 0, 2)[0] == [3333 % tokens, 3334 % tokens]
    assert time.perf_counter() - began < 10  # without measures minutes
    assert longest > 100


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("group", [lambda i: b"%d" % i, lambda i: b"%d" % i * 300, lambda i: b"g"])
def test_thousands_of_groups_and_prompts(group, shared):
    index = Index(cap_bytes=CAP, shared=shared)
    for i in range(4000):
        if i % 500 == 0:
            index.advance()
        number = i % 30  # which are never finished, but begun anew
        start(index, number, group(i), [i, i + 1, i // 7])
        index.extend(number, ints([i % 5, 3]))
        assert index.bytes <= CAP
    assert propose(index, 29)[0] is not None
    assert answers(index)


def test_prompts_are_counted_where_they_bring_no_new_strings():
    index, sizes = Index(), []
    for length in (11, 10):
        for prompt in product(range(2), repeat=length):
            start(index, 0, b"g", prompt)
        sizes.append(index.bytes)
    assert sizes[1] - sizes[0] > 32 * 2**10


def test_what_was_unused_longest_goes_first():
    index = Index(cap_bytes=CAP)
    random = np.random.default_rng(0)
    for name in (b"kept", b"left"):
        index.learn(name, ints([1, 2, 3]), ints([6, 7]))
    for i in range(40):
        index.learn(b"%d" % i, ints([1, 2, 3, 4, 5]), ints(random.integers(9, 99, 1500)))
        start(index, 0, b"kept", [1, 2, 3])  # nothing new
        index.finish(0)
    assert index.groups < 30
    for name, wanted in ((b"left", []), (b"0", []), (b"39", [4, 5]), (b"kept", [6, 7])):
        start(index, 1, name, [1, 2, 3])
        assert propose(index, 1, 2)[0] == wanted


MEASURE = """
import re, sys
import numpy as np
from regear._native import Index

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

tokens = np.load(sys.argv[1])
index = Index(cap_bytes=int(sys.argv[2]), shared=True)
index.start(0, b"g", tokens[:9])
before = memory("VmRSS")
for at in range(0, len(tokens), 10000):
    index.extend(0, tokens[at : at + 10000])
index.start(1, b"h", tokens)
print(index.bytes, memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("symbols", [2, 50_000])
def test_the_bytes_are_those_of_the_process(symbols, tmp_path):
    cap = 12 << 20
    np.save(tmp_path / "tokens.npy", ints(np.random.default_rng(0).integers(0, symbols, 300_000)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "tokens.npy", str(cap)], capture_output=True, text=True, check=True
    )
    held, grown = map(int, done.stdout.split())
    assert cap / 2 < held <= cap
    assert cap / 2 < grown < 2 * cap
