"""`regear audit`: whom a change hurts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regear.cli.output import Json, Quiet, Seed, grid, show
from regear.core.errors import RecipeError


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def audit(
        before: Annotated[str, typer.Argument(help="Table of units before the change (.jsonl, .parquet, .csv).")],
        after: Annotated[str, typer.Argument(help="The same units after the change.")],
        metric: Annotated[list[str], typer.Option(help="Metric column (repeatable, or a,b); a/b: ratio of sums.")] = [],  # noqa: B006
        by: Annotated[list[str], typer.Option(help="Dimension (repeatable, or a,b); a*b is their crossing.")] = [],  # noqa: B006
        depth: Annotated[int, typer.Option(min=1, max=3, help="Cross the dimensions, so many at once.")] = 1,
        margin: Annotated[list[str], typer.Option(help="NAME=0.02 or NAME=2%: the loss that counts as none.")] = [],  # noqa: B006
        attributes: Annotated[Path | None, typer.Option(help="Sensitive attributes kept apart, joined by id.")] = None,
        weight: Annotated[str | None, typer.Option(help="Column: what each unit counts for.")] = None,
        level: Annotated[float, typer.Option(min=0.5, max=0.999, help="Level of all intervals together.")] = 0.95,
        resamples: Annotated[int, typer.Option(min=200, help="Bootstrap draws.")] = 2000,
        seed: Seed = 0,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Compare metrics of the same units before and after a change, slice by slice."""
        import regear

        result = regear.audit(
            before,
            after,
            metric=_words(metric),
            by=_words(by),
            depth=depth,
            margin=dict(_setting(word) for word in _words(margin)),
            attributes=attributes,
            weight=weight,
            level=level,
            resamples=resamples,
            seed=seed,
        )
        show(result, as_json=as_json, quiet=quiet, text=_text(result))


def _words(values: list[str]) -> list[str]:
    return [word for value in values for word in value.split(",") if word]


def _setting(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise RecipeError(f"found margin {word!r}; wanted NAME=VALUE, such as accuracy=0.01")
    return name, value


def _text(result: dict[str, Any]) -> str:
    rows = []
    order = {"harm": 0, "undetermined": 1, "no_harm": 2}
    found = sorted(result["verdicts"], key=lambda v: (order[v["verdict"]], v["effect"] or 0.0))
    for verdict in [*result["overall"], *found]:
        where = ", ".join(f"{name}={value}" for name, value in verdict["slice"].items()) or "all"
        known = verdict["effect"] is not None
        numbers = [f"{x:+.4g}" for x in (verdict["effect"], *verdict["ci"])] if known else ["–"] * 3
        rows.append([where, verdict["metric"], f"{verdict['n']:,}", *numbers, verdict["verdict"]])
    lines = [grid(["slice", "metric", "units", "effect", "low", "high", "verdict"], rows)]
    shown = ", ".join(f"{name} {entry['margin']:.4g}" for name, entry in result["metrics"].items())
    lines.append(f"effect below 0 is worse; all intervals hold at once at {result['level']:.0%}; margin: {shown}")
    return "\n".join(lines)
