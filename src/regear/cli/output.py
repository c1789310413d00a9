"""Options and printing that every verb shares."""

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no table.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16, float16, or int8 weights on a CPU.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


def show(result: Any, *, as_json: bool, quiet: bool, text: str) -> None:
    """Print a verb's result: one JSON object, or the text for people, or nothing."""
    if as_json:
        print(json.dumps(result, ensure_ascii=False, default=str))
    elif not quiet:
        print(text)


def table(rows: list[tuple[str, Any]]) -> str:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def grid(header: list[str], rows: list[list[str]]) -> str:
    """A table with aligned columns, figures to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    figures = [bool(rows) and all(row[i][:1] in "0123456789+-–" for row in rows) for i in range(len(header))]
    columns = list(zip(widths, figures, strict=True))
    lines = []
    for row in [header, *rows]:
        cells = [c.rjust(w) if figure else c.ljust(w) for c, (w, figure) in zip(row, columns, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
