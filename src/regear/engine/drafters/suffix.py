"""Guess that a text goes on as past texts and its siblings did after the same tokens.

Source: DAS (arXiv 2511.13841) §4, whose index is a suffix tree of recent rollouts by problem; here it is a suffix
automaton a problem and epoch (`native/`). At a temperature the guess is drawn from its counts with the engine's own
noise, so that it agrees with the engine's draw more often than the likeliest token would (see `ops.noise`).
"""

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regear.core.errors import DataError
from regear.core.files import write_bytes
from regear.engine.drafters.base import THOUGHT, UNKNOWN, Array, Outcome, Text, Tokens
from regear.engine.drafters.routes import Routes
from regear.engine.sampler import COLD

CAP = 1 << 30  # bytes
HOTTEST = 1e3  # temperature from which on all that is kept of a place is as likely
GREEDY = 0.3  # temperature at which a greedy text asks what the model thought: there is little else than the best
MAGIC = b"regear suffix index 1\n"


def native() -> Any:
    """The compiled part.

    Raises:
        DataError: this installation has none.
    """
    try:
        from regear import _native
    except ImportError as error:
        raise DataError(
            f"the suffix index is not built here ({error}); install regear with a C++ compiler present, or its wheel"
        ) from None
    return _native


class SuffixDrafter:
    """Chains of tokens with the chance that each stands.

    From engines that tell it, it also learns what the model thought at every place of a text (`Outcome.thoughts`): that
    says more of how a text goes on from there than the one token that came.

    Args:
        index: what past texts left; None is an empty one.
        routes: which group texts of no named group belong to.
        shared: of a new index: whether every text also reads what other groups wrote.
        cap_bytes: of a new index.
    """

    wants_thoughts = True

    def __init__(
        self, index: Any = None, routes: Routes | None = None, *, shared: bool = True, cap_bytes: int = CAP
    ) -> None:
        self.index = native().Index(shared=shared, cap_bytes=cap_bytes) if index is None else index
        self.routes = routes or Routes()
        self.vocabulary: str | None = None  # digest of the vocabulary that the ids are of, where it is known
        self.read: dict[int, int] = {}  # tokens of each text that the index has
        self.told: dict[int, list[Array]] = {}  # what the model thought before tokens that it has not

    def propose(self, texts: Sequence[Text], most: Array) -> list[Tokens]:
        """The longest guesses."""
        return self.propose_weighed(texts, most, np.zeros(len(texts)))[0]

    def propose_weighed(self, texts: Sequence[Text], most: Array, least: Array) -> tuple[list[Tokens], list[Array]]:
        """Guesses, and the chance that each of their tokens stands with all before it; none is below `least[i]`."""
        self._catch_up(texts)
        numbers = np.array([text.number for text in texts], np.int64)
        offsets, tokens, chances = self.index.propose(numbers, most.astype(np.int64), least.astype(np.float64))
        ends = offsets[1:-1]
        return np.split(tokens, ends)[: len(texts)], np.split(chances, ends)[: len(texts)]

    def _catch_up(self, texts: Sequence[Text]) -> None:
        """Give the index what texts have become."""
        new: list[Tokens] = []
        thoughts: list[Array] = []
        for text in texts:
            if text.number not in self.read:
                self._start(text)
            new.append(text.tokens[self.read[text.number] :])
            thoughts.append(self._thoughts(text.number, len(new[-1])))
            self.read[text.number] = len(text.tokens)
        if new:
            offsets = np.cumsum([0, *map(len, new)], dtype=np.int64)
            numbers = np.array([text.number for text in texts], np.int64)
            self.index.extend_many(numbers, offsets, np.concatenate(new), np.concatenate(thoughts))

    def _thoughts(self, number: int, count: int) -> Array:
        """What the model thought before the last `count` tokens of a text, as far as it was told."""
        found = np.full((count, THOUGHT), UNKNOWN)
        if count and (told := self.told.pop(number, None)):
            held = np.concatenate(told)[-count:]
            found[count - len(held) :] = held
        return found

    def _start(self, text: Text) -> None:
        request, prompt = text.request, np.ascontiguousarray(text.tokens[: text.prompt])
        warm = request.temperature > COLD
        seed = request.seed & 0xFFFFFFFFFFFFFFFF if warm else None
        temperature = min(request.temperature, HOTTEST) if warm else GREEDY
        self.index.start(text.number, self.routes.group(request.group, prompt), prompt, seed, temperature)
        self.read[text.number] = text.prompt

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Learn how much the counts can be trusted."""
        numbers, guessed, kept = (
            np.array([getattr(outcome, name) for outcome in outcomes], np.int64)
            for name in ("number", "guessed", "kept")
        )
        self.index.observe(numbers, guessed, kept)
        for outcome in outcomes:
            if outcome.thoughts is not None and len(outcome.emitted):
                self.told.setdefault(outcome.number, []).append(outcome.thoughts)

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """The text is past; what it wrote stays."""
        read = self.read.pop(number, None)
        thoughts = self._thoughts(number, len(tokens) - (prompt if read is None else read))
        self.told.pop(number, None)
        if read is None:  # it was never asked about
            self.learn(tokens[:prompt], tokens[prompt:], group, thoughts)
            return
        self.index.extend(number, np.ascontiguousarray(tokens[read:]), thoughts)
        self.index.finish(number)

    def learn(self, prompt: Tokens, tokens: Tokens, group: Hashable = None, thoughts: Array | None = None) -> None:
        """A past text; `thoughts` is what the model thought before each of its tokens, as in `Outcome`, if known."""
        key = self.routes.group(group, prompt)
        self.index.learn(
            key,
            np.ascontiguousarray(prompt, np.int32),
            np.ascontiguousarray(tokens, np.int32),
            None if thoughts is None else np.ascontiguousarray(thoughts, np.uint32),
        )

    def advance(self) -> None:
        """A new epoch: its texts weigh more than those before, and the oldest epoch's leave."""
        self.index.advance()

    def let_go(self) -> None:
        """Forget all texts, past and in flight, but not how much the counts can be trusted."""
        self.index.clear()
        self.read.clear()
        self.told.clear()

    def rest_on(self, past: "SuffixDrafter") -> None:
        """Know what `past` knows instead, without a copy of it; texts write here alone, as of a new epoch.

        `past` must not learn while that lasts: `let_go` comes first. Texts in flight are read anew.
        """
        self.read.clear()
        self.told.clear()
        self.index.share(past.index)
        self.index.advance()
        self.routes = Routes(past.routes.state())

    def state(self) -> bytes:
        """Everything but the texts in flight."""
        head = {"routes": self.routes.state()} | ({"vocabulary": self.vocabulary} if self.vocabulary else {})
        return MAGIC + json.dumps(head).encode() + b"\n" + self.index.save()

    @classmethod
    def of_state(cls, state: bytes) -> "SuffixDrafter":
        """A drafter as it was.

        Raises:
            ValueError: the state is damaged, or is none.
        """
        magic, head, body = state.split(b"\n", 2)
        if magic + b"\n" != MAGIC:
            raise ValueError("it begins otherwise")
        try:
            values = json.loads(head)
            found = cls(native().Index.load(body), Routes(values["routes"]))
            found.vocabulary = values.get("vocabulary")
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"its head is damaged: {error}") from None
        return found

    def save(self, path: Path) -> None:
        """Everything but the texts in flight, in one file.

        Raises:
            RegearError: the file cannot be written.
        """
        try:
            write_bytes(path, self.state())
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}; choose another place to save history in") from None

    @classmethod
    def load(cls, path: Path) -> "SuffixDrafter":
        """A drafter as it was saved.

        Raises:
            DataError: the file is missing or damaged.
        """
        try:
            return cls.of_state(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is no suffix index that can be read: {error}; give one that --save-history wrote, or JSONL"
            ) from None
