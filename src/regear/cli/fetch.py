"""`regear fetch`: a model into the local store."""

from typing import Annotated

import typer

from regear.cli.output import Json, Quiet, show


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def fetch(
        name: Annotated[str, typer.Argument(help="An embedded model's name or a hub id.")],
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Bring a model into the local store and print where it is."""
        import regear

        result = regear.fetch(name)
        show(result, as_json=as_json, quiet=quiet, text=result["path"])
