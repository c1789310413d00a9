"""What a drafter is: it guesses the next tokens of texts in flight; the model decides.

A guess is a chain of tokens. The engine draws its own token at every place, with its own noise, and keeps a guess only
where it is that very token (sample-then-match, exact for whatever is guessed): a drafter can make decoding faster or
slower, and change nothing.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from regear.engine.types import Request

Array = npt.NDArray[Any]
Tokens = npt.NDArray[np.int32]

NOTHING: Tokens = np.empty(0, np.int32)
LIKELY, SKETCH = 3, 2  # numbers of a thought: likeliest tokens, and words of a sketch of the model's state
THOUGHT = LIKELY + SKETCH
UNKNOWN = np.uint32(0xFFFFFFFF)  # in the place of the first: nothing is known


@dataclass(frozen=True)
class Text:
    """A text in flight, as a drafter sees it: `tokens` is a view of all that is known, `prompt` tokens of prompt first.

    `request` says how it is sampled, for drafters that guess with the engine's own noise, and its group.
    """

    number: int
    tokens: Tokens
    prompt: int
    request: Request


@dataclass(frozen=True)
class Outcome:
    """What became of a guess: the text's number, how many tokens were guessed and kept, and the tokens that came.

    `thoughts` is for drafters that have `wants_thoughts`: what the model thought before each of these tokens, uint32
    [emitted, THOUGHT]. First its likeliest tokens, the likeliest first: in the upper 24 bits the token, in the lower 8
    its probability p at temperature 1, as −16 ln p. Then 64 signs of its last hidden state's products with fixed
    directions, of which close states share most; zeros where the model does not show that state.
    """

    number: int
    guessed: int
    kept: int
    emitted: Tokens
    thoughts: Array | None = None


@dataclass(frozen=True)
class Target:
    """The model that a drafter guesses for, its tokenizer where that is known, and files of past texts."""

    model: Any
    tokenizer: Any = None
    history: tuple[Path, ...] = ()


class Drafter(Protocol):
    """Guesses for a batch in one call. The engine calls all of it between its steps, from one thread."""

    def propose(self, texts: Sequence[Text], most: Array) -> list[Tokens]:
        """A guess for each text, at most `most[i]` tokens and possibly none."""
        ...

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """What became of the last guesses."""
        ...

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """A text has ended, or left the engine; whatever is kept for it can go."""
        ...


def wants_thoughts(drafter: Any) -> bool:
    """Whether a drafter, or one behind it, learns from what the model thought."""
    inner = getattr(drafter, "drafters", None) or [getattr(drafter, "drafter", None)]
    return getattr(drafter, "wants_thoughts", False) or any(wants_thoughts(one) for one in inner if one is not None)
