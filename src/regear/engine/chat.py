"""One prompt to a server and its text back: what `regear generate` does where MODEL is an address."""

import time
from typing import Any

from regear.core.errors import BackendError, RecipeError
from regear.engine.calls import Call
from regear.engine.dialects import PLAIN, sampling, served
from regear.engine.http import Json, Server
from regear.engine.types import Request


def ask(url: str, prompt: str, request: Request, *, raw: bool = False, served_model: str | None = None) -> Json:
    """Complete one prompt: as a user's message, or as it is where `raw`.

    Args:
        request: how to sample; its own prompt and stop tokens are not sent, since the server ends texts itself.
        served_model: the name that the server gives the model; not needed where it has one.

    Returns the JSON object that `regear generate --json` prints; `token_ids`, `tokens` and `tokens_per_second` are null
    where the server does not tell, `acceptance_length` always.

    Raises:
        RecipeError: nothing listens there, the model is not served, or the server refused the request.
        BackendError: the server failed.
    """
    if not prompt:
        raise RecipeError("the prompt is empty; give some text")
    request.check()
    server, call = Server(url), Call()
    model, dialect = served(server, served_model)
    body: Json = (
        {"model": model} | sampling(request, dialect) | ({} if dialect == PLAIN else {"return_token_ids": True})
    )
    if raw:
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": "user", "content": prompt}]
    path = "/v1/completions" if raw else "/v1/chat/completions"
    start = time.perf_counter()
    answer = server.attempts(lambda: server.post(path, body, call), call)
    seconds = time.perf_counter() - start
    try:
        choice: dict[str, Any] = answer["choices"][0]
        text = choice["text"] if raw else choice["message"]["content"]
        ids, reason = choice.get("token_ids"), choice.get("finish_reason")
        tokens = len(ids) if ids is not None else (answer.get("usage") or {}).get("completion_tokens")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BackendError(f"{server.url} answered without the text that a completion holds") from None
    return {
        "model": server.url,
        "text": text or "",
        "token_ids": ids,
        "tokens": tokens,
        "finish_reason": reason,
        "tokens_per_second": None if tokens is None else tokens / seconds,
        "acceptance_length": None,
    }
