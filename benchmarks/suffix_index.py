"""The suffix index beside arctic-inference's suffix cache: appends, memory, queries, and guesses that come true.

A history of 1M tokens, 40 groups of 8 texts, each an edited copy of its group's file; texts held out of it go on from
it. Every figure is the median over rounds in which the sides take turns, each in a process of its own, pinned to one
core; times are those of the process. The rival needs `--rival PYTHON` of an environment as `suffix_index_arctic.py`
says. Correctness gate: both find matches as long as a plain search does. Floor: a token's 4 bytes; a suffix array,
which cannot grow and holds no counts, takes 4 to 8 more.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import finish, parser
from suffix_accepted import accepted, accepted_text
from suffix_bench import OURS, THEIRS, TREE, Bench
from suffix_gate import gate
from suffix_history import Texts, edited_history, rollouts

from regear.cli.output import grid
from regear.models.builtin import resolve
from regear.models.load import load_tokenizer


def appends(bench: Bench) -> list[dict[str, Any]]:
    """Time and memory of tokens that come one by one, or in eights, to all texts in turn."""
    cases = [
        (side, "append", {"side": settings, "chunk": chunk, "generations": generations, "shared": shared})
        for chunk, generations, shared in ((1, 1, False), (8, 1, False), (1, 4, False), (1, 1, True))
        for side, settings in contenders(bench, shared)
    ]
    cases += [(OURS, "many", {"side": {}, "chunk": chunk, "generations": 1, "shared": False}) for chunk in (1, 8)]
    return rows_of(cases, bench.rounds(cases))


def contenders(bench: Bench, shared: bool) -> list[tuple[str, dict]]:
    found = [(OURS, {"shared": shared})]
    if THEIRS in bench.sides:
        found += [(THEIRS, {"shared": shared}), (TREE, {"shared": shared, "alone": True})]
    return found


def rows_of(cases: Sequence[tuple[str, str, dict]], told: Sequence[dict]) -> list[dict[str, Any]]:
    names = ("chunk", "generations", "shared", "limit")
    return [
        {"side": f"{side}, in one call" if what == "many" else side} | {n: job[n] for n in names if n in job} | one
        for (side, what, job), one in zip(cases, told, strict=True)
    ]


def queries(bench: Bench) -> list[dict[str, Any]]:
    """Time of a guess, for all rows in one call where a side has one."""
    rows, steps = bench.arguments.rows, bench.arguments.steps
    cases = [
        (side, "query", {"side": {"shared": shared}, "shared": shared, "rows": rows, "steps": steps, "limit": limit,
                         "generations": generations})
        for generations, shared in ((1, False), (4, False), (1, True))
        for limit in (4, 8)
        for side in bench.sides
        if side == OURS or generations == 1
    ]  # fmt: skip
    return rows_of(cases, bench.rounds(cases))


def text(results: dict, sides: Sequence[str]) -> str:
    shown = {"appends": appends_text, "queries": queries_text, "kept": kept_text}
    parts = [shown[name](results[name]) for name in shown if name in results]
    parts += [f"{name}\n{accepted_text(rows, sides)}" for name, rows in results.get("accepted", {}).items()]
    return "\n\n".join([*parts, *results["notes"]])


def appends_text(rows: Sequence[dict]) -> str:
    names = {
        "µs/token": "us_a_token",
        "empty call": "us_an_empty_call",
        "bytes/token": "bytes_a_token",
        "in flight": "bytes_a_token_in_flight",
        "own account": "bytes_a_token_by_its_own_account",
    }
    lines = [
        [*where(row, "chunk"), *(f"{row[key]:.2f}" if key in row else "–" for key in names.values())] for row in rows
    ]
    return grid(["append", "chunk", "generations", "scope", *names], lines)


def queries_text(rows: Sequence[dict]) -> str:
    names = {"µs/row": "us_a_row", "with writing": "us_a_row_with_writing", "guessed": "guessed_a_step"}
    lines = [[*where(row, "limit"), *(f"{row[key]:.2f}" for key in names.values())] for row in rows]
    return grid(["query", "limit", "generations", "scope", *names], lines)


def where(row: dict, name: str) -> list[str]:
    return [row["side"], str(row[name]), str(row["generations"]), "all" if row["shared"] else "group"]


def kept_text(kept: dict) -> str:
    return (
        f"saved {kept['bytes_a_token']:.1f} bytes a token, {kept['save_mb_a_second']:.0f} MB/s; loaded "
        f"{kept['load_mb_a_second']:.0f} MB/s; built anew in {kept['build_seconds']:.2f} s"
    )


def both(bench: Bench, held: Texts, path: Path | None) -> dict[str, list[dict]]:
    found = {"edited": accepted(bench, held, real=False)}
    return found | ({"rollouts": accepted(bench, rollouts(path), real=True)} if path else {})


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct", help="whose tokenizer")
    options.add_argument("--text", type=Path, help="a file to cut groups from, instead of the standard library's")
    options.add_argument("--rival", type=Path, help="a Python with arctic-inference's suffix cache; left out: none")
    options.add_argument("--rollouts", type=Path, help="real rollouts, JSONL")
    options.add_argument("--only", default="appends,queries,kept,accepted", help="parts, with commas between")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--groups", type=int, default=40)
    options.add_argument("--siblings", type=int, default=8)
    options.add_argument("--length", type=int, default=3125, help="tokens of a text")
    options.add_argument("--rows", type=int, default=256, help="texts that are guessed for at once")
    options.add_argument("--steps", type=int, default=200, help="steps of the timed queries")
    options.add_argument("--places", type=int, default=400, help="contexts of the gate")
    options.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    arguments = options.parse_args()
    tokenizer = load_tokenizer(resolve(arguments.model))
    made = (arguments.groups, arguments.siblings, arguments.length, max(arguments.rows, arguments.groups))
    history, held = edited_history(
        lambda text: tokenizer(text, verbose=False)["input_ids"], *made, arguments.seed, file=arguments.text
    )
    notes = [] if arguments.rival else ["the rival is left out: give --rival PYTHON of an environment that holds it"]
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(arguments, Path(place))
        history.save(Path(bench.common["history"]))
        held.save(Path(bench.common["texts"]))
        results = {"gate": gate(bench, history, held), "notes": notes, "rounds": arguments.rounds,
                   "history": {"tokens": history.count(), "groups": arguments.groups, "siblings": arguments.siblings,
                               "python": sys.version.split()[0]},
                   "floor_bytes_a_token": {"text": 4, "suffix array beside it": [4, 8]}}  # fmt: skip
        parts = {
            "appends": lambda: appends(bench),
            "queries": lambda: queries(bench),
            "kept": lambda: bench.rounds([(OURS, "kept", {"side": {}, "generations": 1})])[0],
            "accepted": lambda: both(bench, held.first(arguments.groups), arguments.rollouts),
        }
        results |= {name: part() for name, part in parts.items() if name in arguments.only.split(",")}
    finish("suffix_index", arguments, results, text(results, bench.sides))


if __name__ == "__main__":
    main()
