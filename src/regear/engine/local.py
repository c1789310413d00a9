"""The engine of this process: texts of different lengths in one batch, each sampled by its own rules.

    step:  admit → read a chunk of the prompts that are not read yet → guess → one pass over every text in flight,
           its guesses too → draw a token for every place → keep what matches, end what ends

What a text becomes depends on its request alone, up to near-ties of scores: not on what runs beside it, nor on guesses.
"""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from regear.core.errors import RecipeError
from regear.core.machine import available_memory_bytes
from regear.engine import sampler, verify
from regear.engine.drafters.base import THOUGHT, Drafter, Outcome, Text, wants_thoughts
from regear.engine.drafters.guard import guarded
from regear.engine.runner import Runner
from regear.engine.runners import runner_for
from regear.engine.sampler import Places
from regear.engine.scheduler import Scheduler
from regear.engine.thoughts import thoughts
from regear.engine.types import Completion, FinishReason, Listener, Request

DRAFT = 4  # tokens
CHUNK = 512  # tokens of prompts read in one step
ROWS = 128


@dataclass
class Limits:
    """What an engine may take: rows, bytes of cache (by default half of what is free), prompt tokens read a step."""

    rows: int = ROWS
    cache_bytes: int | None = None
    chunk: int = CHUNK


class LocalEngine:
    """Requests on one model in this process.

    Args:
        model: a causal language model of transformers.
        tokenizer: needed for stop strings only.
        drafter: guesses tokens; `draft` of them at most for each text and step. One that fails is switched off.
        packed: whether float32 weights on a CPU are held once more, in the layout that is read fastest.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        drafter: Drafter | None = None,
        draft: int = DRAFT,
        limits: Limits | None = None,
        packed: bool = True,
    ) -> None:
        limits = limits or Limits()
        self.tokenizer, self.draft, self.chunk = tokenizer, draft if drafter else 0, limits.chunk
        self.drafter = guarded(drafter, model.config.get_text_config().vocab_size)
        self.tells = drafter is not None and wants_thoughts(drafter)
        self.runner: Runner = runner_for(model, packed=packed)
        self.vocabulary: int = model.get_input_embeddings().weight.shape[0]
        budget = limits.cache_bytes if limits.cache_bytes is not None else free_bytes(model.device) // 2
        spare = max(1 + self.draft, 2)
        self.scheduler = Scheduler(self.runner, most=limits.rows, budget=budget, spare=spare)
        self.table = self.scheduler.table
        self.done: dict[int, Completion] = {}
        self.listener: Listener | None = None
        self.logprobs: dict[int, list[float]] = {}
        self.deadlines: dict[int, float] = {}
        self.submitted = 0

    def submit(self, request: Request) -> int:
        """Queue a request; its number.

        Raises:
            RecipeError: a parameter out of range, a token that the model does not know, stop strings without a
                tokenizer, or a text too long for the cache.
        """
        request.check()
        if request.stop and self.tokenizer is None:
            raise RecipeError("stop strings need an engine with a tokenizer")
        self._check_tokens(request.prompt)
        number = self.submitted
        self.scheduler.add(number, request)
        self.submitted += 1
        if request.logprobs:
            self.logprobs[number] = []
        if request.timeout is not None:
            self.deadlines[number] = time.monotonic() + request.timeout
        return number

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if not 0 <= min(tokens) <= max(tokens) < self.vocabulary:
            raise RecipeError(
                f"found tokens from {min(tokens)} to {max(tokens)}; wanted ids from 0 to {self.vocabulary - 1}"
            )

    def cancel(self, number: int, reason: FinishReason = "cancelled") -> None:
        """End a request with what it has; nothing happens to one that has ended."""
        for item in self.scheduler.queue:
            if item.number == number:
                self.scheduler.queue.remove(item)
                prompt = len(item.request.prompt)
                self._forget(number, item.known, prompt, item.request.group)  # it may have been in flight before
                self._complete(number, item.known[prompt:], item.forwards, reason)
                return
        rows = np.flatnonzero(self.table.number[: self.table.count] == number)
        if len(rows):
            self._finish(int(rows[0]), reason)

    def generate(self, requests: Sequence[Request], listener: Listener | None = None) -> list[Completion]:
        """Complete every request; answers in their order. `listener` hears of new tokens as they come."""
        for request in requests:
            request.check()
        places: dict[int, int] = {}

        def heard(number: int, new: list[int]) -> None:
            if listener is not None and number in places:  # others may be in flight
                listener(places[number], new)

        try:
            for request in requests:
                places[self.submit(request)] = len(places)
            self.listener = heard
            while not all(number in self.done for number in places):
                self.step()
        except BaseException:
            for number in places:
                self.cancel(number)
            raise
        finally:
            self.listener = None
            found = [self.done.pop(number, None) for number in places]
        return [completion for completion in found if completion is not None]

    def score(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probability of every token of each text but its first, given those before it, nats.

        Raises:
            RecipeError: requests are in flight, an empty text, one with a token that the model does not know, or one
                too long for the cache.
        """
        if self.scheduler.queue or self.table.count:
            raise RecipeError("texts are scored while no request is in flight; let the requests end first")
        return [self._score(list(text)) for text in texts]

    def _score(self, text: list[int]) -> list[float]:
        if not text:
            raise RecipeError("found an empty text; give at least one token")
        self._check_tokens(text)
        self.scheduler.hold(1, len(text))
        found: list[float] = []
        for start in range(0, len(text) - 1, self.chunk):
            part = np.array([text[start : min(start + self.chunk, len(text) - 1)]], np.int32)
            count = np.array([part.shape[1]])
            logits = self.runner.read(0, part, count, np.array([start]), np.ones_like(part, bool))
            self.runner.keep(0, count)
            found += sampler.logprob(logits, torch.tensor(text[start + 1 : start + 1 + len(logits)])).tolist()
        return found

    def step(self) -> None:
        """One round of admission, reading and decoding."""
        now = time.monotonic()
        for number in [number for number, deadline in self.deadlines.items() if deadline <= now]:
            self.cancel(number, "timeout")
        self.scheduler.admit()
        if self.table.count > self.scheduler.ready:
            self._read()
        if self.scheduler.ready:
            self._decode()

    def _read(self) -> None:
        """Read a chunk of what waits to be read, the oldest rows first; rows read to their end draw a token."""
        table, first = self.table, self.scheduler.ready
        left = (table.length - table.cached)[first : table.count]
        width = int(min(left[0], self.chunk))
        rows, furthest = 1, table.cached[first]
        for start, more in zip(table.cached[first + 1 : table.count], left[1:], strict=True):
            wider, further = max(width, min(more, self.chunk)), max(furthest, start)
            if (rows + 1) * wider > self.chunk or further + wider > self.scheduler.slots:  # padding takes slots too
                break
            rows, width, furthest = rows + 1, int(wider), further
        counts = np.minimum(left[:rows], width)
        part = slice(first, first + rows)
        starts = table.cached[part].copy()
        tokens = np.zeros((rows, width), np.int32)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            tokens[row, :count] = table.tokens[first + row, start : start + count]
        ended = bool((starts + counts == table.length[part]).all())  # if not, it is one row, longer than a chunk
        wanted = (np.arange(width) == (counts - 1)[:, None]) & ended
        logits = self.runner.read(first, tokens, counts, starts, wanted)
        self.runner.keep(first, counts)
        table.cached[part] = starts + counts
        if ended:
            read = np.arange(first, first + rows)
            drawn = self._draw(logits, read, table.length[read])
            self.scheduler.ready += rows
            none = np.zeros(rows, np.int64)
            if self.tells:  # of this token too: what is told of a text has no gaps
                self._emit(read, drawn[:, None], none, none, thoughts(logits, self.runner.states)[:, None])
            else:
                self._emit(read, drawn[:, None], none)

    def _decode(self) -> None:
        """One pass over every text in flight and its guesses."""
        table = self.table
        self.scheduler.room()
        rows = self.scheduler.ready
        if not rows:
            return  # preempted
        guessed, counts = self._guess()
        width = 1 + guessed.shape[1]
        starts = table.length[:rows] - 1
        newest = table.tokens[np.arange(rows), starts]
        tokens = np.concatenate([newest[:, None], guessed], axis=1)
        wanted = np.arange(width) <= counts[:, None]
        logits = self.runner.read(0, tokens, counts + 1, starts, wanted)
        where = np.nonzero(wanted)
        drawn = np.full((rows, width), -1, np.int64)
        drawn[where] = self._draw(logits, where[0], starts[where[0]] + 1 + where[1], guessed, where[1])
        told = np.zeros((rows, width, THOUGHT), np.uint32) if self.tells else None
        if told is not None:
            told[where] = thoughts(logits, self.runner.states)
        kept = verify.kept(drawn, guessed, counts)
        self.runner.keep(0, kept + 1)
        self._emit(np.arange(rows), drawn, kept, counts, told)

    def _guess(self) -> tuple[np.ndarray, np.ndarray]:
        """Guesses of every ready row, [N, K], and how many each has."""
        table, rows = self.table, self.scheduler.ready
        if self.drafter is None or self.drafter.off:
            return np.zeros((rows, 0), np.int32), np.zeros(rows, np.int64)
        room = np.minimum(table.limit[:rows] - table.length[:rows] - 1, self.draft)
        texts = [self._text(row) for row in range(rows)]
        found = [guess[:most] for guess, most in zip(self.drafter.propose(texts, room), room.tolist(), strict=True)]
        counts = np.array([len(guess) for guess in found], np.int64)
        guessed = np.zeros((rows, int(counts.max(initial=0))), np.int32)
        for row, guess in enumerate(found):
            guessed[row, : len(guess)] = guess
        return guessed, counts

    def _text(self, row: int) -> Text:
        table = self.table
        known = table.tokens[row, : table.length[row]]
        known.flags.writeable = False
        return Text(int(table.number[row]), known, int(table.prompt[row]), table.requests[row])

    def _draw(
        self,
        logits: torch.Tensor,
        rows: np.ndarray,
        positions: np.ndarray,
        guessed: np.ndarray | None = None,
        offsets: np.ndarray | None = None,
    ) -> np.ndarray:
        """A token for each place: the row it belongs to, how many tokens stand before it, guesses among them."""
        table = self.table
        before = {}
        for i in np.flatnonzero(table.penalised[rows]):
            row, own = int(rows[i]), table.tokens[rows[i], : table.length[rows[i]]]
            if guessed is not None and offsets is not None:
                own = np.concatenate([own, guessed[row, : offsets[i]]])
            before[int(i)] = (table.requests[row], int(table.prompt[row]), own)
        places = Places(
            table.seed[rows], positions, table.temperature[rows], table.top_p[rows], table.top_k[rows],
            table.min_p[rows], before,
        )  # fmt: skip
        drawn = sampler.choose(logits, places)
        if table.logprobs[rows].any():
            found = sampler.logprob(logits, drawn).tolist()
            self.drawn_logprobs = dict(zip(zip(rows.tolist(), positions.tolist(), strict=True), found, strict=True))
        return drawn.numpy(force=True)

    def _emit(
        self,
        rows: np.ndarray,
        drawn_NQ: np.ndarray,
        kept_N: np.ndarray,
        guesses_N: np.ndarray | None = None,
        told_NQK: np.ndarray | None = None,
    ) -> None:
        """Append what was drawn and stands, tell the drafter what became of its guesses, end texts that end."""
        table = self.table
        room = table.limit[rows] - table.length[rows]
        taken, stopped = verify.ends(drawn_NQ, kept_N, room, table.stops[rows])
        for row in np.flatnonzero(table.strings[rows]):
            taken[row], stopped[row] = self._stop_string(
                int(rows[row]), drawn_NQ[row, : taken[row]], bool(stopped[row])
            )
        table.forwards[rows] += 1
        for place in range(int(taken.max())):
            some = place < taken
            table.tokens[rows[some], table.length[rows[some]] + place] = drawn_NQ[some, place]
        if table.logprobs[rows].any():
            for row, count in zip(rows.tolist(), taken.tolist(), strict=True):
                if table.logprobs[row]:
                    held = self.logprobs[int(table.number[row])]
                    start = int(table.length[row])
                    held += [self.drawn_logprobs[row, start + place] for place in range(count)]
        table.length[rows] += taken
        table.cached[rows] = table.length[rows] - 1
        numbers = table.number[rows].tolist()
        if self.drafter is not None and guesses_N is not None:
            parts = zip(numbers, guesses_N.tolist(), kept_N.tolist(), drawn_NQ.astype(np.int32), taken, strict=True)
            self.drafter.observe([
                Outcome(number, count, kept, new[:end], None if told_NQK is None else told_NQK[i, :end])
                for i, (number, count, kept, new, end) in enumerate(parts)
            ])  # fmt: skip
        over = stopped | (table.length[rows] >= table.limit[rows])
        for i in np.flatnonzero(over)[::-1]:
            self._finish(int(rows[i]), "stop" if stopped[i] else "length")
        if self.listener:  # last, so that it may cancel
            for number, new, count in zip(numbers, drawn_NQ, taken.tolist(), strict=True):
                self.listener(number, new[:count].tolist())

    def _stop_string(self, row: int, new: np.ndarray, stopped: bool) -> tuple[int, bool]:
        """How many new tokens stand until a stop string is whole, and whether the text has ended."""
        written, stops = self.table.written(row), self.table.requests[row].stop
        longest = max(len(stop.encode()) for stop in stops)  # a token may be as little as a byte
        for count in range(1, len(new) + 1):
            tail = (written + new[:count].tolist())[-(longest + 8) :]
            text = self.tokenizer.decode(tail, skip_special_tokens=True)
            if any(stop in text for stop in stops):
                return count, True
        return len(new), stopped

    def _finish(self, row: int, reason: FinishReason) -> None:
        """End the text of a row."""
        table = self.table
        number, written = int(table.number[row]), table.written(row)
        self._forget(number, table.text(row), int(table.prompt[row]), table.requests[row].group)
        forwards = int(table.forwards[row])
        self.scheduler.remove(row)
        self._complete(number, written, forwards, reason)

    def _forget(self, number: int, tokens: list[int], prompt: int, group: Hashable) -> None:
        if self.drafter is not None:
            self.drafter.finish(number, np.array(tokens, np.int32), prompt, group)

    def _complete(self, number: int, written: list[int], forwards: int, reason: FinishReason) -> None:
        self.deadlines.pop(number, None)
        logprobs = self.logprobs.pop(number, None)
        self.done[number] = Completion(written, reason, len(written) / max(1, forwards), logprobs)


def free_bytes(device: torch.device) -> int:
    """Memory that a cache could take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory_bytes() or 1 << 30
