"""Decoding speed beside what a user would take instead, by context and number of texts; one process, interleaved.

Contenders: the engine in float32 and int8, transformers' `generate` and `generate_batch`, and ctranslate2 in float32
and int8 (`--ctranslate2 PYTHON --converted DIR`, where DIR/float32 and DIR/int8 are what its converter wrote). Timed
are tokens after every text has its first one, so no prompt is read in that time. Correctness gate: greedy tokens of the
engine and of `generate` part at near-ties only. Floor: a step reads every matrix and the cache once, at the bandwidth
measured here, and does its products at the rate measured here.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import finish
from engine_common import (
    Contender,
    Prompts,
    Run,
    engine_parser,
    interleaved,
    load_int8,
    load_stock,
    medians,
    numbers,
    partings,
    verdict,
)
from engine_contenders import Batched, Child, Ours, Stock
from engine_floor import floor, rates, shares
from engine_prompts import cut_prompts

from regear.cli.output import grid
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer


def contenders(arguments: Any, path: Path, stock: Any) -> tuple[dict[str, Contender], list[str]]:
    """Those that are here and decode two texts, and why others are left out."""
    found: dict[str, Contender] = {"regear": Ours(load_model(path, "cpu"), chunk=0), "generate": Stock(stock)}
    notes = []
    int8, why = load_int8(path)
    if int8 is not None:
        found["regear int8"] = Ours(int8, chunk=0)
    notes += [why] if why else []
    try:
        Batched(stock)([[1, 2, 3], [4, 5]], 2)
        found["generate_batch"] = Batched(stock, more=True)
    except Exception as error:  # whatever a library that was not made for this machine may raise
        notes.append(f"generate_batch is left out: {error}")
    for kind in ("float32", "int8"):
        if arguments.ctranslate2:
            found[f"ctranslate2 {kind}"] = Child(
                arguments.ctranslate2, arguments.converted / kind, kind, arguments.threads
            )
    notes += [] if arguments.ctranslate2 else ["ctranslate2 is left out: no --ctranslate2"]
    return found, notes


def cell(
    ways: dict[str, Contender], prompts: Prompts, count: int, rounds: int, report: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, Run]]:
    """Median tokens a second of each contender, and what each wrote."""
    wrote: dict[str, Run] = {}

    def measure(name: str) -> float:
        wrote[name] = ways[name](prompts, count)
        report(name)
        return wrote[name].rate()

    return medians(interleaved({name: lambda name=name: measure(name) for name in ways}, rounds)), wrote


def agreement(one: Run, other: Run) -> float:
    """Share of the texts with the same tokens, as far as both go."""
    pairs = [list(zip(a, b, strict=False)) for a, b in zip(one.tokens, other.tokens, strict=True)]
    return sum(all(a == b for a, b in pair) for pair in pairs) / len(pairs)


def main() -> None:
    options = engine_parser(__doc__)
    options.add_argument("--contexts", default="128,1024,4096")
    options.add_argument("--rows", default="1,8,32")
    options.add_argument("--tokens", type=int, default=32, help="decoded for each text")
    options.add_argument("--most", type=int, default=40_000, help="leave out what would read more tokens of prompts")
    options.add_argument("--only", help="contenders, by name, with commas between")
    options.add_argument("--ctranslate2", type=Path, metavar="PYTHON")
    options.add_argument("--converted", type=Path, metavar="DIR")
    arguments = options.parse_args()
    if arguments.ctranslate2 and not arguments.converted:
        options.error("--ctranslate2 wants --converted DIR too")
    torch.set_num_threads(arguments.threads)
    path = resolve(arguments.model)
    tokenizer, stock = load_tokenizer(path), load_stock(path)
    ways, notes = contenders(arguments, path, stock)
    wanted = arguments.only.split(",") if arguments.only else list(ways)
    sizes = [(c, r) for c in numbers(arguments.contexts) for r in numbers(arguments.rows)]
    kept = [(c, r) for c, r in sizes if c * r <= arguments.most]
    notes += [f"{r} texts of {c} tokens are left out: --most" for c, r in sizes if (c, r) not in kept]

    prompts = cut_prompts(tokenizer, arguments.text, 8, min(numbers(arguments.contexts)))
    gate = partings(stock, prompts, *(ways[name](prompts, arguments.tokens) for name in ("regear", "generate")))
    if not verdict(gate, len(prompts))["near_ties_only"]:
        sys.exit(f"greedy tokens of the engine and of generate differ where no tie is: {gate}")
    measured, rows = [rates()], []
    for context, count in kept:
        prompts = cut_prompts(tokenizer, arguments.text, count, context)
        say = lambda name, c=context, r=count: print(f"{r} x {c}: {name}", file=sys.stderr)  # noqa: E731
        some = {name: ways[name] for name in ways if name in wanted}
        speed, wrote = cell(some, prompts, arguments.tokens, arguments.rounds, say)
        measured.append(rates())
        best = {name: max(one[name] for one in measured[-2:]) for name in measured[0]}
        least = floor(stock, count, context + arguments.tokens // 2)
        seconds = max(least["bytes"] / best["bytes_per_second"], least["operations"] / best["operations_per_second"])
        same = {name: agreement(wrote["regear"], one) for name, one in wrote.items() if "regear" in wrote}
        rows.append({"context": context, "rows": count, "tokens_per_second": speed, "same_texts": same,
                     "floor": {**least, "tokens_per_second": count / seconds}, **best})  # fmt: skip
    profiles = {str(r): shares(ways["regear"], cut_prompts(tokenizer, arguments.text, r, kept[0][0]), 8)
                for r in sorted({r for _, r in kept})}  # fmt: skip
    for way in ways.values():
        if isinstance(way, Child):
            way.close()
    text = grid(
        ["context", "texts", *(f"{name} (tok/s)" for name in ways if name in wanted), "float32 floor allows"],
        [[str(row["context"]), str(row["rows"]), *(f"{s:.1f}" for s in row["tokens_per_second"].values()),
          f"{row['floor']['tokens_per_second']:.1f}"] for row in rows],
    )  # fmt: skip
    text += "".join(
        f"\n{r} texts: " + ", ".join(f"{k} {100 * v:.0f} %" for k, v in p.items()) for r, p in profiles.items()
    )
    text += "".join(f"\n{note}" for note in notes)
    results = {"threads": arguments.threads, "tokens": arguments.tokens, "rounds": arguments.rounds, "notes": notes,
               "gate": verdict(gate, 8), "cells": rows, "profiles": profiles}  # fmt: skip
    finish("engine_decode", arguments, results, text)


if __name__ == "__main__":
    main()
