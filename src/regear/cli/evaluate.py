"""`regear eval`: measure a model, alone or against another."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regear.cli.output import Device, Dtype, Json, Quiet, Seed, grid, show, table


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command(name="eval")
    def evaluate(
        model: Annotated[str, typer.Argument(help="Directory, hub id or embedded name.")],
        against: Annotated[str | None, typer.Option(help="Pair with this model on the same windows and items.")] = None,
        dtype: Dtype = None,
        against_dtype: Annotated[str | None, typer.Option(help="The same for the other model.")] = None,
        kv: Annotated[str | None, typer.Option(help="Read through a cache that stores bf16, int8 or int4.")] = None,
        against_kv: Annotated[str | None, typer.Option(help="The same for the other model.")] = None,
        text: Annotated[list[str], typer.Option(help="Text or JSONL file (repeatable), or `builtin`.")] = ["builtin"],  # noqa: B006
        tasks: Annotated[list[str], typer.Option(help="Multiple-choice task (repeatable): mmlu.")] = [],  # noqa: B006
        windows: Annotated[int | None, typer.Option(help="At most so many windows, evenly spread.")] = None,
        items: Annotated[int | None, typer.Option(help="At most so many items of each task.")] = None,
        long: Annotated[bool, typer.Option("--long", help="Also perplexity by position, and planted facts.")] = False,
        context: Annotated[int | None, typer.Option(help="Tokens of the long windows.")] = None,
        speed: Annotated[bool, typer.Option(help="Also measure tokens per second.")] = True,
        report: Annotated[Path | None, typer.Option(help="Write report.json and report.html here.")] = None,
        device: Device = "auto",
        seed: Seed = 0,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Perplexity, bits per byte, KL, choice accuracy, cache size and speed."""
        import regear

        result = regear.eval(
            model,
            against=against,
            dtype=dtype,
            against_dtype=against_dtype,
            kv=kv,
            against_kv=against_kv,
            text=text,
            tasks=tasks,
            windows=windows,
            items=items,
            long=long,
            context=context,
            speed=speed,
            report=report,
            device=device,
            seed=seed,
        )
        show(result, as_json=as_json, quiet=quiet, text=_text(result))


def _text(result: dict[str, Any]) -> str:
    rows = [
        ("model", _named(result)),
        ("windows / tokens", f"{result['windows']} / {result['tokens']:,}"),
        ("perplexity", f"{result['perplexity']:.3f}"),
        ("bits per byte", f"{result['bits_per_byte']:.4f}"),
        ("KV cache per token", _cache(result)),
    ]
    if "tokens_per_second" in result:
        speed = result["tokens_per_second"]
        rows.append(("tokens/s", f"prefill {speed['prefill']:.0f}, decode {speed['decode']:.1f}"))
    if other := result.get("against"):
        rows.append(("against", f"{_named(other)}: perplexity {other['perplexity']:.3f}, {_cache(other)}"))
        if other["ratio"] is not None:
            low, high = other["ratio_ci"]
            rows.append(("ratio", f"{other['ratio']:.4f} (95 % {low:.4f} to {high:.4f}), KL {other['kl']:.4f}"))
    for name, task in result.get("tasks", {}).items():
        line = f"accuracy {task['accuracy']:.3f} of {task['items']} (chance {task['chance']:.2f})"
        if change := task.get("change"):
            value, low, high = change["accuracy"]
            line += f", change {value:+.3f} (95 % {low:+.3f} to {high:+.3f})"
        rows.append((name, f"{line}, gold log-probability per byte {task['gold_logprob']:.4f}"))
    return table(rows) + (_long(result["long"]) if "long" in result else "")


def _long(result: dict[str, Any]) -> str:
    from regear.core.report import number
    from regear.measure.long import sections

    tables, _ = sections(result, ["this model", *(["against"] if "ratio" in result["positions"][0] else [])])
    printed = [
        f"{t.title}. {t.note}\n{grid(list(t.header), [list(map(number, r)) for r in _whole(t.rows)])}" for t in tables
    ]
    return "\n\n" + "\n\n".join(printed)


def _whole(rows: Any) -> list[Any]:
    """Planted facts over all depths only; a report has every depth."""
    return [row for row in rows if not isinstance(row[0], int) or row[1] == "all"]


def _named(side: dict[str, Any]) -> str:
    return f"{side['model']} ({side['dtype']})" if side["dtype"] else str(side["model"])


def _cache(side: dict[str, Any]) -> str:
    size = f"{side['kv_floats_per_token']:,} floats, {side['kv_bytes_per_token']:,.0f} bytes"
    return f"{size} ({side['kv']})" if side["kv"] else size
