"""`regear heal`: train a converted model back to what it was made from."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from regear.cli.output import Device, Json, Quiet, show, table
from regear.cli.progress import Bars

Model = Annotated[str, typer.Argument(help="The directory to heal.")]
Changes = Annotated[list[str] | None, typer.Argument(help="Recipe keys, such as train.tokens=250000.")]
Teacher = Annotated[str, typer.Option(help="The original: directory, hub id or embedded name.")]
Text = Annotated[list[Path], typer.Option(help="Training file: text, JSONL or parquet (repeatable).")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The directory to make.")]
Config = Annotated[Path | None, typer.Option("-C", "--config", help="A recipe file.")]
Tasks = Annotated[list[str], typer.Option(help="Multiple-choice task before and after (repeatable).")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Over the recipe's seed.")]
Force = Annotated[bool, typer.Option("--force", help="Replace another output; drop other unfinished training.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command()
    def heal(
        model: Model,
        changes: Changes = None,
        teacher: Teacher = "",
        text: Text = [],  # noqa: B006
        output: Output = None,
        config: Config = None,
        tasks: Tasks = [],  # noqa: B006
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")] = False,
        tensorboard: Annotated[Path | None, typer.Option(help="A folder to show the run to TensorBoard in.")] = None,
        force: Force = False,
        seed: Seed = None,
        device: Device = "auto",
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Distil, fine-tune or align a model, in stages; resumable, on one process or under torchrun."""
        import regear
        from regear.healing.plan import describe

        with Bars(quiet=quiet) as bars:
            result = regear.heal(
                model,
                _named(teacher),
                output,
                *(changes or []),
                text=text,
                config=config,
                tasks=tasks,
                force=force,
                dry_run=dry_run,
                tensorboard=tensorboard,
                seed=seed,
                device=device,
                progress=bars,
                announce=None if quiet else lambda plan: print(describe(plan), file=sys.stderr),
            )
        if "rank" not in result:
            show(result, as_json=as_json, quiet=quiet, text=describe(result) if dry_run else _text(result))

    @app.command()
    def plan(
        model: Model,
        changes: Changes = None,
        teacher: Teacher = "",
        text: Text = [],  # noqa: B006
        output: Output = None,
        config: Config = None,
        tasks: Tasks = [],  # noqa: B006
        force: Force = False,
        seed: Seed = None,
        device: Device = "auto",
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """What `heal` with the same words would take: tokens a second, hours, memory; no weight is read."""
        import regear
        from regear.healing.plan import describe

        result = regear.plan(
            model,
            _named(teacher),
            output,
            *(changes or []),
            text=text,
            config=config,
            tasks=tasks,
            force=force,
            seed=seed,
            device=device,
        )
        if "rank" not in result:
            show(result, as_json=as_json, quiet=quiet, text=describe(result))


def _named(teacher: str) -> str:
    from regear.core.errors import RecipeError

    if not teacher:
        raise RecipeError("no teacher given; name the original with --teacher: every figure is a ratio to it")
    return teacher


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
