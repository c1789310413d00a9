"""The gate of the suffix index's benchmark: the longest matches are those that a plain search finds."""

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from suffix_bench import OURS, THEIRS, Bench
from suffix_history import PROMPT, Texts

DEPTHS = (24, 64)  # of the rival's trees


def plain(rows: Sequence[np.ndarray], context: np.ndarray, followed: bool, most: int) -> int:
    """How many tokens at the context's end stand together in one of these rows, at most `most`."""
    line = np.concatenate([part for row in rows for part in (np.full(1, -1, np.int32), row)] + [[-1]])
    ends = np.flatnonzero(line == context[-1])
    if followed:
        ends = ends[line[ends + 1] >= 0]
    length = 0
    while len(ends) and length < min(most, len(context)):
        length += 1
        if length < len(context):
            ends = ends[line[ends - length] == context[-1 - length]]
    return length


def gate(bench: Bench, history: Texts, held: Texts) -> dict[str, Any]:
    """Longest matches at sampled places of the first held-out text of each group.

    The index reads prompts too, and wants something after a match; the rival's tree holds no prompts, and matches
    fewer tokens than its depth.
    """
    generator, groups = np.random.default_rng(bench.arguments.seed), len(set(held.groups))
    first = [held.groups.index(name) for name in dict.fromkeys(held.groups)]
    places = sorted(
        (i, int(end))
        for i in first
        for end in generator.integers(PROMPT + 1, PROMPT + len(held.tokens[i]), -(-bench.arguments.places // groups))
    )
    wanted, theirs_wanted = [], {depth: [] for depth in DEPTHS}
    for i, end in places:
        text = np.concatenate([held.prompts[i], held.tokens[i]])[:end]
        past = [k for k, name in enumerate(history.groups) if name == held.groups[i]]
        whole = [np.concatenate([history.prompts[k], history.tokens[k]]) for k in past]
        wanted.append(plain([*whole, text], text, True, end))
        for depth, found in theirs_wanted.items():
            found.append(plain([history.tokens[k] for k in past], text, False, depth - 1))
    told: dict[str, Any] = {"places": len(places), "median_match": statistics.median(wanted)}
    for generations in (1, 4):
        found = bench.run(OURS, "longest", side={}, places=places, generations=generations)
        told[f"{OURS}, generations {generations}"] = found == wanted
    if THEIRS in bench.sides:
        found = {d: bench.run(THEIRS, "longest", side={"depth": d}, places=places) for d in DEPTHS}
        told |= {f"{THEIRS}, depth {depth}": found[depth] == theirs_wanted[depth] for depth in DEPTHS}
        told["the same on both sides"] = sum(
            min(a, DEPTHS[0] - 1) == b for a, b in zip(wanted, found[DEPTHS[0]], strict=True)
        )
    wrong = [name for name, right in told.items() if right is False]
    if wrong:
        sys.exit(f"the longest matches of {wrong} are not those of a plain search")
    return told
