"""Texts that are known are guessed at step by step, as an engine would; needs numpy alone."""

import functools
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from suffix_history import Texts
from suffix_side import Side, fill, timed


def replay(
    side: Side, texts: Texts, numbers: Sequence[int], first: int, limit: int, steps: int = 0
) -> dict[str, float]:
    """Go on from a history: each step guesses for every text in flight, keeps what came true, and writes it.

    Args:
        first: number of the first text, above those written before.
        steps: at most; 0: until all texts are done.
    """
    whole = {i: np.concatenate([texts.prompts[i], texts.tokens[i]]) for i in numbers}
    at = {i: len(texts.prompts[i]) for i in numbers}
    asking = writing = 0.0
    rows = guessed = kept = done = 0
    for i in numbers:
        side.start(first + i, texts.groups[i], texts.prompts[i], texts.seeds[i])
    live = list(numbers)
    while live and (not steps or done < steps):
        names = [first + i for i in live]
        most = np.array([min(limit, len(whole[i]) - at[i] - 1) for i in live], np.int64)
        known = [whole[i][: at[i]] for i in live]
        began = time.process_time()
        proposed = side.propose(names, known, most)
        asking += time.process_time() - began
        guesses, calls, right = side.guesses(proposed), [], []
        for i, guess in zip(live, guesses, strict=True):
            coming = whole[i][at[i] : at[i] + len(guess)].tolist()
            same = next((k for k, (a, b) in enumerate(zip(guess, coming, strict=True)) if a != b), len(guess))
            calls.append(side.call(first + i, whole[i][at[i] : at[i] + same + 1]))
            at[i] += same + 1
            right.append(same)
        writing += timed(calls)
        side.observe(names, [len(guess) for guess in guesses], right)
        rows, done = rows + len(live), done + 1
        guessed, kept = guessed + sum(map(len, guesses)), kept + sum(right)
        for i in [i for i in live if at[i] == len(whole[i])]:
            side.finish(first + i)
        live = [i for i in live if at[i] < len(whole[i])]
    return {
        "accepted_a_step": kept / rows,
        "guessed_a_step": guessed / rows,
        "us_a_row": 1e6 * asking / rows,
        "us_a_row_with_writing": 1e6 * (asking + writing) / rows,
        "rows": rows,
    }


def epochs(side: Side, texts: Texts, limit: int) -> dict[str, Any]:
    """Real rollouts, an epoch at a time: all texts of one in flight together, those before are history."""
    found = []
    for k, epoch in enumerate(sorted(set(texts.epochs))):
        if k:
            side.advance()
        found.append(replay(side, texts, texts.where(epoch), 0, limit))
    total = {name: [one[name] for one in found] for name in ("accepted_a_step", "guessed_a_step", "rows")}
    rows = np.array(total["rows"], float)
    means = {name: float(np.dot(total[name], rows) / rows.sum()) for name in ("accepted_a_step", "guessed_a_step")}
    return means | {"by_epoch": total["accepted_a_step"]}


def apart(work: Callable[[], dict]) -> dict:
    """What `work` gives, done in a copy of this process, so that what is held here stays as it is."""
    context = multiprocessing.get_context("fork")
    end, other = context.Pipe(duplex=False)
    process = context.Process(target=lambda: other.send(work()))
    process.start()
    other.close()
    try:
        return end.recv()
    finally:
        process.join()


def accept(make: Callable[..., Side], job: dict) -> list[dict]:
    """Accepted and guessed tokens a step under every limit and setting; history is written once a `kept` setting."""
    history = None if job["real"] else Texts.load(Path(job["history"]))
    texts, found = Texts.load(Path(job["texts"])), []
    for kept in job["keeps"]:
        side = make(**kept)
        first = 0
        if history:
            fill(side, history, job["generations"])
            first = len(history.tokens)
        for ask in job["asks"]:
            side.ask(**ask)
            for limit in job["limits"]:
                if history:
                    work = functools.partial(replay, side, texts, range(len(texts.tokens)), first, limit)
                else:
                    work = functools.partial(epochs, side, texts, limit)
                found.append({**kept, **ask, "limit": limit, **apart(work)})
    return found
