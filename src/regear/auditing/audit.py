"""`regear audit`: whom a change hurts, slice by slice."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from regear.auditing import compare as comparing
from regear.auditing import gates as gating
from regear.auditing.card import check_card, write_card
from regear.auditing.inputs import Inputs, few, kind_of, of_lists, of_models, of_tables
from regear.auditing.places import check_places
from regear.auditing.reversals import reversals
from regear.auditing.slices import discover
from regear.auditing.tables import joined
from regear.auditing.units import Units, coded
from regear.auditing.unmeasured import not_measured
from regear.core.errors import RecipeError
from regear.core.machine import versions
from regear.core.recipe import closest
from regear.core.run import Progress, silent

MODELS = ("text", "tasks", "windows", "items", "generate", "before_dtype", "after_dtype", "before_kv", "after_kv")
OF_LISTS = ("relevance", "catalogue", "interactions", "provider")
USUAL = {"top": 10, "exposure_margin": 0.2}  # what has a default that is something


def audit(
    before: str | Path,
    after: str | Path,
    *,
    metric: Sequence[str] = (),
    by: Sequence[str] = (),
    depth: int = 1,
    margin: Mapping[str, str | float] | None = None,
    attributes: str | Path | None = None,
    weight: str | None = None,
    search: int = 3,
    relevance: str | Path | None = None,
    catalogue: str | Path | None = None,
    interactions: str | Path | None = None,
    provider: str | None = None,
    top: int = 10,
    exposure_margin: float = 0.2,
    text: Sequence[str | Path] = (),
    tasks: Sequence[str] = (),
    windows: int | None = None,
    items: int | None = None,
    generate: int = 0,
    before_dtype: str | None = None,
    after_dtype: str | None = None,
    before_kv: str | None = None,
    after_kv: str | None = None,
    gates: str | Path | None = None,
    ledger: str | Path | None = None,
    report: str | Path | None = None,
    card: bool = False,
    suppress: int = 10,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compare the same units before and after a change, in every slice named, and search for slices nobody named.

    Args:
        before: a table of units or of lists (JSONL, parquet, CSV), or a model.
        after: the same units after the change, or the changed model.
        metric: metric columns; `a/b` is a ratio of sums. For models and lists: some of theirs.
        by: dimensions; `a*b` is their crossing. By default every attribute of few values.
        depth: also cross the dimensions of `by` with each other, up to so many at once.
        margin: per metric, the loss that still counts as none: a number, or `2%` of the mean before.
        attributes: a table of attributes kept apart, joined by id (of lists: by user); all of them are sensitive.
        weight: a column that says what each unit counts for.
        search: look for slices of up to so many attributes that nobody named; 0 does not.
        relevance: of lists, what users wanted: `user`, `item`, optional `gain`.
        catalogue: of lists, `item` and attribute columns, such as `provider`.
        interactions: of lists, who took what before: popularity bands.
        provider: the column of the catalogue whose values may lose visibility.
        top: entries of a list that count.
        exposure_margin: loss of visibility that counts as none, a share of that before.
        text: of models, files or `builtin`; further keys of JSONL rows are attributes.
        tasks: of models, multiple-choice tasks.
        windows: at most so many windows.
        items: at most so many questions of each task.
        generate: have both models answer so many prompts.
        before_dtype, after_dtype, before_kv, after_kv: of models, precisions and cache kinds.
        gates: a YAML file of what the verdicts must be.
        ledger: a file to record this audit in.
        report: a folder for the reports.
        card: write what was found into the card of the model after.
        suppress: in exported reports, slices below so many units are withheld.
        level: of all intervals together.
        resamples: bootstrap draws.
        seed: of the draws and of the search's split.
        device: `auto`, `cpu` or `cuda`, for models.
        progress: told a stage, the step done, and how many there are.

    Returns the JSON object that `regear audit --json` prints.

    Raises:
        RecipeError, DataError, CheckpointError: what is missing, unknown or cannot be paired, in one line.
    """
    given = dict(locals())
    kind = kind_of(before, after)
    _refuse_foreign(kind, given)
    check_places(ledger=ledger, report=report)
    required = gating.load(gates) if gates is not None else None
    draws: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    inputs = _inputs(kind, given, draws)
    asked = by or few(inputs)
    _refuse_unknown(by, inputs)
    crossings = comparing.crossings([name for name in asked if _of_units(name, inputs)], depth)
    names = list(dict.fromkeys([*(name for crossing in crossings for name in crossing), *inputs.dimensions]))
    if required is not None:
        dimensions = [*names, *(inputs.exposure or {}).get("dimensions", {})]
        known = [m.name for m in inputs.metrics] + (["visibility"] if inputs.exposure else [])
        gating.check(required, dimensions, known, sensitive=bool(inputs.sensitive))
    both = joined(inputs.before, inputs.after, inputs.metrics, names, attributes=inputs.attributes, weight=weight)
    with coded(both, inputs.metrics, names, sensitive=inputs.sensitive, seed=seed) as units:
        allowed = comparing.margins(units, {**inputs.margins, **(margin or {})})
        progress("slices", 0, 2)
        found = comparing.compare(units, crossings, allowed, **draws)
        progress("search", 1, 2)
        searched = _searched(units, inputs, allowed, search, draws) if search else []
        progress("search", 2, 2)
    found = [verdict for verdict in found if inputs.has(verdict.metric, list(verdict.slice))]
    registered = {name for crossing in crossings for name in crossing}
    result: dict[str, Any] = {
        "kind": kind,
        "before": str(before),
        "after": str(after),
        "inputs": dict(inputs.digests),
        "units": units.count,
        "clusters": units.clusters,
        **draws,
        "metrics": {m.name: _described(m.name, m.lower, allowed, inputs, margin or {}) for m in inputs.metrics},
        "dimensions": [
            {"name": d.name, "values": len(d.values), "sensitive": d.sensitive, "registered": d.name in registered}
            for d in units.dimensions
        ],
        "overall": [verdict.as_dict() for verdict in found if not verdict.slice],
        "verdicts": [verdict.as_dict() for verdict in found if verdict.slice],
        "search": search,
        "discovered": searched,
        "reversals": reversals(found),
        "exposure": inputs.exposure,
        **inputs.further,
        "gate": "none",
        "gates": [],
        "versions": versions(),
    }
    result["not_measured"] = [*inputs.not_measured, *not_measured(result)]
    if required is not None:
        result |= gating.judge(result, required, date.today())
    _publish(result, report=report, ledger=ledger, card=card, k=suppress)
    return result


