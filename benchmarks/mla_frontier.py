"""Quality against cache bytes: the original and MLA checkpoints, each with its cache in 16, 8 and 4 bits.

Every row is paired with the original in full precision on the same windows. Correctness gate: a 16-bit cache must give
what no cache gives (KL below 1e-3), for the original and for every checkpoint, or nothing is measured. Who wins is
computed: at the bytes of every row, the best row of each checkpoint that costs no more, paired with the original's.
More rows: `--add LABEL=DIRECTORY` for any checkpoint with the same tokenizer, strict exports included.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import ROOT, finish, parser

import regear
from regear.cli.output import grid
from regear.core.report import Plot, Report, Section, Series
from regear.core.stats import perplexity_ratio
from regear.measure.perplexity import Scores, score, score_pair
from regear.measure.speed import cache_bytes
from regear.models.builtin import resolve
from regear.models.kvcache import KINDS
from regear.models.load import load_model, load_tokenizer
from regear.tasks.text import digest_of, read_documents, spread, windows_of

GATE = 1e-3
ORIGINAL = "original"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--ratios", default="3/4,1/2,1/3", help="cache ratios to convert to; empty for none")
    options.add_argument("--add", action="append", default=[], metavar="LABEL=DIRECTORY", help="another checkpoint")
    options.add_argument("--windows", type=int, default=64)
    options.add_argument("--page", type=Path, help="write the plot and the tables here, as one HTML file")
    arguments = options.parse_args()

    windows = spread(windows_of(read_documents(["builtin"], "evaluation")), arguments.windows)
    with tempfile.TemporaryDirectory() as folder:
        places = {ORIGINAL: resolve(arguments.model), **converted(arguments, Path(folder)), **added(arguments.add)}
        rows, scores = measure(places, windows)
    wins = winners(rows, scores, arguments.seed)
    for row, found in zip(rows, scores, strict=True):
        row |= against(found, scores[0], arguments.seed)
    results = {
        "windows": len(windows),
        "text_sha256": digest_of(windows),
        "tokens": sum(scores[0].tokens),
        "rows": rows,
        "at_equal_bytes": wins,
        "unbeaten": [f"{row['label']}, {row['kv']}" for row in rows if row["kv"] and not beaten(row, rows)],
    }
    page = report(results)
    page.write(arguments.page or ROOT / "benchmarks" / "results" / "mla_frontier.html")
    finish("mla_frontier", arguments, results, text_of(results))


def converted(arguments: Any, folder: Path) -> dict[str, Path]:
    """One exact-RoPE conversion a ratio, by the defaults."""
    places = {}
    for number, ratio in enumerate(arguments.ratios.split(",") if arguments.ratios else ()):
        places[f"mla {ratio}"] = folder / str(number)
        changes = (f"convert.kv_ratio={ratio}", "evaluation.tokens=1000")
        regear.convert(arguments.model, places[f"mla {ratio}"], *changes, to="mla")
    return places


def added(words: list[str]) -> dict[str, Path]:
    """Checkpoints given by label and directory."""
    pairs = [word.partition("=") for word in words]
    if wrong := [label for label, sign, _ in pairs if not sign]:
        sys.exit(f"found --add {wrong[0]}; wanted LABEL=DIRECTORY")
    return {label: resolve(place) for label, _, place in pairs}


def measure(places: dict[str, Path], windows: list[Any]) -> tuple[list[dict[str, Any]], list[Scores]]:
    """Scores of every checkpoint with every cache; the first is the original without one, the reference of every KL."""
    tokenizer, original = load_tokenizer(places[ORIGINAL]), load_model(places[ORIGINAL])
    rows: list[dict[str, Any]] = [{"label": ORIGINAL, "kv": None, "bytes_per_token": None}]
    scores = [score(original, tokenizer, windows)]
    for label, place in places.items():
        model = original if label == ORIGINAL else load_model(place)
        gate(model, tokenizer, windows[:1], label)
        size = cache_bytes(model)
        for kind in KINDS:
            rows.append({"label": label, "kv": kind, "bytes_per_token": size[kind]})
            scores.append(score_pair(model, original, tokenizer, windows, (kind, None))[0])
            print(f"{label}, {kind}: {size[kind]:,.0f} bytes, perplexity {scores[-1].perplexity:.3f}", file=sys.stderr)
    return rows, scores


def gate(model: Any, tokenizer: Any, windows: list[Any], label: str) -> None:
    found = score_pair(model, model, tokenizer, windows, ("bf16", None))[0].mean_kl
    if not found < GATE:
        sys.exit(f"{label}: a 16-bit cache differs from no cache: KL {found}")


def against(found: Scores, original: Scores, seed: int) -> dict[str, Any]:
    ratio = perplexity_ratio(found.nll, original.nll, original.tokens, seed=seed)
    return {
        "perplexity": found.perplexity,
        "ratio": ratio.value,
        "ratio_ci": [ratio.low, ratio.high],
        "kl": found.mean_kl if found.kl else 0.0,
        "nll_by_window": found.nll,
    }


def winners(rows: list[dict[str, Any]], scores: list[Scores], seed: int) -> list[dict[str, Any]]:
    """At the bytes of each row: the best row of every checkpoint that costs no more, and who wins.

    `winner` is a checkpoint's label where the interval of its perplexity over the original's excludes one in its
    favour or the original has no row so small; `original` likewise; `undecided` where the interval holds one.
    """
    found = []
    for budget in sorted({row["bytes_per_token"] for row in rows if row["kv"]}, reverse=True):
        best: dict[str, int] = {}
        for i, row in enumerate(rows):
            fits = row["kv"] and row["bytes_per_token"] <= budget
            if fits and (
                row["label"] not in best or scores[i].log_perplexity < scores[best[row["label"]]].log_perplexity
            ):
                best[row["label"]] = i
        entry: dict[str, Any] = {
            "bytes_per_token": budget,
            "best": {name: name_of(rows[i]) for name, i in best.items()},
        }
        others = [i for name, i in best.items() if name != ORIGINAL]
        if not others:
            entry["winner"] = ORIGINAL
        else:
            rival = min(others, key=lambda i: scores[i].log_perplexity)
            entry |= {"rival": name_of(rows[rival]), "winner": rows[rival]["label"]}
            if ORIGINAL in best:
                base = scores[best[ORIGINAL]]
                ratio = perplexity_ratio(scores[rival].nll, base.nll, base.tokens, seed=seed)
                entry |= {"rival_over_original": ratio.value, "ci": [ratio.low, ratio.high]}
                entry["winner"] = rows[rival]["label"] if ratio.high < 1 else ORIGINAL if ratio.low > 1 else "undecided"
        found.append(entry)
    return found


def name_of(row: dict[str, Any]) -> str:
    return f"{row['label']}, {row['kv']}"


def beaten(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether another row costs no more and predicts no worse, and one of the two is better."""
    mine = (row["bytes_per_token"], row["perplexity"])
    return any(
        other["kv"]
        and (theirs := (other["bytes_per_token"], other["perplexity"])) != mine
        and theirs[0] <= mine[0]
        and theirs[1] <= mine[1]
        for other in rows
    )


