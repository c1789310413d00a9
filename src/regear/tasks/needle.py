"""A needle in filler: a fact planted in real text, asked for at the end, among facts of the same form.

Every item plants four facts, so that copying any number is not enough: the options are the four planted numbers, and
blind guessing is right one time in four. Everything follows from the seed, the length and the item's number.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regear.core.errors import DataError
from regear.tasks.text import Document

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
OPTIONS = 4
PLACES = (
    *("Lisbon", "Oslo", "Vienna", "Prague", "Athens", "Dublin", "Warsaw", "Madrid"),
    *("Cairo", "Lima", "Tokyo", "Delhi", "Seoul", "Havana", "Quito", "Nairobi"),
)


@dataclass(frozen=True)
class NeedleItem:
    """A prompt of at most `length` tokens, the options as token ids, and the index of the planted one asked for."""

    length: int
    depth: float
    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    answer: int


def sentences_of(documents: Sequence[Document]) -> list[str]:
    """The texts in pieces that end where sentences or paragraphs end, in order."""
    pieces = [p for d in documents for p in re.split(r"(?<=[.!?])\s+|\n\s*\n", d.text)]
    return [piece.strip() for piece in pieces if piece.strip()]


def needles(
    documents: Sequence[Document], tokenizer: Any, length: int, *, items: int = 10, seed: int = 0
) -> list[NeedleItem]:
    """Items whose prompt and answer fill at most `length` tokens, and nearly so; the depths take turns.

    Raises:
        DataError: the text is shorter than the length, or the length too short for the facts.
    """
    sentences = sentences_of(documents)
    sizes = [len(tokenizer(" " + s, add_special_tokens=False)["input_ids"]) for s in sentences]
    return [
        _item(sentences, sizes, tokenizer, length, DEPTHS[i % len(DEPTHS)], random.Random(f"{seed} {length} {i}"))
        for i in range(items)
    ]


def _item(
    sentences: Sequence[str], sizes: Sequence[int], tokenizer: Any, length: int, depth: float, draw: random.Random
) -> NeedleItem:
    names, numbers = draw.sample(PLACES, OPTIONS), [str(n) for n in draw.sample(range(10000, 100000), OPTIONS)]
    facts = [f"The secret number of {name} is {number}." for name, number in zip(names, numbers, strict=True)]
    answer = draw.randrange(OPTIONS)
    question = f"\n\nThe secret number of {names[answer]} is"
    options = [tuple(tokenizer(" " + n, add_special_tokens=False)["input_ids"]) for n in numbers]
    start = draw.randrange(len(sentences))
    places = [draw.random() for _ in facts]
    places[answer] = depth
    room = length - max(map(len, options))
    count = _fitting(sizes, start, room)
    while count >= 0:
        filler = [sentences[(start + i) % len(sentences)] for i in range(count)]
        order = sorted(range(OPTIONS), key=lambda i: -places[i])
        for i in order:  # from the back, so that the earlier places stay where they are
            filler.insert(round(places[i] * count), facts[i])
        prompt = tokenizer(" ".join(filler) + question)["input_ids"]
        if len(prompt) <= room:
            return NeedleItem(length, depth, tuple(prompt), tuple(options), answer)
        count -= max(1, (len(prompt) - room) // 40)
    raise DataError(f"{length} tokens hold no needle, its rivals and a question; give a longer context")


def _fitting(sizes: Sequence[int], start: int, room: int) -> int:
    """How many sentences from `start` on, going round once, may fit."""
    total = 0
    for count in range(len(sizes)):
        total += sizes[(start + count) % len(sizes)]
        if total > room:
            return count
    raise DataError(f"the text holds {total:,} tokens of filler; wanted {room:,}; give more text or a shorter context")
