"""From scores of units to the two tables of an audit, and what their columns mean.

Attributes know nothing of the models, so that no slice is chosen by a score: windows that a model found hard before
would look better after any change (regression to the mean). `complexity` is how far zlib shrinks a text instead.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from regear.auditing.declines import OPENINGS, declines
from regear.auditing.tables import LOWER, Metric
from regear.core.errors import DataError
from regear.tasks.choice import ChoiceItem
from regear.tasks.passages import Passage, script_of

Row = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]  # attributes, columns before, columns after
BANDS = (256, 512, 1024, 2000)  # bytes
VALUES = 200  # that an attribute may have to be sliced by, as in the tables
KINDS = {"window": "windows of text", "question": "questions", "prompt": "prompts"}


@dataclass(frozen=True)
class Measure:
    """A metric of model units: the kind of unit that has it, its unit of measurement, and what it needs beside it."""

    metric: Metric
    kind: str
    unit: str


MEASURES = [
    Measure(Metric("bits_per_byte", "bits" + LOWER, "bytes", lower=True), "window", "bits per byte"),
    Measure(Metric("kl_per_byte", "kl_bits" + LOWER, "bytes", lower=True), "window", "bits per byte"),
    Measure(Metric("tokens_per_byte", "tokens" + LOWER, "bytes", lower=True), "window", "tokens per byte"),
    Measure(Metric("gold_logprob", "gold_logprob", None, lower=False), "question", "nats per byte of the right option"),
    Measure(Metric("accuracy", "accuracy", None, lower=False), "question", "share of questions"),
    Measure(Metric("right_to_wrong", "right_to_wrong" + LOWER, None, lower=True), "question", "share of questions"),
    Measure(Metric("agreement", "agreement", None, lower=False), "prompt", "share of the text before it differs"),
    Measure(
        Metric("length_change", "length_change" + LOWER, None, lower=True), "prompt", "share of the characters before"
    ),
    Measure(Metric("repetition", "repetition" + LOWER, None, lower=True), "prompt", "share of 4-grams written before"),
    Measure(Metric("refusal", "refusal" + LOWER, None, lower=True), "prompt", "share of answers"),
    Measure(Metric("seconds_per_token", "seconds" + LOWER, "written", lower=True), "prompt", "seconds, one at a time"),
    Measure(
        Metric("cost", "prompt_tokens" + LOWER, "prompt_bytes", lower=True),
        "prompt",
        "prompt tokens per byte",
    ),
]


@dataclass(frozen=True)
class ModelTables:
    """Unit tables before and after (same ids, in the same order), and what they hold.

    `metrics` of every unit kind; `margins` of those that are the same for every unit before, and so have no spread to
    take a margin from; `units` and `kinds` say each metric's unit of measurement and its kind of unit (column
    `unit`); `dimensions` are the attributes worth slicing by and `applies` the kinds that have them; `chance` is the
    accuracy of blind guessing; `inputs` are digests; `not_measured` says what is missing and why.
    """

    before: pl.DataFrame
    after: pl.DataFrame
    metrics: list[Metric]
    margins: dict[str, float]
    units: dict[str, str]
    kinds: dict[str, str]
    dimensions: list[str]
    applies: dict[str, list[str]]
    chance: float | None
    inputs: dict[str, str]
    not_measured: list[str] = field(default_factory=list)

    def measures(self, metric: str, dimensions: Sequence[str]) -> bool:
        """Whether units of this metric have all these attributes: other slices hold no unit, and need no verdict."""
        return all(self.kinds[metric] in self.applies[name] for name in dimensions)


def window_rows(passage: Passage, scores: dict[str, Any]) -> Row:
    """A window's row on both sides."""
    text = passage.window.text
    about = {"complexity": _complexity(text), "length": _band(passage.window.bytes)} | dict(passage.attributes)
    sides = [
        {"bits:lower": side["bits"], "bytes": side["bytes"], "tokens:lower": side["tokens"], "kl_bits:lower": kl}
        for side, kl in ((scores["before"], 0.0), (scores["after"], scores["kl_bits"]))
    ]
    if scores["kl_bits"] is None:
        sides[0]["kl_bits:lower"] = None
    return {"id": passage.id, "cluster": passage.cluster, "unit": "window"} | about, sides[0], sides[1]


def question_rows(task: str, item: ChoiceItem, before: dict[str, Any], after: dict[str, Any]) -> Row:
    """A question's row on both sides."""
    lost = int(before["correct"] and not after["correct"])
    sides = [
        {"gold_logprob": side["gold_logprob"], "accuracy": side["correct"], "right_to_wrong:lower": flipped}
        for side, flipped in ((before, 0), (after, lost))
    ]
    about = _about(task, item) | {"chance": 1 / len(item.options)}
    name = f"{task}/{item.id}"
    return {"id": name, "cluster": f"{task}/{item.cluster or item.id}", "unit": "question"} | about, sides[0], sides[1]


