"""`regear generate`: complete one prompt."""

from typing import Annotated

import typer

from regear.cli.output import Device, Json, Quiet, Seed, show


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def generate(
        model: Annotated[str, typer.Argument(help="Directory, hub id or embedded name.")],
        prompt: Annotated[str, typer.Argument(help="The text to answer or to go on from.")],
        raw: Annotated[bool, typer.Option("--raw", help="The prompt as it is, without the chat template.")] = False,
        max_tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 128,
        temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
        top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
        device: Device = "auto",
        seed: Seed = 0,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Complete a prompt."""
        import regear

        result = regear.generate(
            model,
            prompt,
            raw=raw,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            device=device,
        )
        show(result, as_json=as_json, quiet=False, text=result["text"])
