"""A healing as a card for the checkpoint and a report for the run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regear.core import card
from regear.core.files import write_json
from regear.core.report import Plot, Report, Section, Series
from regear.healing.measured import regained
from regear.models.adapter import base_of

SIDES = ("teacher", "before", "after")
TITLES = {"evaluation": "Text like the training text", "elsewhere": "Text of a kind never trained on"}


def sections(kept: dict[str, Any]) -> list[Section]:
    """The tables that card and report share."""
    measured = kept["measured"]
    found = [_text(TITLES[use], text) for use, text in measured["texts"].items()]
    rows = [
        [key, *(measured["generation"][side][key] for side in SIDES)] for key in ("agreement", "repetition", "length")
    ]
    prompts = measured["generation"]["teacher"]["prompts"]
    note = (
        f"Greedy continuations of {prompts} prompts: the share of the teacher's tokens before the first that differs, "
        "the share of 4-grams already written, tokens until the end of text or the limit."
    )
    found.append(Section("What it writes", ["", *SIDES], rows, note))
    for name, task in measured["tasks"].items():
        keys = ("items", "chance", "accuracy", "accuracy_per_byte", "gold_logprob")
        won = task["won"]["gold_logprob"]
        note = f"Gold log-probability won back {won[0]:+.4f} (95 % {won[1]:+.4f} to {won[2]:+.4f}) nats a byte."
        found.append(Section(name, ["", *SIDES], [[key, *(task[side][key] for side in SIDES)] for key in keys], note))
    steps = [[s["stage"] + 1, s["objective"], s["steps"], s["tokens"], s["parameters"]] for s in kept["stages"]]
    found.append(Section("Training", ["stage", "objective", "steps", "tokens", "trained parameters"], steps))
    return found


def _text(title: str, text: dict[str, Any]) -> Section:
    rows: list[list[Any]] = [["all", *_ratios(text["ratio"])]]
    rows += [[kind, *_ratios(pair)] for kind, pair in text["by_kind"].items()]
    perplexity, kl, share = text["perplexity"], text["kl"], regained(text)
    won = f" {100 * share:.0f} % of the excess log-perplexity was won back." if share is not None else ""
    note = (
        f"Perplexity {perplexity['teacher']:.3f} (teacher), {perplexity['before']:.3f} before, "
        f"{perplexity['after']:.3f} after; KL from the teacher {kl['before']:.4f} before, {kl['after']:.4f} "
        f"after, nats a token; {text['windows']} windows, {text['tokens']:,} scored tokens; intervals are paired "
        f"bootstraps over windows.{won}"
    )
    header = ["perplexity over the teacher's", "before", "95 % interval", "after", "95 % interval"]
    return Section(title, header, rows, note)


def _ratios(pair: dict[str, Sequence[float]]) -> list[Any]:
    return [
        cell for side in ("before", "after") for cell in (pair[side][0], f"{pair[side][1]:.3f} to {pair[side][2]:.3f}")
    ]


def card_text(source: Path, teacher: Path, kept: dict[str, Any]) -> str:
    """The README of the output."""
    tokens = sum(stage["tokens"] for stage in kept["stages"])
    lead = (
        f"{kept['source']}, trained by regear for {tokens:,} tokens with {kept['taught_by']} as its teacher. It loads "
        "as its source did. `regear.json` records digests, versions, the recipe and every figure below."
    )
    return card.render(
        f"{kept['source'].split('/')[-1]}, healed",
        lead,
        sections(kept),
        source=card.source_metadata(base_of(source)),
        base=kept["taught_by"],
        tags=["regear", "heal"],
    )


def write_report(directory: Path, kept: dict[str, Any], found: dict[str, Any]) -> None:
    """`report.json` and `report.html` of the run, with the curves of training."""
    write_json(directory / "report.json", found)
    lead = f"Output {found['output']}; {found['seconds']:.0f} s, peak memory {found['peak_rss_bytes'] / 2**30:.2f} GiB."
    page = Report(f"Healing of {kept['source']}", sections(kept), curves(directory), lead)
    page.write(directory / "report.html")


def steps_of(directory: Path) -> list[dict[str, Any]]:
    """The metrics of every step of a run, in order; steps that a restart did again count once."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["event"] == "step":
            rows[row["stage"], row["step"]] = row
    return [rows[key] for key in sorted(rows)]


def curves(directory: Path) -> list[Plot]:
    """Loss and held-out figures against tokens."""
    ordered = steps_of(directory)
    names = {"loss": "Loss while training", "held_out_perplexity": "Held-out perplexity", "held_out_kl": "Held-out KL"}
    plots = []
    for name, title in names.items():
        lines = []
        for stage in sorted({row["stage"] for row in ordered}):
            points = [(row["tokens"], row[name]) for row in ordered if row["stage"] == stage and name in row]
            if points:
                lines.append(Series(f"stage {stage + 1}", *map(list, zip(*points, strict=True))))
        if lines:
            plots.append(Plot(title, lines, "tokens", title.lower()))
    return plots