def prompt_rows(prompt: Passage | tuple[str, ChoiceItem], scores: dict[str, Any]) -> Row:
    """A prompt's row on both sides; text that is continued cannot be refused."""
    before, after = scores["before"], scores["after"]
    if isinstance(prompt, Passage):
        name, cluster, about, asked = prompt.id, prompt.cluster, dict(prompt.attributes), None
    else:
        task, item = prompt
        name, cluster = f"{task}/{item.id}", f"{task}/{item.cluster or item.id}"
        about, asked = _about(task, item), item
    change = abs(len(after["text"]) - len(before["text"])) / max(1, len(before["text"]))
    size = len((asked.question if asked else prompt.window.text).encode())  # type: ignore[union-attr]
    sides = [
        {
            "agreement": agreed,
            "length_change:lower": moved,
            "repetition:lower": side["repetition"],
            "refusal:lower": None if asked is None else _number(declines(side["text"], about.get("language"))),
            "seconds:lower": side["seconds"],
            "written": side["written"],
            "prompt_tokens:lower": side["prompt_tokens"],
            "prompt_bytes": size,
        }
        for side, agreed, moved in ((before, 1.0, 0.0), (after, scores["agreement"], change))
    ]
    return {"id": f"prompt/{name}", "cluster": cluster, "unit": "prompt"} | about, sides[0], sides[1]


def tabulate(rows: Sequence[Row], inputs: dict[str, str], *, same_tokenizer: bool) -> ModelTables:
    """Both tables of these rows, with the metrics that they hold."""
    applies, many = _dimensions([row[0] for row in rows])
    before, after = _frame(rows, 1), _frame(rows, 2)
    seen = {row[0]["unit"] for row in rows}
    kept = [m for m in MEASURES if m.kind in seen and (same_tokenizer is False or m.metric.name not in _TOKENS)]
    kept = [m for m in kept if after[m.metric.top].null_count() < len(rows)]
    missing = [f"{m.metric.name}: {_why(m, seen, same_tokenizer)}" for m in MEASURES if m not in kept]
    unlisted = {row[0].get("language") for row in rows if row[0]["unit"] == "prompt"} - {None, *OPENINGS}
    if unlisted:
        missing.append(f"refusal in {', '.join(sorted(map(str, unlisted)))}: no openings are listed")
    missing += many
    chances = [row[0]["chance"] for row in rows if "chance" in row[0]]
    return ModelTables(
        before,
        after,
        metrics=[m.metric for m in kept],
        margins=_margins(before, [m.metric.name for m in kept]),
        units={m.metric.name: m.unit for m in kept},
        kinds={m.metric.name: m.kind for m in kept},
        dimensions=list(applies),
        applies=applies,
        chance=sum(chances) / len(chances) if chances else None,
        inputs=inputs,
        not_measured=missing,
    )


_TOKENS = ("tokens_per_byte", "cost")
_FIXED = ("id", "cluster", "unit", "chance")


def _margins(before: pl.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """KL: 2 % of the bits per byte before, since it is the bits that a text written by the model before would cost
    more. The others are plain choices, which a margin that is given replaces."""
    fixed = {"right_to_wrong": 0.05, "agreement": 0.5, "length_change": 0.25}
    found = {name: value for name, value in fixed.items() if name in names}
    if "kl_per_byte" in names:
        bits, size = (sum(before[name].drop_nulls().to_list()) for name in ("bits:lower", "bytes"))
        found["kl_per_byte"] = 0.02 * bits / size
    return found


def _why(measure: Measure, seen: set[str], same_tokenizer: bool) -> str:
    if measure.kind not in seen:
        return f"no {KINDS[measure.kind]} were given"
    if measure.metric.name in _TOKENS:
        return "the tokenizers are the same, so it cannot change"
    if measure.metric.name == "kl_per_byte":
        return "the tokenizers differ"
    return "no unit has it"


def _dimensions(attributes: Sequence[dict[str, Any]]) -> tuple[dict[str, list[str]], list[str]]:
    """Attributes that differ among the units of some kind, with those kinds; and what is said of the others."""
    values: dict[str, dict[str, set[Any]]] = {}
    for row in attributes:
        for name, value in row.items():
            if name not in _FIXED:
                values.setdefault(name, {}).setdefault(row["unit"], set()).add(value)
    found, many = {}, []
    for name, kinds in values.items():
        texts = {value for some in kinds.values() for value in some if isinstance(value, str)}
        if len(texts) > VALUES:
            many.append(f"slices of {name}: it has {len(texts):,} values; group them first")
        elif differing := [kind for kind, some in kinds.items() if len(some) > 1]:
            found[name] = differing
    return found, many


def _frame(rows: Sequence[Row], side: Literal[1, 2]) -> pl.DataFrame:
    """Attributes and one side's columns; an attribute of mixed types is read as text."""
    columns = {name for row in rows for name in row[1]}
    for name in {name for row in rows for name in row[0]}:
        if name in columns:
            raise DataError(f"the texts have an attribute {name!r}, which is what scores are called here; rename it")
        if len({type(row[0][name]) for row in rows if row[0].get(name) is not None}) > 1:
            for row in rows:
                if row[0].get(name) is not None:
                    row[0][name] = str(row[0][name])
    return pl.DataFrame([row[0] | row[side] for row in rows], infer_schema_length=None)


def _about(task: str, item: ChoiceItem) -> dict[str, Any]:
    script = script_of(item.question + " ".join(item.options))
    return {"task": task, "script": script, "question_length": len(item.question)} | dict(item.attributes)


def _complexity(text: str) -> float:
    """Bytes after zlib over bytes before, of one window."""
    raw = text.encode()
    return round(len(zlib.compress(raw, 9)) / len(raw), 3)


def _band(size: int) -> str:
    """`≥ 2000 bytes`, or the first bound above."""
    above = next((bound for bound in BANDS if size < bound), None)
    return f"≥ {BANDS[-1]} bytes" if above is None else f"< {above} bytes"


def _number(flag: bool | None) -> int | None:
    return None if flag is None else int(flag)
