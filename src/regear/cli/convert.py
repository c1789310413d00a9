"""`regear convert`: change a model's architecture and measure what that changed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regear.cli.output import Device, Json, Quiet, grid, show, table
from regear.cli.progress import Bars


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def convert(
        model: Annotated[
            str, typer.Argument(help="Directory (a model's or a LoRA adapter's), hub id or embedded name.")
        ],
        changes: Annotated[list[str] | None, typer.Argument(help="Recipe keys, such as convert.kv_ratio=1/3.")] = None,
        output: Annotated[Path | None, typer.Option("-o", "--output", help="The directory to make.")] = None,
        to: Annotated[str | None, typer.Option(help="The conversion: mla.")] = None,
        config: Annotated[Path | None, typer.Option("-C", "--config", help="A recipe file.")] = None,
        tasks: Annotated[list[str], typer.Option(help="Multiple-choice task before and after (repeatable).")] = [],  # noqa: B006
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Sizes and refusals only; reads no weight.")] = False,
        sweep: Annotated[bool, typer.Option("--sweep", help="Draw quality against cache size instead.")] = False,
        ratios: Annotated[str | None, typer.Option(help="Cache ratios of the sweep, separated by commas.")] = None,
        presets: Annotated[str | None, typer.Option(help="Presets of the sweep, separated by commas.")] = None,
        force: Annotated[bool, typer.Option("--force", help="Replace another output.")] = False,
        seed: Annotated[int | None, typer.Option("--seed", min=0, help="Over the recipe's seed.")] = None,
        device: Device = "auto",
        max_memory: Annotated[float | None, typer.Option(help="Memory to stay under, in GB.")] = None,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Convert a model; the output appears whole, with a card, a record and a report."""
        import regear
        from regear.core.errors import RecipeError

        wrong = (
            {"--dry-run": dry_run, "--force": force, "--tasks": tasks, "--max-memory": max_memory}
            if sweep
            else {"--ratios": ratios, "--presets": presets}
        )
        if given := [name for name, value in wrong.items() if value]:
            raise RecipeError(f"{given[0]} does not go {'with' if sweep else 'without'} --sweep; leave one of them out")
        from regear.conversion.sweep import RATIOS

        with Bars(quiet=quiet) as bars:
            if sweep:
                result = regear.sweep(
                    model,
                    output,
                    *(changes or []),
                    to=to,
                    config=config,
                    ratios=ratios.split(",") if ratios else RATIOS,
                    presets=presets.split(",") if presets else (),
                    seed=seed,
                    device=device,
                    progress=bars,
                )
            else:
                result = regear.convert(
                    model,
                    output,
                    *(changes or []),
                    to=to,
                    config=config,
                    tasks=tasks,
                    force=force,
                    dry_run=dry_run,
                    seed=seed,
                    device=device,
                    max_memory=max_memory,
                    progress=bars,
                )
        text = sweep_text(result) if sweep else _dry(result) if dry_run else _text(result)
        show(result, as_json=as_json, quiet=quiet, text=text)


def sweep_text(result: dict[str, Any]) -> str:
    """The sweep's table for a terminal."""
    rows = []
    for p in result["points"]:
        low, high = p["ratio_ci"]
        row = [p["setting"], p["kv_ratio"], f"{p['kv_floats_per_token']:,}", f"{p['perplexity']:.3f}"]
        rows.append([*row, f"{p['ratio']:.4f}", f"{low:.4f} to {high:.4f}", f"{p['kl']:.4f}"])
    header = ["setting", "KV ratio", "KV floats", "perplexity", "ratio", "95 % interval", "KL"]
    lead = f"{result['model']}: perplexity {result['original']['perplexity']:.3f} before"
    knees = "; ".join(f"{name} at {k['kv_ratio']}" for name, k in result["knee"].items())
    return f"{lead}\n{grid(header, rows)}\nknee: {knees}"


def _dry(result: dict[str, Any]) -> str:
    kv = result["kv_floats_per_token"]
    facts = result["facts"]
    return table(
        [
            ("conversion", f"{result['to']}, format {result['format']}"),
            ("KV floats per token", f"{kv['before']:,} → {kv['after']:,}"),
            ("mean rank", f"{facts['mean_rank']:.1f} of {facts['width']} in {facts['layers']} layers"),
            ("parameters", f"{result['parameters_before']:,} → {result['parameters_after']:,}"),
            ("output", f"{result['output_bytes'] / 2**20:,.0f} MiB"),
            ("memory, about", f"{result['memory_bytes'] / 2**20:,.0f} MiB"),
            ("scratch, about", f"{result['scratch_bytes'] / 2**20:,.0f} MiB in the cache, while it runs"),
            ("kept, about", f"{result['cache_bytes'] / 2**20:,.0f} MiB in the cache, for later ratios"),
        ]
    )


def _text(result: dict[str, Any]) -> str:
    kv, quality = result["kv_floats_per_token"], result["perplexity"]
    low, high = quality["ratio_ci"]
    rows = [
        ("output", result["output"]),
        ("KV floats per token", f"{kv['before']:,} → {kv['after']:,}"),
        ("perplexity", f"{quality['before']:.3f} → {quality['after']:.3f}"),
        ("ratio", f"{quality['ratio']:.4f} (95 % {low:.4f} to {high:.4f}), KL {result['kl']:.4f}"),
    ]
    for name, task in result["tasks"].items():
        if isinstance(task, str):
            rows.append((name, task))
            continue
        change, least, most = task["change"]["accuracy"]
        chance = task["before"]["chance"]
        rows.append((name, f"accuracy {change:+.3f} (95 % {least:+.3f} to {most:+.3f}; chance {chance:.2f})"))
    rows += [("report", result["report"]), ("time", f"{result['seconds']:.0f} s")]
    if result.get("already_done"):
        rows.append(("note", "already there, nothing done"))
    return table(rows)