def report(results: dict[str, Any]) -> Report:
    """The frontier drawn, a line a number type, and the tables."""
    rows = [row for row in results["rows"] if row["kv"]]
    lines = []
    for kind in KINDS:
        line = sorted((r for r in rows if r["kv"] == kind), key=lambda r: r["bytes_per_token"])
        low, high = ([r["ratio_ci"][i] for r in line] for i in (0, 1))
        lines.append(Series(kind, [r["bytes_per_token"] for r in line], [r["ratio"] for r in line], low, high))
    marks = [(r["bytes_per_token"], r["ratio"], r["label"]) for r in rows if r["label"] == ORIGINAL]
    plot = Plot("Perplexity against cache bytes", lines, "cache bytes a token", "perplexity / original", False, marks)
    body = [[r["label"], r["kv"], r["bytes_per_token"], r["ratio"], ci(r["ratio_ci"]), r["kl"]] for r in rows]
    header = ["checkpoint", "cache", "bytes a token", "ratio", "95 % interval", "KL"]
    wins = [
        [w["bytes_per_token"], w["best"].get(ORIGINAL), w.get("rival"), w.get("rival_over_original"), w["winner"]]
        for w in results["at_equal_bytes"]
    ]
    names = ["bytes a token", "original's best", "rival's best", "rival / original", "winner"]
    note = f"{results['windows']} windows, {results['tokens']:,} tokens. Unbeaten: {'; '.join(results['unbeaten'])}."
    sections = [Section("Every row", header, body, note), Section("Who wins at these bytes or fewer", names, wins)]
    return Report("Cache bytes: fewer numbers or smaller numbers", sections, [plot])


def ci(bounds: list[float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def text_of(results: dict[str, Any]) -> str:
    rows = []
    for r in results["rows"]:
        size = f"{r['bytes_per_token']:,.0f}" if r["kv"] else "–"
        rows.append([r["label"], r["kv"] or "–", size, f"{r['ratio']:.4f}", ci(r["ratio_ci"]), f"{r['kl']:.5f}"])
    table = grid(["checkpoint", "cache", "bytes a token", "ratio", "95 % interval", "KL"], rows)
    lines = []
    for w in results["at_equal_bytes"]:
        line = f"up to {w['bytes_per_token']:,.0f} bytes: {w['winner']}"
        if "rival_over_original" in w:
            line += f" ({w['rival']} over {w['best'][ORIGINAL]}: {w['rival_over_original']:.4f}, {ci(w['ci'])})"
        elif ORIGINAL not in w["best"]:
            line += f" ({w['rival']}; the original has no cache so small)"
        lines.append(line)
    return "\n".join([table, *lines, f"unbeaten: {'; '.join(results['unbeaten'])}"])


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
