"""Long contexts: perplexity by position up to the model's limit and planted facts, original against both RoPE modes.

Every model reads the same windows and needles once, and each converted one is paired with the original. Correctness
gate: paired with itself the original has a ratio of exactly 1 in every bin, and its bins add up to one plain pass.
"""

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import finish, parser

import regear
from regear.cli.output import grid
from regear.measure.long import needle_rows
from regear.measure.needle import NeedleScores, score_needles
from regear.measure.position import PositionScores, long_rows, score_positions
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer
from regear.ops.divergence import token_nll
from regear.tasks.needle import NeedleItem, needles
from regear.tasks.text import read_documents, spread

FORMS = {"exact": (), "decoupled": ("convert.rope=decoupled",), "strict grid": ("convert.preset=decoupled-grid",)}
UNTIMED = 1.2  # GB: in so little memory convert times nothing itself


class Reading(NamedTuple):
    """What one model makes of the windows and of the needles, and the seconds it took."""

    positions: PositionScores
    facts: NeedleScores
    seconds: float


def read(model: Any, windows: list[list[int]], items: list[NeedleItem]) -> Reading:
    start = time.monotonic()
    found = score_positions([model], windows, [None]), score_needles(model, items)
    return Reading(*found, time.monotonic() - start)


def paired(form: Reading, original: Reading, seed: int) -> dict:
    """The rows of `regear eval --long` without KL, for which both models would have to be read at once."""
    nll = np.concatenate([form.positions.nll, original.positions.nll])
    rows = PositionScores(form.positions.edges, nll, form.positions.kl).rows(seed)
    return {
        "positions": [{key: value for key, value in row.items() if key != "kl"} for row in rows],
        "needle": needle_rows([form.facts, original.facts], seed),
        "seconds": form.seconds,
    }


def gate(model: Any, window: list[int], seed: int) -> None:
    found = read(model, [window], [])
    bins = paired(found, found, seed)["positions"]
    if any(row["ratio"] != 1 for row in bins):
        sys.exit("the original differs from itself")
    ids = torch.tensor([window])
    plain = float(token_nll(model(ids[:, :-1], use_cache=False).logits[0], ids[0, 1:]).double().sum())
    if not math.isclose(found.positions.nll.sum(), plain, rel_tol=1e-4):
        sys.exit(f"bins add up to {found.positions.nll.sum()}, one plain pass to {plain}")


def lines_of(name: str, ratio: str, found: dict) -> list[str]:
    body = [
        [f"{row['from']}-{row['to']}", f"{row['ratio']:.4f}", "{:.4f} to {:.4f}".format(*row["ratio_ci"])]
        for row in found["positions"]
    ]
    lines = [f"{name}, {ratio} of the cache", grid(["positions", "ratio", "95 % interval"], body)]
    for row in found["needle"]:
        if row["depth"] is None:
            pair = [f"{side['accuracy']:.2f} (exact {side['exact']:.2f})" for side in (row, row["against"])]
            lines.append(f"  planted facts at {row['length']}: {pair[0]}, original {pair[1]}")
    return lines


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--ratio", default="1/2")
    options.add_argument("--context", type=int, default=8192, help="tokens of a window")
    options.add_argument("--windows", type=int, default=4)
    options.add_argument("--lengths", default="512,2048", help="tokens of the needles' texts")
    options.add_argument("--items", type=int, default=10, help="needles of each length")
    options.add_argument("--forms", default=",".join(FORMS))
    arguments = options.parse_args()
    place = resolve(arguments.model)
    model, tokenizer = load_model(place), load_tokenizer(place)
    documents = read_documents(["builtin"], "evaluation")
    windows = spread(long_rows(documents, tokenizer, arguments.context), arguments.windows)
    lengths = [int(length) for length in arguments.lengths.split(",")]
    items = [x for n in lengths for x in needles(documents, tokenizer, n, items=arguments.items, seed=arguments.seed)]
    gate(model, windows[0][:256], arguments.seed)

    original, found, lines = read(model, windows, items), {}, []
    del model
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.forms.split(","):
            made = Path(folder) / name.replace(" ", "-")
            words = [f"convert.kv_ratio={arguments.ratio}", "evaluation.tokens=1000", *FORMS[name]]
            regear.convert(arguments.model, made, *words, to="mla", max_memory=UNTIMED)
            found[name] = paired(read(load_model(made), windows, items), original, arguments.seed)
            lines += lines_of(name, arguments.ratio, found[name])
    sizes = {"context": arguments.context, "windows": len(windows), "items": arguments.items, "lengths": lengths}
    results = {"ratio": arguments.ratio, **sizes, "seconds": original.seconds, "forms": found}
    finish("mla_long", arguments, results, "\n".join(lines))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
