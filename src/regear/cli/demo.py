"""`regear demo`: the main job on the embedded model."""

from pathlib import Path
from typing import Annotated

import typer

from regear.cli.convert import sweep_text
from regear.cli.output import Json, Quiet, show
from regear.cli.progress import Bars


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def demo(
        output: Annotated[Path, typer.Option("-o", "--output", help="Where checkpoint and report go.")] = Path("demo"),
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Convert SmolLM2-135M-Instruct to MLA at three cache sizes, compare, write, reload, generate."""
        import regear

        with Bars(quiet=quiet) as bars:
            result = regear.demo(output, progress=bars)
        answers = "\n".join(f"{name:>6}: {answer['text']}" for name, answer in result["generate"].items())
        text = f"{sweep_text(result['sweep'])}\n\n{result['convert']['output']} says:\n{answers}\n"
        text += f"\nreport: {result['report']}"
        show(result, as_json=as_json, quiet=quiet, text=text)
