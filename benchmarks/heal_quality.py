"""What healing wins back: every width before and after, on text like the training text and on text unlike it.

Conversions and healings are kept in `--work` and resumed there, since each trains for minutes to an hour. Healed models
are then read through caches of 16, 8 and 4 bits beside the original, because a user chooses between bytes; with
`--items`, multiple-choice items are scored too. Correctness gate: the original against itself has a ratio of exactly 1.
"""

import json
import sys
from pathlib import Path

from common import finish, parser

import regear
from regear.cli.output import grid
from regear.healing.heal import build_recipe
from regear.healing.report import steps_of

# name: (recipe words of the conversion, of the healing)
FORMS = {
    "exact-1-3": (["convert.kv_ratio=1/3"], ["train.tokens=819200", "train.precision=bfloat16"]),
    "exact-1-6": (["convert.kv_ratio=1/6"], ["train.tokens=409600", "train.lr=2e-3", "train.batch=8"]),
    "dec-1-2": (["convert.kv_ratio=1/2", "convert.rope=decoupled"], ["train.tokens=204800", "train.batch=8"]),
    "exact-1-4": (["convert.kv_ratio=1/4"], ["train.tokens=102400", "train.lr=1.5e-3", "train.batch=8"]),
    "exact-1-2": (["convert.kv_ratio=1/2"], ["train.tokens=81920", "train.batch=8"]),
    "strict-1-2": (
        ["convert.kv_ratio=1/2", "convert.format=deepseek_v3"],
        ["train.tokens=737280", "train.batch=8", "train.precision=bfloat16"],
    ),
}
MEASURED = ["evaluation.tokens=16384", "elsewhere.tokens=8192", "held_out_windows=6", "held_out_every=30"]
KINDS = ("bf16", "int8", "int4")
CACHES = ("exact-1-2", "exact-1-3", "exact-1-4", "exact-1-6")


def healed(model: str, work: Path, name: str) -> dict:
    """The record of a healed output, made if it is not there."""
    place = work / f"{name}-healed"
    convert, heal = FORMS[name]
    if not (place / "regear.json").exists():
        regear.convert(model, work / name, *convert, "evaluation.tokens=4096", to="mla")
        regear.heal(work / name, model, place, *heal, *MEASURED)
    record = json.loads((place / "regear.json").read_text())
    wanted = build_recipe(None, (*heal, *MEASURED), ()).named()
    if stale := [key for key in ("train", "stages", "data", "seed") if record["recipe"][key] != wanted[key]]:
        sys.exit(f"{place} was healed by another recipe ({', '.join(stale)} differ); remove it, or give another --work")
    return record


def curve(work: Path, name: str) -> list[dict]:
    """Held-out KL and perplexity against tokens while training."""
    rows = [row for row in steps_of(work / f"{name}-healed.run") if "held_out_kl" in row]
    return [{key: row[key] for key in ("tokens", "held_out_kl", "held_out_perplexity")} for row in rows]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--work", type=Path, default=Path("heal-quality"), help="conversions and healings, kept")
    options.add_argument("--forms", default=",".join(FORMS))
    options.add_argument("--windows", type=int, default=12, help="windows read through each cache; 0 for none")
    options.add_argument("--items", type=int, default=40, help="multiple-choice items; 0 for none")
    arguments = options.parse_args()
    plain = {"speed": False, "seed": arguments.seed}
    gate = regear.eval(arguments.model, against=arguments.model, windows=1, **plain)
    if gate["against"]["ratio"] != 1:
        sys.exit("the original differs from itself")

    found, lines = {}, []
    for name in arguments.forms.split(","):
        record = healed(arguments.model, arguments.work, name)
        stages = [{k: s[k] for k in ("objective", "steps", "tokens", "parameters")} for s in record["stages"]]
        found[name] = {"recipe": record["recipe"]["train"], "stages": stages, **record["measured"]}
        found[name]["curve"] = curve(arguments.work, name)
        for use, text in record["measured"]["texts"].items():
            ratio, kl = text["ratio"], text["kl"]
            row = [name, use, f"{sum(s['tokens'] for s in stages):,}", f"{ratio['before'][0]:.4f}"]
            row += ["{:.4f} ({:.4f} to {:.4f})".format(*ratio["after"]), f"{kl['before']:.4f}", f"{kl['after']:.4f}"]
            lines.append(row)
    table = grid(["form", "text", "tokens", "before", "after", "KL before", "KL after"], lines)

    models = {"original": arguments.model}
    models |= {name: arguments.work / f"{name}-healed" for name in CACHES if name in found}
    bytes_ = []
    for name, place in models.items() if arguments.windows else ():
        for kind in KINDS:
            row = regear.eval(place, against=arguments.model, kv=kind, windows=arguments.windows, **plain)
            size, ratio = row["kv_bytes_by_kind"][kind], row["against"]
            bytes_.append({"model": name, "kv": kind, "bytes": size, "ratio": ratio["ratio"], "ci": ratio["ratio_ci"]})
    bytes_.sort(key=lambda row: -row["bytes"])
    cells = [[r["model"], r["kv"], f"{r['bytes']:,.0f}", "{:.4f}".format(r["ratio"])] for r in bytes_]
    table += "\n" + grid(["model", "cache", "bytes a token", "ratio"], cells) if cells else ""

    tasks = {}
    for name in found if arguments.items else ():
        sides = {"before": arguments.work / name, "after": arguments.work / f"{name}-healed"}
        for side, place in sides.items():
            row = regear.eval(
                place, against=arguments.model, tasks=["mmlu"], items=arguments.items, windows=1, **plain
            )["tasks"]["mmlu"]
            tasks.setdefault(name, {})[side] = row
            table += f"\n{name} {side}: gold log-probability {row['gold_logprob']:.4f} nats a byte, change from the "
            table += "original {:+.4f} ({:+.4f} to {:+.4f})".format(*row["change"]["gold_logprob"])
    finish("heal_quality", arguments, {"forms": found, "caches": bytes_, "tasks": tasks}, table)


if __name__ == "__main__":
    main()