def _refuse_foreign(kind: str, given: Mapping[str, Any]) -> None:
    """An option that means nothing for this kind is a mistake, not a no-op."""
    groups = {"lists": (*OF_LISTS, *USUAL), "models": MODELS, "tables": ("weight",)}
    for owner, names in groups.items():
        for name in names:
            if owner != kind and given[name] and given[name] != USUAL.get(name):
                raise RecipeError(f"found {name} with {kind}; it belongs to an audit of {owner}")
    if given["attributes"] and kind == "models":
        raise RecipeError("found attributes with models; give them as further keys of the rows of the text")
    if given["card"]:
        if kind != "models":
            raise RecipeError(f"found card with {kind}; only a model has a card")
        check_card(Path(given["after"]))


def _refuse_unknown(by: Sequence[str], inputs: Inputs) -> None:
    """Of lists and models the tables of units hold scores, which are no attributes."""
    goods = (inputs.exposure or {}).get("dimensions", {})
    known = list(dict.fromkeys([*inputs.dimensions, *inputs.sensitive, *goods]))
    for name in dict.fromkeys(part for crossing in by for part in crossing.split("*")):
        if inputs.kind != "tables" and name not in known:
            raise RecipeError(f"no attribute {name!r}{closest(name, known)}; found {', '.join(known) or 'none'}")


def _inputs(kind: str, given: Mapping[str, Any], draws: Mapping[str, Any]) -> Inputs:
    def some(*names: str) -> dict[str, Any]:
        return {name: given[name] for name in names}

    before, after = given["before"], given["after"]
    if kind == "tables":
        return of_tables(before, after, **some("metric", "by", "attributes", "weight"))
    if kind == "lists":
        return of_lists(
            before, after, **some("metric", "by", *OF_LISTS, "attributes", "top", "exposure_margin"), **draws
        )
    return of_models(before, after, **some("metric", *MODELS, "device", "progress"))


def _of_units(name: str, inputs: Inputs) -> bool:
    """Whether a dimension is one of units; those of items have their own table."""
    goods = (inputs.exposure or {}).get("dimensions", {})
    return not (name in goods and name not in inputs.dimensions)


def _described(
    name: str, lower: bool, margins: Mapping[str, float], inputs: Inputs, given: Mapping[str, Any]
) -> dict[str, Any]:
    origin = "given" if name in given else "usual" if name in inputs.margins else "spread"
    found: dict[str, Any] = {"lower_is_better": lower, "margin": margins[name], "margin_from": origin}
    return found | ({"unit": inputs.measured_in[name]} if name in inputs.measured_in else {})


def _searched(units: Units, inputs: Inputs, margins: Mapping[str, float], depth: int, draws: Any) -> list[Any]:
    found = []
    for index, metric in enumerate(inputs.metrics):
        rows = discover(units, index, margin=margins[metric.name], depth=depth, **draws)
        found += [row for row in rows if inputs.has(metric.name, list(row["slice"]))]
    return found


def _publish(result: dict[str, Any], *, report: Any, ledger: Any, card: bool, k: int) -> None:
    from regear.auditing import ledger as trail
    from regear.auditing.report import write

    if ledger is not None:
        result["ledger"] = {"path": str(ledger), "head": trail.append_audit(ledger, result, k=k)}
    if report is not None:
        result["report"] = str(report)
        write(result, Path(report), k=k, trail=ledger)
    if card:
        write_card(result, Path(result["after"]), k=k)
