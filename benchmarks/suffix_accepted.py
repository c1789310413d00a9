"""Which guesses come true: both sides under the same limits, each with several of its own settings."""

from collections.abc import Sequence
from typing import Any

from suffix_bench import OURS, THEIRS, Bench
from suffix_gate import DEPTHS
from suffix_history import Texts

from regear.cli.output import grid

VLLM = {"factor": 1.0, "offset": 0.0, "least": 0.1}  # what vLLM's `suffix` method asks with, at depth 24
OTHERS = [
    {"factor": factor, "offset": offset, "least": least}
    for factor, offset in ((4.0, 0.0), (1.0, 16.0))  # the last: as many as the limit, whatever the match
    for least in (0.1, 0.0)
]
LEASTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)
LIMITS = (4, 8, 16)


def accepted(bench: Bench, texts: Texts, *, real: bool) -> list[dict[str, Any]]:
    """Accepted tokens a step: both under the same limits, each with several of its settings."""
    path = bench.folder / "accepted.npz"
    texts.save(path)
    job = {"texts": str(path), "limits": LIMITS, "real": real}
    found = []
    for shared in (False, True):
        for generations in (4,) if real else (1, 4):
            keeps = [
                {"shared": shared, "generations": kept, "noise": noise}
                for kept in ((4, 8) if real else (4,))
                for noise in sorted({False, max(texts.seeds) >= 0})
            ]
            asks = [{"least": least} for least in LEASTS]
            told = bench.run(OURS, "accept", **job, keeps=keeps, asks=asks, generations=generations)
            found += [{"side": OURS, "spread": generations, **one} for one in told]
        if THEIRS in bench.sides:
            keeps = [{"shared": shared, "depth": depth} for depth in DEPTHS]
            told = bench.run(THEIRS, "accept", **job, keeps=keeps, asks=[VLLM, *OTHERS], generations=1)
            found += [{"side": THEIRS, **one} for one in told]
    return found


def best(rows: Sequence[dict], **wanted: Any) -> dict:
    """The setting with the most accepted tokens; one of no guesses where none fits."""
    chosen = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    nothing = {"accepted_a_step": 0.0, "guessed_a_step": 0.0}
    return max(chosen, key=lambda row: row["accepted_a_step"], default=nothing)


def accepted_text(rows: Sequence[dict], sides: Sequence[str]) -> str:
    """The better of each side's settings; for the rival also vLLM's."""
    lines = []
    for shared in (False, True):
        for limit in LIMITS:
            where = {"shared": shared, "limit": limit}
            picked = [(OURS, best(rows, side=OURS, noise=False, **where))]
            if any(row.get("noise") for row in rows):
                picked.append(("regear, knowing the noise", best(rows, side=OURS, noise=True, **where)))
            if THEIRS in sides:
                usual = best(rows, side=THEIRS, depth=24, **VLLM, **where)
                fewer = [row for row in rows if row["guessed_a_step"] <= usual["guessed_a_step"]]
                picked += [
                    ("regear, guessing no more than the next", best(fewer, side=OURS, noise=False, **where)),
                    ("arctic as in vLLM", usual),
                    ("arctic, best setting", best(rows, side=THEIRS, **where)),
                ]
            for name, row in picked:
                figures = [f"{row['accepted_a_step']:.3f}", f"{row['guessed_a_step']:.2f}"]
                lines.append([name, "all" if shared else "group", str(limit), *figures])
    return grid(["accepted a step", "scope", "limit", "accepted", "guessed"], lines)
