"""`regear ls | schema | env | doctor`: what there is, and whether it works on this machine."""

from typing import Annotated

import typer

from regear.cli.output import Json, Quiet, grid, show, table


def register(app: typer.Typer) -> None:
    """Add the verbs."""

    @app.command()
    def ls(as_json: Json = False, quiet: Quiet = False) -> None:
        """List the methods that regear knows."""
        from regear.pipeline.catalogue import methods

        rows = methods()
        text = grid(["kind", "name", "what it does"], [[r["kind"], r["name"], r["help"]] for r in rows])
        show({"methods": rows}, as_json=as_json, quiet=quiet, text=text)

    @app.command()
    def schema(
        verb: Annotated[str, typer.Argument(help="convert, heal, run, or gates.")] = "convert",
        as_json: Json = False,
    ) -> None:
        """Print the JSON schema of a verb's recipe."""
        from regear.pipeline.catalogue import recipe_schema

        show(recipe_schema(verb), as_json=True, quiet=False, text="")

    @app.command()
    def env(as_json: Json = False, quiet: Quiet = False) -> None:
        """Print machine and versions, for a bug report."""
        from regear.core.machine import describe

        found = describe()
        rows = [*found["machine"].items(), *found["versions"].items()]
        show(found, as_json=as_json, quiet=quiet, text=table([(k, v) for k, v in rows]))

    @app.command()
    def doctor(as_json: Json = False, quiet: Quiet = False) -> int:
        """Try what regear needs on this machine and say what works."""
        from regear.pipeline.doctor import examine

        checks = examine()
        text = grid(
            ["check", "works", "detail"], [[c["check"], "yes" if c["works"] else "NO", c["detail"]] for c in checks]
        )
        works = all(c["works"] for c in checks if c["needed"])
        show({"checks": checks, "works": works}, as_json=as_json, quiet=quiet, text=text)
        return 0 if works else 3
