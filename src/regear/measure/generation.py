"""What a model writes, beside what another writes after the same prompts: log-likelihood alone hides losses here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regear.engine.local import LocalEngine
from regear.engine.text import stop_tokens
from regear.engine.types import Request
from regear.tasks.text import Window, spread

PROMPTS = 8
PROMPT_TOKENS = 64
NEW_TOKENS = 48
GRAM = 4


@dataclass(frozen=True)
class Written:
    """Greedy continuations of fixed prompts."""

    tokens: list[list[int]]

    def agreement(self, other: "Written") -> float:
        """Mean share of the longer text before the first token that differs; 1 where both say nothing."""
        shares = []
        for mine, theirs in zip(self.tokens, other.tokens, strict=True):
            same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
            common = min(len(mine), len(theirs)) if same is None else same
            longest = max(len(mine), len(theirs))
            shares.append(common / longest if longest else 1.0)
        return sum(shares) / len(shares)

    @property
    def repetition(self) -> float:
        """Mean share of a text's 4-grams that it has already written."""
        return sum(map(repeated, self.tokens)) / len(self.tokens)

    @property
    def length(self) -> float:
        """Mean number of tokens, up to the end of text or the limit."""
        return sum(map(len, self.tokens)) / len(self.tokens)

    def summary(self, other: "Written") -> dict[str, float]:
        """The figures of a report, with `other` as what should have been written."""
        return {
            "prompts": len(self.tokens),
            "agreement": self.agreement(other),
            "repetition": self.repetition,
            "length": self.length,
        }


def repeated(tokens: Sequence[int], gram: int = GRAM) -> float:
    """The share of a text's n-grams that stand earlier in it."""
    grams = [tuple(tokens[i : i + gram]) for i in range(len(tokens) - gram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def write(model: Any, tokenizer: Any, windows: Sequence[Window], *, prompts: int = PROMPTS) -> Written:
    """Greedy continuations of the beginnings of evenly spread windows."""
    return answer(model, [opening(tokenizer, window.text) for window in spread(windows, prompts)])


def opening(tokenizer: Any, text: str) -> list[int]:
    """The beginning of a text as a prompt."""
    return list(tokenizer(text)["input_ids"])[:PROMPT_TOKENS]


def answer(model: Any, prompts: Sequence[Sequence[int]]) -> Written:
    """Greedy continuations of prompts of token ids."""
    requests = [Request(prompt, NEW_TOKENS, 0.0, 1.0, 0, stop_tokens(model)) for prompt in prompts]
    return Written([completion.token_ids for completion in LocalEngine(model, packed=False).generate(requests)])
