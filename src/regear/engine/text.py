"""One prompt in, its text out: what `regear generate` does around an engine."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regear.core.errors import RecipeError
from regear.engine.chat import ask
from regear.engine.drafters.base import Target
from regear.engine.drafters.history import keep
from regear.engine.drafters.table import check_draft, open_drafter
from regear.engine.http import is_url
from regear.engine.local import DRAFT, LocalEngine
from regear.engine.types import Request
from regear.models.builtin import resolve
from regear.models.load import load_tokenizer
from regear.models.precision import check_dtype, load_as


def stop_tokens(model: Any) -> tuple[int, ...]:
    """The end-of-sequence ids that the model's generation settings name."""
    found = model.generation_config.eos_token_id
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (int(found),)


def encode_prompt(tokenizer: Any, prompt: str, *, raw: bool) -> list[int]:
    """Token ids of a prompt: as a user's turn of the chat template where there is one, unless `raw`."""
    if raw or not getattr(tokenizer, "chat_template", None):
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])


def generate(
    model: str | Path,
    prompt: str,
    *,
    raw: bool = False,
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
    served_model: str | None = None,
    draft: str = "none",
    draft_tokens: int = DRAFT,
    history: Sequence[str | Path] = (),
    save_history: str | Path | None = None,
) -> dict[str, Any]:
    """Complete one prompt.

    Args:
        model: directory, hub id or embedded name; or the address of a server that speaks OpenAI's API.
        prompt: the text; wrapped in the chat template where the model has one.
        raw: the prompt as it is.
        max_tokens: at most so many new tokens.
        temperature: 0 is greedy.
        top_p: nucleus sampling.
        seed: of the sampling.
        served_model: with an address, the name the model is served by.
        draft: who guesses tokens ahead, `none`, `ngram`, `suffix`, `model:DIR` or some with + between; the text stays
            the same.
        history: past answers for `suffix`: JSONL files, or what an earlier run saved; `save_history`: where to save
            them with this one.
        draft_tokens: guesses at most for one pass of the model.
        dtype: `float32`, `bfloat16`, `float16`, or `int8` (weights, on a CPU); by default as `load_model` does.

    Returns the JSON object that `regear generate --json` prints.

    Raises:
        RecipeError: a parameter out of range, an empty prompt, an unknown drafter, or a dtype not for this device.
        IncompatibleModel: a drafter of another vocabulary.
    """
    check_draft(draft, draft_tokens, history, save_history)
    if max_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise RecipeError(
            f"found max_tokens={max_tokens}, temperature={temperature}, top_p={top_p}; "
            "wanted max_tokens >= 1, temperature >= 0, 0 < top_p <= 1"
        )
    if is_url(model):
        if device != "auto" or draft != "none" or dtype is not None:
            found = f"device={device}, dtype={dtype}, draft={draft}"
            raise RecipeError(f"found {found} with an address; the server has its own")
        request = Request([0], max_tokens, temperature, top_p, seed)
        return ask(str(model), prompt, request, raw=raw, served_model=served_model)
    if served_model is not None:
        raise RecipeError(f"served_model={served_model} needs a model given as an address, http://host:port")
    check_dtype(dtype, device)
    path = resolve(model)
    tokenizer, network = load_tokenizer(path), load_as(path, device, dtype)
    ids = encode_prompt(tokenizer, prompt, raw=raw)
    if not ids:
        raise RecipeError("the prompt is empty; give some text")
    request = Request(ids, max_tokens, temperature, top_p, seed, stop_tokens(network))
    drafter = open_drafter(draft, Target(network, tokenizer, tuple(map(Path, history))))
    engine = LocalEngine(network, drafter=drafter, draft=draft_tokens)
    start = time.perf_counter()
    (completion,) = engine.generate([request])
    seconds = time.perf_counter() - start
    if save_history is not None:
        keep(drafter, Path(save_history))
    new = completion.token_ids
    return {
        "model": str(model),
        "dtype": dtype,
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "token_ids": new,
        "tokens": len(new),
        "finish_reason": completion.finish_reason,
        "tokens_per_second": len(new) / seconds,
        "acceptance_length": completion.acceptance_length,
    }
