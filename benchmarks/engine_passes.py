"""One pass of the engine by tokens, with the compiled products and with oneDNN's, in turns in one process.

Correctness gate: both find the same scores, to within rounding. Floor: the longer of reading every weight once and
doing every product once, at the rates measured here.
"""

import statistics
import sys
import time

import numpy as np
import torch
from common import finish
from engine_common import engine_parser, load_stock
from engine_floor import floor, rates

from regear.cli.output import grid
from regear.engine.runner import AttentionRunner
from regear.models.builtin import resolve
from regear.models.load import load_model
from regear.ops import linear

CASES = [(1, 1), (1, 4), (1, 8), (4, 1), (4, 2), (4, 3), (4, 4), (13, 1), (13, 2), (16, 1), (16, 2), (32, 1), (128, 1)]
CLOSE = 1e-3


def runners(path: str, slots: int, rows: int) -> dict[str, AttentionRunner]:
    """By whose products they multiply."""
    compiled, found = linear.native, {}
    for name in ("compiled", "oneDNN"):
        linear.native = compiled if name == "compiled" else None
        found[name] = AttentionRunner(load_model(path, "cpu"))
        found[name].reserve(rows, slots, 0)
    linear.native = compiled
    return found


def main() -> None:
    options = engine_parser(__doc__, rounds=9)
    options.add_argument("--context", type=int, default=200)
    options.add_argument("--cases", default=" ".join(f"{rows}x{width}" for rows, width in CASES), help="texts x tokens")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    path = resolve(arguments.model)
    cases = [tuple(map(int, case.split("x"))) for case in arguments.cases.split()]
    stock, context = load_stock(path), arguments.context
    both = runners(path, context + max(width for _, width in cases), max(rows for rows, _ in cases))
    size = len(stock.get_input_embeddings().weight)
    generator, measured, results, lines = np.random.default_rng(arguments.seed), [rates()], [], []
    for rows, width in cases:
        tokens = generator.integers(0, size, (rows, width)).astype(np.int32)
        counts, starts, wanted = np.full(rows, width), np.full(rows, context), np.ones((rows, width), bool)
        seconds: dict[str, list[float]] = {name: [] for name in both}
        scores = {}
        for _ in range(arguments.rounds):
            for name, runner in both.items():
                began = time.perf_counter()
                scores[name] = runner.read(0, tokens, counts, starts, wanted)
                seconds[name].append(time.perf_counter() - began)
        apart = float((scores["compiled"] - scores["oneDNN"]).abs().max() / scores["oneDNN"].abs().max())
        if not apart <= CLOSE:
            sys.exit(f"{rows} x {width}: the scores differ by {apart:.2g} of the largest")
        measured.append(rates())
        least, now = floor(stock, rows, context, width), measured[-1]
        bound = max(least["bytes"] / now["bytes_per_second"], least["operations"] / now["operations_per_second"])
        found = {name: statistics.median(held) for name, held in seconds.items()}
        results.append({"texts": rows, "tokens_a_text": width, "seconds": found, "floor_seconds": bound})
        lines.append([f"{rows} x {width}", *(f"{1e3 * found[name]:.1f}" for name in both), f"{1e3 * bound:.1f}",
                      f"{found['oneDNN'] / found['compiled']:.2f}"])  # fmt: skip
    table = grid(["texts x tokens", "compiled (ms)", "oneDNN (ms)", "floor (ms)", "times as fast"], lines)
    finish("engine_passes", arguments, {"threads": arguments.threads, "context": context, "passes": results,
                                        "rates": measured}, table)  # fmt: skip


if __name__ == "__main__":
    main()
