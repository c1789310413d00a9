"""Whether the engine writes what it should: speculation on beside off, and greedy texts beside those of `generate`.

Every text that parts from its twin is listed with the place and how far below the best score, noise included, the worse
of the two tokens lies. Gate: that is under 1e-4 everywhere. One thread; scores of the stock model, a text at a time.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import finish
from engine_common import Prompts, Run, engine_parser, load_stock, partings, verdict
from engine_contenders import Ours, Stock
from engine_prompts import asked

from regear.cli.output import grid
from regear.engine.drafters.base import Drafter
from regear.engine.drafters.ngram import NgramDrafter
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer


def drafters(model: Any, small: Path | None) -> dict[str, Callable[[], Drafter]]:
    """Drafters to try: n-gram, and a small model (by default the model itself) where this version has that one."""
    found: dict[str, Callable[[], Drafter]] = {"ngram": NgramDrafter}
    if importlib.util.find_spec("regear.engine.drafters.model"):
        module: Any = importlib.import_module("regear.engine.drafters.model")
        other = load_model(small, "cpu") if small else model
        found["model"] = lambda: module.ModelDrafter(other, model.config.vocab_size)
    return found


def together(runs: list[Run]) -> Run:
    """Runs of one text each as one run."""
    return Run([run.tokens[0] for run in runs], [run.times[0] for run in runs], runs[0].began)


def compare(stock: Any, prompts: Prompts, one: Run, other: Run, temperature: float, seed: int) -> dict[str, Any]:
    found = partings(stock, prompts, one, other, temperature=temperature, seed=seed)
    drafted = other.count() / other.forwards if other.forwards else None
    return {"temperature": temperature, "acceptance_length": drafted, **verdict(found, len(prompts))}


def main() -> None:
    options = engine_parser(__doc__, rounds=1)
    options.add_argument("--prompts", type=int, default=50)
    options.add_argument("--context", type=int, default=120)
    options.add_argument("--tokens", type=int, default=96)
    options.add_argument("--rows", type=int, default=16, help="texts at a time")
    options.add_argument(
        "--drafter", type=Path, help="a small model of the same vocabulary (default: the model itself)"
    )
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    path = resolve(arguments.model)
    tokenizer, stock, model = load_tokenizer(path), load_stock(path), load_model(path, "cpu")
    prompts = asked(tokenizer, arguments.text, arguments.prompts, arguments.context)
    rows = []
    for temperature in (0.0, 0.7):
        words = {"rows": arguments.rows, "temperature": temperature, "seed": arguments.seed}
        off = Ours(model, **words)(prompts, arguments.tokens)
        for name, drafter in drafters(model, arguments.drafter).items():
            on = Ours(model, drafter, **words)(prompts, arguments.tokens)
            found = compare(stock, prompts, off, on, temperature, arguments.seed)
            rows.append({"case": f"{name} beside off", **found})
        if not temperature:
            generated = together([Stock(stock)([prompt], arguments.tokens) for prompt in prompts])
            rows.append({"case": "generate beside off", **compare(stock, prompts, off, generated, 0.0, 0)})
    lines = [
        [row["case"], str(row["temperature"]), str(row["texts"]), str(len(row["parted"])),
         f"{max((one['gap'] for one in row['parted']), default=0):.1e}",
         f"{row['acceptance_length']:.2f}" if row["acceptance_length"] else "-"]
        for row in rows
    ]  # fmt: skip
    text = grid(["case", "temperature", "texts", "parted", "largest gap", "acceptance"], lines)
    results = {"threads": arguments.threads, "tokens": arguments.tokens, "rows": arguments.rows, "cases": rows}
    finish("engine_exact", arguments, results, text)
    if not all(row["near_ties_only"] for row in rows):
        sys.exit("a text parts from its twin where no tie is")


if __name__ == "__main__":
    main()
