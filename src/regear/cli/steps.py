"""`regear run`: a recipe of steps."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from regear.cli.output import Device, Json, Quiet, show
from regear.cli.progress import Bars


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def run(
        recipe: Annotated[Path, typer.Argument(help="YAML file with `steps:`.")],
        changes: Annotated[list[str] | None, typer.Argument(help="Recipe keys, such as seed=1.")] = None,
        device: Device = "auto",
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> int:
        """Convert, heal, measure and audit in order, each step taking what the last one made; resumable."""
        import regear

        def announce(verb: str, result: dict[str, Any]) -> None:
            if not quiet:
                print(f"{verb}: {_line(verb, result)}", file=sys.stderr)

        with Bars(quiet=quiet) as bars:
            result = regear.run(recipe, *(changes or []), device=device, progress=bars, announce=announce)
        done = ", ".join(verb for step in result["steps"] for verb in step)
        show(result, as_json=as_json, quiet=quiet, text=f"done: {done}; gate: {result['gate']}")
        return int(result["gate"] in ("fail", "undetermined"))


def _line(verb: str, result: dict[str, Any]) -> str:
    if verb == "audit":
        words = [row["verdict"] for row in result["verdicts"]]
        return f"{words.count('harm')} of {len(words)} slices harmed, gate {result['gate']}"
    if verb == "eval":
        return f"perplexity {result['perplexity']:.3f}"
    figures = result["perplexity"]
    return f"{result['output']}, perplexity {figures['before']:.3f} → {figures['after']:.3f}"
