"""`regear heal`: train a converted model back to what it was made from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regear.cli.output import Device, Json, Quiet, show, table
from regear.cli.progress import Bars


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def heal(
        model: Annotated[str, typer.Argument(help="The directory to heal.")],
        changes: Annotated[list[str] | None, typer.Argument(help="Recipe keys, such as train.tokens=250000.")] = None,
        teacher: Annotated[str, typer.Option(help="The original: directory, hub id or embedded name.")] = "",
        text: Annotated[list[Path], typer.Option(help="Training file: text, JSONL or parquet (repeatable).")] = [],  # noqa: B006
        output: Annotated[Path | None, typer.Option("-o", "--output", help="The directory to make.")] = None,
        config: Annotated[Path | None, typer.Option("-C", "--config", help="A recipe file.")] = None,
        tasks: Annotated[list[str], typer.Option(help="Multiple-choice task before and after (repeatable).")] = [],  # noqa: B006
        force: Annotated[bool, typer.Option("--force", help="Replace another output.")] = False,
        seed: Annotated[int | None, typer.Option("--seed", min=0, help="Over the recipe's seed.")] = None,
        device: Device = "auto",
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Distil, fine-tune or align a model, in stages; resumable, on one process or under torchrun."""
        import regear
        from regear.core.errors import RecipeError

        if not teacher:
            raise RecipeError("no teacher given; name the original with --teacher: every figure is a ratio to it")
        with Bars(quiet=quiet) as bars:
            result = regear.heal(
                model,
                teacher,
                output,
                *(changes or []),
                text=text,
                config=config,
                tasks=tasks,
                force=force,
                seed=seed,
                device=device,
                progress=bars,
            )
        if "rank" not in result:
            show(result, as_json=as_json, quiet=quiet, text=_text(result))


def _text(result: dict[str, Any]) -> str:
    rows = [("output", result["output"]), ("tokens", f"{result['tokens']:,}")]
    for name, part in (("perplexity", result), ("elsewhere", result["elsewhere"])):
        found, ratio = part["perplexity"], part["ratio"]
        rows.append((name, f"teacher {found['teacher']:.3f}, {found['before']:.3f} → {found['after']:.3f}"))
        rows.append(("  ratio", f"{ratio['before'][0]:.4f} → {ratio['after'][0]:.4f}"))
        rows.append(("  KL", f"{part['kl']['before']:.4f} → {part['kl']['after']:.4f}"))
    said = result["generation"]
    rows.append(("agreement", f"{said['before']['agreement']:.2f} → {said['after']['agreement']:.2f} of greedy tokens"))
    rows += [("report", result["report"]), ("time", f"{result['seconds']:.0f} s")]
    if result.get("already_done"):
        rows.append(("note", "already there, nothing done"))
    return table(rows)
