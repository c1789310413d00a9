"""How a request is put to servers that speak OpenAI's completions, and what their answers hold.

Servers with more sampling fields than OpenAI's take the neutral value from the checkpoint's generation settings where a
field is missing, so they are sent every field. Others refuse fields they do not know, and are sent what is not neutral.
"""

from collections.abc import Mapping
from typing import Any

from regear.core.errors import BackendError, RecipeError
from regear.engine.calls import Call, Refused, Unreachable
from regear.engine.http import Json, Server
from regear.engine.types import Request

WIDE = ("vllm", "sglang", "regear")
PLAIN = "openai"
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def served(server: Server, model: str | None, call: Call | None = None) -> tuple[str, str]:
    """The name of the model to ask for, and the dialect of the server, by what `/v1/models` lists.

    Args:
        model: the name wanted; not needed where one model is served.

    Raises:
        RecipeError: nothing listens there, the model is not served, or several are and none is named.
    """
    call = call or Call()

    def listing() -> Json:
        try:
            return server.get("/v1/models", call)
        except Unreachable as error:  # the address is likelier wrong than the server on its way up
            raise RecipeError(str(error)) from None

    try:
        listed = server.attempts(listing, call).get("data")
    except Refused as refused:
        if model is None or refused.status not in (404, 405):
            raise
        return model, PLAIN
    owners = {m["id"]: m.get("owned_by") for m in listed or [] if isinstance(m, dict) and isinstance(m.get("id"), str)}
    names = ", ".join(owners)
    if model is None:
        if len(owners) != 1:
            raise RecipeError(f"{server.url} serves {names or 'no model it names'}; name one with --served-model")
        model = next(iter(owners))
    elif owners and model not in owners:
        raise RecipeError(f"{server.url} serves no model {model!r}; it serves {names}")
    owner = owners.get(model)
    return model, owner if owner in WIDE else PLAIN


def sampling(request: Request, dialect: str) -> Json:
    """The fields of a request but for its prompt and stop tokens."""
    found: Json = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
    }
    if request.temperature:
        found["seed"] = (request.seed + (1 << 63)) % (1 << 64) - (1 << 63)  # the same 64 bits, signed
    if request.stop:
        found["stop"] = list(request.stop)
    wide = {"top_k": request.top_k or -1, "min_p": request.min_p, "repetition_penalty": request.repetition_penalty}
    return found | {name: value for name, value in wide.items() if dialect != PLAIN or value != NEUTRAL[name]}


def completion(request: Request, dialect: str, *, ids: bool) -> Json:
    """The body of a request to `/v1/completions`, but for the model's name.

    Args:
        ids: whether a server that may not know how is asked for token ids all the same.

    Raises:
        RecipeError: log-probabilities that the server would give by another definition.
    """
    found = sampling(request, dialect) | {"prompt": list(request.prompt)}
    if request.logprobs:
        # SGLang's are those after penalties and at the request's temperature, but for greedy text.
        if dialect == "sglang" and (request.temperature not in (0, 1) or request.penalised):
            raise RecipeError(
                "SGLang gives log-probabilities at the request's temperature and after penalties; "
                "ask at temperature 0 or 1 and without penalties, or without log-probabilities"
            )
        found["logprobs"] = 1
    if dialect != PLAIN:
        found["stop_token_ids"] = list(request.stop_tokens)
        # SGLang with `ignore_eos` hears no stop tokens either.
        found["ignore_eos"] = dialect != "sglang" or not request.stop_tokens
    if dialect != PLAIN or ids:
        found["return_token_ids"] = True
    return found


class Answer:
    """What has come of one answer: text, and token ids where the server gives them.

    Token ids are cut after the first stop token, whether or not the server knows of it.
    """

    def __init__(self, request: Request, where: str) -> None:
        self.request, self.where = request, where
        self.text = ""
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.has_ids = False
        self.reason: str | None = None

    def add(self, message: Mapping[str, Any]) -> list[int]:
        """Take a whole answer, or one event of a stream; the new token ids.

        Raises:
            BackendError: it does not hold what an answer holds.
        """
        try:
            choices = message["choices"]
            if not choices:
                return []  # an event that tells only how much was used
            choice = choices[0]
            ids, reason = choice.get("token_ids"), choice.get("finish_reason")
            self.text += choice.get("text") or ""
            new = [] if ids is None else [int(token) for token in ids]
            scores = (choice.get("logprobs") or {}).get("token_logprobs") or []
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise BackendError(f"{self.where} answered without the choices that a completion holds") from None
        if reason not in (None, "stop", "length"):
            raise BackendError(f"{self.where} ended the answer with {reason!r}")
        self.has_ids = self.has_ids or ids is not None
        self.reason = reason
        return self._take(new, scores)

    def _take(self, new: list[int], scores: list[float]) -> list[int]:
        stops = set(self.request.stop_tokens)
        room = self.request.max_tokens - len(self.tokens)
        end = next((i for i, token in enumerate(new) if token in stops), None)
        if end is not None and end < room:
            new, self.reason = new[: end + 1], "stop"
        elif len(new) >= room and self.reason is None:
            self.reason = "length"
        new = new[:room]
        if self.request.logprobs and self.has_ids:
            known = [float(score) for score in scores[: len(new)] if isinstance(score, int | float)]
            if len(known) < len(new):
                raise BackendError(f"{self.where} gave {len(known)} log-probabilities for {len(new)} tokens")
            self.logprobs += known
        self.tokens += new
        return new
