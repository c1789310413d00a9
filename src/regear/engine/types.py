"""What goes into an engine and what comes out, the same for every engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One prompt as token ids, with its own sampling parameters."""

    prompt: Sequence[int]
    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop_tokens: Sequence[int] = field(default_factory=tuple)


@dataclass(frozen=True)
class Completion:
    """New token ids, why they ended (`stop` or `length`), and tokens emitted per target forward."""

    token_ids: list[int]
    finish_reason: str
    acceptance_length: float = 1.0


class Engine(Protocol):
    """Tokens in, tokens out."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]: ...
