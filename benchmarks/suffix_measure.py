"""What both sides of the suffix index's benchmark are asked, in processes that hold one of them and numpy.

    PYTHON suffix_index_regear.py|suffix_index_arctic.py JOB        JOB: one JSON object → one JSON object

A side is a class of the methods of `Side`. Timed are its calls alone, made by the same loops.
"""

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from suffix_history import Texts
from suffix_replay import accept, replay
from suffix_side import Call, Side, fill, timed

EMPTY = 20_000  # calls with no token, to learn what a call costs


def resident() -> int:
    """Bytes of memory in use once the allocator has given back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_turn(side: Side, texts: Texts, numbers: Sequence[int], chunk: int) -> list[Call]:
    """Calls that write these texts side by side, `chunk` tokens of each in turn."""
    longest = max(len(texts.tokens[i]) for i in numbers)
    return [
        side.call(i, texts.tokens[i][at : at + chunk])
        for at in range(0, longest, chunk)
        for i in numbers
        if at < len(texts.tokens[i])
    ]


def append(side: Side, texts: Texts, chunk: int, generations: int) -> dict[str, float]:
    """Microseconds and bytes a token; with several generations an epoch's texts are in flight together, else all."""
    numbers = list(range(len(texts.tokens)))
    parts = [texts.where(epoch) for epoch in sorted(set(texts.epochs))] if generations > 1 else [numbers]
    seconds, before = 0.0, resident()
    for k, part in enumerate(parts):
        if k:
            side.advance()
        for i in part:
            side.start(i, texts.groups[i], texts.prompts[i])
        held = resident()
        calls = in_turn(side, texts, part, chunk)
        held = resident() - held
        gc.disable()
        seconds += timed(calls)
        gc.enable()
        flight = resident() - held - before
        empty = timed([side.call(part[0], texts.tokens[0][:0])] * EMPTY) / EMPTY
        del calls
        for i in part:
            side.finish(i)
    count = texts.count()
    found = {"us_a_token": 1e6 * seconds / count, "us_an_empty_call": 1e6 * empty}
    found |= {"bytes_a_token_in_flight": flight / count, "bytes_a_token": (resident() - before) / count}
    return found | {f"bytes_a_token_{name}": value / count for name, value in side.held().items()}


def main(make: Callable[..., Side], more: dict[str, Callable[[Callable[..., Side], dict], Any]]) -> None:
    """Do one job; `more` are those that only this side knows."""
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {job["core"]})
    what = job["what"]
    if what == "append":
        told = append(make(**job["side"]), Texts.load(Path(job["history"])), job["chunk"], job["generations"])
    elif what == "query":
        history, texts, side = Texts.load(Path(job["history"])), Texts.load(Path(job["texts"])), make(**job["side"])
        fill(side, history, job["generations"])
        numbers = range(min(job["rows"], len(texts.tokens)))
        told = replay(side, texts, numbers, len(history.tokens), job["limit"], job["steps"])
    elif what == "accept":
        told = accept(make, job)
    else:
        told = more[what](make, job)
    print(json.dumps(told))
