"""`regear generate`: complete one prompt, or every prompt of a file."""

from pathlib import Path
from typing import Annotated

import typer

from regear.cli.output import Device, Dtype, Json, Quiet, Seed, show, table
from regear.cli.progress import Bars


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command()
    def generate(
        model: Annotated[str, typer.Argument(help="Directory, hub id, embedded name, or http://host:port.")],
        prompt: Annotated[str | None, typer.Argument(help="The text to answer or to go on from.")] = None,
        prompts: Annotated[
            Path | None, typer.Option(help="Instead: JSONL rows {prompt} or {messages}, or a text file to go on from.")
        ] = None,
        output: Annotated[
            Path | None, typer.Option("-o", "--output", help="JSONL of the answers, to train on.")
        ] = None,
        raw: Annotated[bool, typer.Option("--raw", help="The prompt as it is, without the chat template.")] = False,
        max_tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 128,
        temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
        top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
        served_model: Annotated[
            str | None, typer.Option(help="With an address: the name the model is served by.")
        ] = None,
        draft: Annotated[
            str, typer.Option(help="Who guesses tokens ahead: none, ngram, suffix, model:DIR, or several with +.")
        ] = "none",
        draft_tokens: Annotated[int, typer.Option(help="Guesses at most for one pass of the model.")] = 4,
        history: Annotated[
            list[Path] | None, typer.Option(help="For suffix: JSONL of past answers, or a saved index.")
        ] = None,
        save_history: Annotated[
            Path | None, typer.Option(help="For suffix: where to save past answers and these.")
        ] = None,
        dtype: Dtype = None,
        device: Device = "auto",
        seed: Seed = 0,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Complete a prompt, or all of a file as training rows."""
        import regear
        from regear.core.errors import RecipeError
        from regear.engine.http import is_url

        if (prompts is None) != (output is None) or (prompts is not None and (prompt is not None or raw)):
            raise RecipeError("wanted --prompts FILE and -o ROWS.jsonl together, without PROMPT and --raw")
        sampling = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "dtype": dtype,
            "device": device,
            "draft": draft,
            "draft_tokens": draft_tokens,
            "history": history or [],
            "save_history": save_history,
        }
        if prompts is not None and output is not None:
            if is_url(model) or served_model is not None:
                raise RecipeError(
                    "an address or --served-model goes with PROMPT; --prompts wants a model on this machine"
                )
            with Bars(quiet=quiet) as bars:
                rows = regear.generate_rows(model, prompts, output, **sampling, progress=bars)
            show(rows, as_json=as_json, quiet=quiet, text=table(list(rows.items())))
            return
        if prompt is None:
            raise RecipeError("Missing argument PROMPT; give one, or --prompts FILE with -o ROWS.jsonl")
        result = regear.generate(model, prompt, raw=raw, served_model=served_model, **sampling)
        show(result, as_json=as_json, quiet=False, text=result["text"])
