"""What goes into an engine and what comes out, the same for every engine."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from regear.core.errors import RecipeError

FinishReason = Literal["stop", "length", "cancelled", "timeout"]


@dataclass(frozen=True)
class Request:
    """One prompt as token ids, with its own sampling parameters.

    Args:
        temperature: 0 is greedy.
        top_p: of the likeliest tokens that together have this mass. `top_k`: of so many; 0 is all. `min_p`: of those
            with at least this share of the likeliest one's probability.
        seed: of the noise, which also depends on the place in the text and on nothing else; `ops.noise.key` makes one
            of (seed, request, sample, epoch).
        stop_tokens: ids that end the text and stay in it.
        stop: strings that end it; they need an engine with a tokenizer.
        repetition_penalty: divides positive and multiplies negative scores of all tokens seen, the prompt's too.
        presence_penalty, frequency_penalty: subtracted from the score of a token already written, once and per time.
        logprobs: whether the log-probability of each new token is returned, that of the model itself: at temperature
            1, before penalties and before tokens are left out.
        group: requests that are likely to be answered alike, such as samples of one problem.
        timeout: seconds after which the request ends with what it has.
    """

    prompt: Sequence[int]
    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_tokens: Sequence[int] = field(default_factory=tuple)
    top_k: int = 0
    min_p: float = 0.0
    stop: Sequence[str] = field(default_factory=tuple)
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: bool = False
    group: Hashable = None
    timeout: float | None = None

    def check(self) -> None:
        """Refuse what cannot be answered.

        Raises:
            RecipeError: an empty prompt, or a parameter out of range.
        """
        if not len(self.prompt):
            raise RecipeError("the prompt is empty; give some text")
        ranges = {
            "max_tokens": (self.max_tokens, self.max_tokens >= 1, ">= 1"),
            "temperature": (self.temperature, 0 <= self.temperature < float("inf"), ">= 0"),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            "top_k": (self.top_k, self.top_k >= 0, ">= 0"),
            "min_p": (self.min_p, 0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (self.repetition_penalty, 0 < self.repetition_penalty < float("inf"), "above 0"),
            "presence_penalty": (self.presence_penalty, math.isfinite(self.presence_penalty), "a finite number"),
            "frequency_penalty": (self.frequency_penalty, math.isfinite(self.frequency_penalty), "a finite number"),
            "timeout": (self.timeout, self.timeout is None or self.timeout > 0, "above 0 seconds"),
        }
        for name, (value, fits, wanted) in ranges.items():
            if not fits:
                raise RecipeError(f"{name}: found {value}; wanted {wanted}")
        if any(not text for text in self.stop):
            raise RecipeError("stop: found an empty string, which would end every text at once")

    @property
    def penalised(self) -> bool:
        """Whether scores depend on the tokens before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Completion:
    """New token ids and why they ended.

    `acceptance_length` is tokens emitted per forward pass of the model that read them, 1 without speculation.
    `logprobs` are in nats, one a token, where they were asked for.
    """

    token_ids: list[int]
    finish_reason: FinishReason
    acceptance_length: float = 1.0
    logprobs: list[float] | None = None


class Engine(Protocol):
    """Tokens in, tokens out."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete every request; answers in the order of the requests."""
        ...


Listener = Callable[[int, list[int]], None]
"""Called with a request's number and its new tokens as they come."""
