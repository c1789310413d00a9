"""A small model of the same vocabulary guesses, with the engine's own noise.

Guess and draw are maxima of two models' scores with the same noise on both: they are the same token nearly as often as
two samplers of these distributions can be (Gumbel coupling: Daliri et al., arXiv 2408.07978). At temperature 0 they are
where the two models' best tokens are.
"""

import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regear.core.errors import IncompatibleModel, RecipeError
from regear.engine import sampler
from regear.engine.drafters.base import NOTHING, Array, Outcome, Target, Text, Tokens
from regear.engine.drafters.seats import Seats
from regear.engine.runner import AttentionRunner
from regear.engine.sampler import Places
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer

PIECE = 128  # tokens of one text read at a time
LEVEL = 8  # unread tokens of a text that are read together with those of others
PATIENCE = 1.0  # seconds of a call that go into reading what is not read yet
CACHE = 256 << 20  # bytes


class ModelDrafter:
    """Reads what its texts have become, then guesses one token after the other, all texts in one pass.

    A text of which much is unread is read on for a while at every call, and is guessed for when that is done.

    Args:
        vocabulary: guesses are ids below it.
        cache_bytes: what its cache may take; texts for which there is no room get no guess.
    """

    def __init__(self, model: Any, vocabulary: int, *, cache_bytes: int = CACHE, packed: bool = True) -> None:
        self.runner, self.vocabulary = AttentionRunner(model, packed=packed), vocabulary
        self.seats = Seats(self.runner, cache_bytes // max(1, self.runner.bytes_per_token))

    def propose(self, texts: Sequence[Text], most: Array) -> list[Tokens]:
        """The tokens it would draw itself."""
        guesses = [NOTHING] * len(texts)
        asked = [i for i, count in enumerate(most.tolist()) if count > 0]
        if not asked:
            return guesses
        seated = self.seats.seat([texts[i] for i in asked], LEVEL + int(most.max()))
        places = {row: asked[i] for i, row in seated}
        self._read_on({row: texts[i].tokens for row, i in places.items()})
        unread = {row: texts[i].tokens[self.seats.read[row] :] for row, i in places.items()}
        ready = {row: new for row, new in unread.items() if len(new) <= LEVEL}
        for row, guess in self._draft(ready, {row: texts[places[row]] for row in ready}, most, places).items():
            guesses[places[row]] = np.array(guess, np.int32)
        return guesses

    def _read_on(self, tokens: dict[int, Tokens]) -> None:
        """Read the rows that are far behind, for as long as patience lasts."""
        end = time.monotonic() + PATIENCE
        for row, known in tokens.items():
            while len(known) - (start := self.seats.read[row]) > LEVEL and time.monotonic() < end:
                self._pass({row: known[start : min(start + PIECE, len(known) - 1)]}, [])

    def _draft(
        self, new: dict[int, Tokens], texts: dict[int, Text], most: Array, places: dict[int, int]
    ) -> dict[int, list[int]]:
        """Guesses of the rows that have little left to read."""
        guesses: dict[int, list[int]] = {row: [] for row in new}
        while rows := [row for row in sorted(new) if len(guesses[row]) < most[places[row]]]:
            logits = self._pass({row: new[row] for row in rows}, rows)
            where = places_of([texts[row] for row in rows], [guesses[row] for row in rows])
            drawn = sampler.choose(logits[:, : self.vocabulary], where).tolist()
            for row, token in zip(rows, drawn, strict=True):
                guesses[row].append(token)
                new[row] = np.array([token], np.int32)
        return guesses

    def _pass(self, new: dict[int, Tokens], wanted: Sequence[int]) -> torch.Tensor:
        """Read new tokens into rows; scores after the last one of each wanted row, in the order of rows."""
        first, last = min(new), max(new)
        counts = np.array([len(new.get(row, NOTHING)) for row in range(first, last + 1)])
        starts = np.array(self.seats.read[first : last + 1])
        tokens = np.zeros((len(counts), counts.max()), np.int32)
        last_ones = np.zeros(tokens.shape, bool)
        for row, own in new.items():
            tokens[row - first, : len(own)] = own
            self.seats.took(row, own)
        for row in wanted:
            last_ones[row - first, counts[row - first] - 1] = True
        return self.runner.read(first, tokens, counts, starts, last_ones)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing is learnt; what a text has become is seen at the next call."""

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """Free the text's row."""
        self.seats.leave(number)


def places_of(texts: Sequence[Text], guesses: Sequence[list[int]]) -> Places:
    """The places after texts and the guesses that follow them, as the engine samples them."""
    requests = [text.request for text in texts]
    positions = [len(text.tokens) + len(guess) for text, guess in zip(texts, guesses, strict=True)]
    before = {
        i: (text.request, text.prompt, np.concatenate([text.tokens, np.array(guesses[i], np.int32)]))
        for i, text in enumerate(texts)
        if text.request.penalised
    }
    return Places(
        np.array([request.seed & 0xFFFFFFFFFFFFFFFF for request in requests], np.uint64),
        np.array(positions),
        np.array([request.temperature for request in requests], np.float64),
        np.array([request.top_p for request in requests], np.float64),
        np.array([request.top_k for request in requests], np.int64),
        np.array([request.min_p for request in requests], np.float64),
        before,
    )


def open_model(argument: str, target: Target) -> ModelDrafter:
    """The drafter of `model:DIR`.

    Raises:
        RecipeError: no model is named.
        IncompatibleModel: its vocabulary is another.
    """
    if not argument:
        raise RecipeError("--draft model: names no model; give model:DIR, a directory, hub id or embedded name")
    path = resolve(argument)
    check_vocabulary(path, target)
    model = load_model(path, str(target.model.device))
    if target.tokenizer is None and size_of(model) != size_of(target.model):
        raise IncompatibleModel(
            f"the drafter predicts {size_of(model)} tokens and the model {size_of(target.model)}; wanted one vocabulary"
        )
    return ModelDrafter(model, size_of(target.model))


def check_vocabulary(drafter: Path, target: Target) -> None:
    """Refuse a drafter whose tokens mean something else; sizes may differ by padding alone.

    Raises:
        IncompatibleModel: another vocabulary.
    """
    if target.tokenizer is None:
        return
    mine, theirs = load_tokenizer(drafter).get_vocab(), target.tokenizer.get_vocab()
    if mine != theirs:
        differing = len(set(mine.items()) ^ set(theirs.items()))
        raise IncompatibleModel(
            f"the drafter's vocabulary ({len(mine)} tokens) and the model's ({len(theirs)}) differ in {differing} "
            "entries; wanted a drafter of the same tokenizer"
        )


def size_of(model: Any) -> int:
    """How many tokens a model predicts."""
    return int(model.config.get_text_config().vocab_size)
