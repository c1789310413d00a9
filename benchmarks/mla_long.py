"""Long contexts: perplexity by position up to the model's limit and planted facts, original against both RoPE modes.

Each converted checkpoint is paired with the original on the same windows and needles. Correctness gate: against itself
the original has a ratio of exactly 1 in every bin.
"""

import sys
import tempfile
from pathlib import Path

from common import finish, parser

import regear
from regear.cli.output import grid

FORMS = {"exact": (), "decoupled": ("convert.rope=decoupled",), "strict grid": ("convert.preset=decoupled-grid",)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--ratio", default="1/2")
    options.add_argument("--context", type=int, default=8192)
    options.add_argument("--windows", type=int, default=4)
    options.add_argument("--items", type=int, default=5)
    options.add_argument("--forms", default=",".join(FORMS))
    arguments = options.parse_args()
    short = {"long": True, "speed": False, "seed": arguments.seed}
    gate = regear.eval(arguments.model, against=arguments.model, windows=1, items=1, context=256, **short)
    if any(row["ratio"] != 1 for row in gate["long"]["positions"]):
        sys.exit("the original differs from itself")

    found, lines = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.forms.split(","):
            place = Path(folder) / name.replace(" ", "-")
            words = [f"convert.kv_ratio={arguments.ratio}", "evaluation.tokens=1000", *FORMS[name]]
            regear.convert(arguments.model, place, *words, to="mla")
            sizes = {"windows": arguments.windows, "items": arguments.items, "context": arguments.context}
            found[name] = regear.eval(place, against=arguments.model, **sizes, **short)["long"]
            body = [
                [f"{row['from']}-{row['to']}", f"{row['ratio']:.4f}", "{:.4f} to {:.4f}".format(*row["ratio_ci"])]
                for row in found[name]["positions"]
            ]
            lines += [f"{name}, {arguments.ratio} of the cache", grid(["positions", "ratio", "95 % interval"], body)]
            for row in found[name]["needle"]:
                if row["depth"] is None:
                    pair = [f"{side['accuracy']:.2f} (exact {side['exact']:.2f})" for side in (row, row["against"])]
                    lines.append(f"  planted facts at {row['length']}: {pair[0]}, original {pair[1]}")
    finish("mla_long", arguments, {"ratio": arguments.ratio, "forms": found}, "\n".join(lines))


if __name__ == "__main__":
    main()
