"""Sampled rollouts of ragged length, as reinforcement learning wants them: useful tokens a second, prompts read too.

Every prompt several times at temperature 0.7 until it ends or is cut: the engine with a row for each text and with
fewer rows, transformers' `generate` over one batch padded on the left, and its `generate_batch`. A useful token stands
before a text's end, or is it. Correctness gate: with fewer rows the engine writes the same texts but for near-ties.
Floor: all products of these tokens at the rate measured here.
"""

import statistics
import sys
from typing import Any

import torch
from common import finish
from engine_common import Contender, Run, engine_parser, interleaved, load_int8, load_stock, medians, partings, verdict
from engine_contenders import Batched, Ours, Stock
from engine_floor import floor, rates
from engine_prompts import questions

from regear.cli.output import grid
from regear.engine.text import stop_tokens
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer

TEMPERATURE = 0.7


def contenders(path: Any, stock: Any, rows: int, seed: int) -> tuple[dict[str, Contender], list[str]]:
    """By name; and why others are left out."""
    model = load_model(path, "cpu")
    stops = stop_tokens(stock)
    ours = {"temperature": TEMPERATURE, "stop_tokens": stops, "seed": seed}
    theirs = {"temperature": TEMPERATURE, "stops": stops, "seed": seed}
    found: dict[str, Contender] = {
        "regear": Ours(model, rows=rows, **ours),
        "regear, a quarter of the rows": Ours(model, rows=max(1, rows // 4), **ours),
        "generate": Stock(stock, **theirs),
    }
    int8, why = load_int8(path)
    if int8 is not None:
        found["regear int8"] = Ours(int8, rows=rows, **ours)
    notes = [why] if why else []
    try:
        Batched(stock, **theirs)([[1, 2, 3], [4, 5]], 2)
        found["generate_batch"] = Batched(stock, **theirs)
    except Exception as error:  # whatever a library that was not made for this machine may raise
        notes.append(f"generate_batch is left out: {error}")
    return found, notes


def described(runs: list[Run], bound: float) -> dict[str, Any]:
    """Medians over the rounds of one contender."""
    speed = statistics.median(run.count() / run.seconds() for run in runs)
    lengths = [len(tokens) for run in runs for tokens in run.tokens]
    return {
        "useful_tokens_per_second": speed,
        "makespan_seconds": statistics.median(run.seconds() for run in runs),
        "tokens": statistics.median(run.count() for run in runs),
        "median_length": statistics.median(lengths),
        "longest": max(lengths),
        "share_of_floor": speed / bound,
    }


def main() -> None:
    options = engine_parser(__doc__, rounds=1)
    options.add_argument("--prompts", type=int, default=16)
    options.add_argument("--samples", type=int, default=8)
    options.add_argument("--tokens", type=int, default=320, help="at most, of each text")
    options.add_argument("--only", help="contenders, by name, with commas between (the engine's two always run)")
    options.add_argument("--quick", action="store_true", help="a rehearsal: 2 prompts, 2 samples, 24 tokens")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.prompts, arguments.samples, arguments.tokens = 2, 2, 24
    torch.set_num_threads(arguments.threads)
    path = resolve(arguments.model)
    tokenizer, stock = load_tokenizer(path), load_stock(path)
    prompts = [ids for ids in questions(tokenizer, arguments.prompts) for _ in range(arguments.samples)]
    ways, notes = contenders(path, stock, len(prompts), arguments.seed)
    names = list(ways)[:2] + [
        name for name in list(ways)[2:] if not arguments.only or name in arguments.only.split(",")
    ]
    print("the gate", file=sys.stderr)
    twins = [ways[name](prompts, arguments.tokens) for name in names[:2]]
    parted = partings(stock, prompts, *twins, temperature=TEMPERATURE, seed=arguments.seed)
    gate = verdict(parted, len(prompts))
    if not gate["near_ties_only"]:
        sys.exit(f"the number of rows changed a text where no tie is: {parted}")
    measured, runs = [rates()], {name: [] for name in names}

    def measure(name: str) -> float:
        print(name, file=sys.stderr)
        runs[name].append(ways[name](prompts, arguments.tokens))
        measured.append(rates())
        return runs[name][-1].seconds()

    seconds = medians(interleaved({name: lambda name=name: measure(name) for name in names}, arguments.rounds))
    work = floor(stock, 1, arguments.tokens // 2)["operations"]
    bound = max(one["operations_per_second"] for one in measured) / work
    found = {name: described(runs[name], bound) for name in names}
    lines = [
        [name, f"{row['useful_tokens_per_second']:.1f}", f"{seconds[name]:.1f}", f"{row['median_length']:.0f}",
         f"{row['useful_tokens_per_second'] / found['generate']['useful_tokens_per_second']:.2f}"
         if "generate" in found else "-", f"{row['share_of_floor']:.2f}"]
        for name, row in found.items()
    ]  # fmt: skip
    header = ["", "useful tokens/s", "makespan (s)", "median length", "over generate", "share of the floor"]
    results = {"threads": arguments.threads, "rollouts": len(prompts), "cap": arguments.tokens, "gate": gate,
               "temperature": TEMPERATURE, "rounds": arguments.rounds, "rates": measured, "notes": notes,
               "contenders": found}  # fmt: skip
    text = f"{len(prompts)} rollouts, {len(parted)} near-ties\n{grid(header, lines)}"
    finish("engine_rollouts", arguments, results, text + "".join(f"\n{note}" for note in notes))


if __name__ == "__main__":
    main()
