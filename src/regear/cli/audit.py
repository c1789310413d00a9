"""`regear audit`: whom a change hurts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regear.cli.output import Device, Json, Quiet, Seed, grid, show
from regear.cli.progress import Bars
from regear.core.errors import RecipeError

ORDER = {"harm": 0, "undetermined": 1, "no_harm": 2}
Words = list[str]


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def audit(
        before: Annotated[str | None, typer.Argument(help="Table, lists or model before the change.")] = None,
        after: Annotated[str | None, typer.Argument(help="The same units, or the model, after it.")] = None,
        metric: Annotated[Words, typer.Option(help="Metric (repeatable, or a,b); a/b: ratio of sums.")] = [],  # noqa: B006
        by: Annotated[Words, typer.Option(help="Dimension (repeatable, or a,b); a*b is their crossing.")] = [],  # noqa: B006
        depth: Annotated[int, typer.Option(min=1, max=3, help="Cross the dimensions, so many at once.")] = 1,
        margin: Annotated[Words, typer.Option(help="NAME=0.02 or NAME=2%: the loss that counts as none.")] = [],  # noqa: B006
        attributes: Annotated[Path | None, typer.Option(help="Sensitive attributes kept apart, joined by id.")] = None,
        weight: Annotated[str | None, typer.Option(help="Tables: column that says what each unit counts for.")] = None,
        search: Annotated[
            int, typer.Option(min=0, max=3, help="Look for slices of up to so many attributes; 0: no.")
        ] = 3,
        relevance: Annotated[Path | None, typer.Option(help="Lists: what users wanted (user, item, gain).")] = None,
        catalogue: Annotated[Path | None, typer.Option(help="Lists: items and their attributes.")] = None,
        interactions: Annotated[Path | None, typer.Option(help="Lists: who took what, for popularity.")] = None,
        provider: Annotated[str | None, typer.Option(help="Lists: the catalogue's column of providers.")] = None,
        top: Annotated[int, typer.Option(min=1, help="Lists: entries that count.")] = 10,
        exposure_margin: Annotated[float, typer.Option(help="Lists: share of visibility whose loss is none.")] = 0.2,
        text: Annotated[Words, typer.Option(help="Models: text or JSONL file (repeatable), or `builtin`.")] = [],  # noqa: B006
        tasks: Annotated[Words, typer.Option(help="Models: multiple-choice task (repeatable).")] = [],  # noqa: B006
        windows: Annotated[int | None, typer.Option(help="Models: at most so many windows.")] = None,
        items: Annotated[int | None, typer.Option(help="Models: at most so many questions of each task.")] = None,
        generate: Annotated[int, typer.Option(min=0, help="Models: have both answer so many prompts.")] = 0,
        before_dtype: Annotated[str | None, typer.Option(help="Models: precision before, such as int8.")] = None,
        after_dtype: Annotated[str | None, typer.Option(help="Models: precision after.")] = None,
        before_kv: Annotated[str | None, typer.Option(help="Models: cache before: bf16, int8 or int4.")] = None,
        after_kv: Annotated[str | None, typer.Option(help="Models: cache after.")] = None,
        gates: Annotated[Path | None, typer.Option(help="YAML: what the verdicts must be; exit 1 if not.")] = None,
        ledger: Annotated[Path | None, typer.Option(help="Record this audit in a hash-chained file.")] = None,
        report: Annotated[Path | None, typer.Option(help="Folder for the reports.")] = None,
        card: Annotated[bool, typer.Option("--card", help="Models: write it into the card of AFTER.")] = False,
        suppress: Annotated[int, typer.Option(min=1, help="Withhold slices below so many units in reports.")] = 10,
        level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Level of all intervals together.")] = 0.95,
        resamples: Annotated[int, typer.Option(min=200, help="Bootstrap draws.")] = 2000,
        questions: Annotated[bool, typer.Option("--questions", help="Print the questions that pick metrics.")] = False,
        answers: Annotated[Words, typer.Option(help="NAME=ANSWER (repeatable, or a,b): suggest metrics.")] = [],  # noqa: B006
        device: Device = "auto",
        seed: Seed = 0,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> int:
        """Compare the same units before and after a change, slice by slice; exit 1 if a gate does not pass."""
        import regear

        if questions or answers:
            return _suggest(answers, as_json=as_json, quiet=quiet)
        if before is None or after is None:
            raise RecipeError("found no BEFORE and AFTER; give two tables, two tables of lists, or two models")
        with Bars(quiet=quiet) as bars:
            result = regear.audit(
                before,
                after,
                metric=_words(metric),
                by=_words(by),
                depth=depth,
                margin=dict(_setting(word, "margin") for word in _words(margin)),
                attributes=attributes,
                weight=weight,
                search=search,
                relevance=relevance,
                catalogue=catalogue,
                interactions=interactions,
                provider=provider,
                top=top,
                exposure_margin=exposure_margin,
                text=text,
                tasks=tasks,
                windows=windows,
                items=items,
                generate=generate,
                before_dtype=before_dtype,
                after_dtype=after_dtype,
                before_kv=before_kv,
                after_kv=after_kv,
                gates=gates,
                ledger=ledger,
                report=report,
                card=card,
                suppress=suppress,
                level=level,
                resamples=resamples,
                seed=seed,
                device=device,
                progress=bars,
            )
        show(result, as_json=as_json, quiet=quiet, text=_text(result))
        return int(result["gate"] in ("fail", "undetermined"))


def _words(values: list[str]) -> list[str]:
    return [word for value in values for word in value.split(",") if word]


def _setting(word: str, what: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise RecipeError(f"found {what} {word!r}; wanted NAME=VALUE")
    return name, value


def _suggest(answers: list[str], *, as_json: bool, quiet: bool) -> int:
    from regear.auditing.questions import questions, suggest

    if not answers:
        asked = questions()
        lines = [f"{q['name']}: {q['text']} ({', '.join(f'{w}: {m}' for w, m in q['answers'].items())})" for q in asked]
        show({"questions": asked}, as_json=as_json, quiet=quiet, text="\n".join(lines))
        return 0
    found = suggest(dict(_setting(word, "answer") for word in _words(answers)))
    lines = [f"{entry['metric']} ({entry['kind']}): {entry['trade_off']}" for entry in found]
    show({"portfolio": found}, as_json=as_json, quiet=quiet, text="\n".join(lines))
    return 0


def _text(result: dict[str, Any]) -> str:
    """Overall figures, then the slices that lose or are undecided, the search's and the lists' findings, the gate."""
    found = sorted(result["verdicts"], key=lambda v: (ORDER[v["verdict"]], v["effect"] or 0.0))
    rows = [_row(verdict) for verdict in [*result["overall"], *found]]
    lines = [grid(["slice", "metric", "units", "effect", "low", "high", "verdict"], rows)]
    shown = ", ".join(f"{name} {entry['margin']:.4g}" for name, entry in result["metrics"].items())
    lines.append(f"effect below 0 is worse; all intervals hold at once at {result['level']:.0%}; margin: {shown}")
    if searched := [row for row in result["discovered"] if row["verdict"] == "harm"]:
        lines += ["", "found by search, checked on units it had not seen:"]
        lines.append(
            grid(["slice", "metric", "units", "effect", "low", "high", "verdict"], [_row(r) for r in searched])
        )
    for name, table in ((result["exposure"] or {}).get("dimensions") or {}).items():
        seen = sorted(table["rows"], key=lambda v: (ORDER[v["verdict"]], v["effect"] or 0.0))[:10]
        lines += ["", f"visibility by {name}:"]
        lines.append(grid(["group", "metric", "users", "effect", "low", "high", "verdict"], [_row(r) for r in seen]))
    lines += result["reversals"]
    for gate in result["gates"]:
        why = f": {gate['reason']}" if gate["reason"] else ""
        lines.append(f"gate {_where(gate['slice'])} {gate['metric']}: {gate['outcome']}{why}")
    if result["gate"] != "none":
        lines.append(f"gate: {result['gate']}")
    if "report" in result:
        lines.append(f"report: {result['report']}")
    if "ledger" in result:
        lines.append(f"ledger: {result['ledger']['path']}, head {result['ledger']['head']}")
    return "\n".join(lines)


def _row(verdict: dict[str, Any]) -> list[str]:
    numbers = ["–" if x is None else f"{x:+.4g}" for x in (verdict["effect"], *(verdict["ci"] or (None, None)))]
    return [_where(verdict["slice"]), verdict["metric"], f"{verdict['n']:,}", *numbers, verdict["verdict"]]


def _where(slice_: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in slice_.items()) or "all"
