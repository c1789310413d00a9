"""regear's suffix index as a side of the suffix index's benchmark, and what the other side has no call for."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from suffix_history import Texts
from suffix_measure import main, resident
from suffix_side import Call, fill

from regear._native import Index


class Regear:
    """The index, with settings of its own.

    Args:
        noise: whether guesses are drawn with the texts' own noise where it is known, as in the engine.
    """

    def __init__(self, noise: bool = False, **settings: object) -> None:
        self.index, self.noise = Index(**settings), noise
        self.ask()

    def ask(self, least: float = 0.0) -> None:
        self.least = least

    def start(self, number: int, group: bytes, prompt: np.ndarray, seed: int = -1) -> None:
        self.index.start(number, group, prompt, seed if self.noise and seed >= 0 else None)

    def call(self, number: int, tokens: np.ndarray) -> Call:
        if len(tokens) == 1:
            return self.index.append, number, int(tokens[0])
        return self.index.extend, number, tokens

    def propose(self, numbers: Sequence[int], known: Sequence[np.ndarray], most: np.ndarray) -> tuple:
        return self.index.propose(np.array(numbers), most, np.full(len(numbers), self.least))

    def guesses(self, proposed: tuple) -> list[Sequence[int]]:
        offsets, tokens, _ = proposed
        return [one.tolist() for one in np.split(tokens, offsets[1:-1])]

    def observe(self, numbers: Sequence[int], guessed: Sequence[int], kept: Sequence[int]) -> None:
        self.index.observe(np.array(numbers), np.array(guessed, np.int64), np.array(kept, np.int64))

    def finish(self, number: int) -> None:
        self.index.finish(number)

    def advance(self) -> None:
        self.index.advance()

    def held(self) -> dict[str, int]:
        return {"by_its_own_account": self.index.bytes}


def longest(make: type[Regear], job: dict) -> list[int]:
    """Lengths of the longest matches of texts in flight."""
    side, texts = make(**job["side"]), Texts.load(Path(job["texts"]))
    history = Texts.load(Path(job["history"]))
    fill(side, history, job["generations"])
    found, begun = [], {}
    for i, end in job["places"]:
        number, tokens = len(history.tokens) + i, np.concatenate([texts.prompts[i], texts.tokens[i]])
        if i not in begun:
            side.start(number, texts.groups[i], texts.prompts[i])
        side.index.extend(number, tokens[begun.get(i, len(texts.prompts[i])) : end])
        begun[i] = end
        found.append(side.index.matched(number))
    return found


def many(make: type[Regear], job: dict) -> dict[str, float]:
    """Appends of all texts in one call a round, which leaves the index's own work."""
    side, texts, chunk = make(**job["side"]), Texts.load(Path(job["history"])), job["chunk"]
    numbers = np.arange(len(texts.tokens))
    for i in numbers.tolist():
        side.start(i, texts.groups[i], texts.prompts[i])
    rounds = []
    for at in range(0, max(map(len, texts.tokens)), chunk):
        rows = [tokens[at : at + chunk] for tokens in texts.tokens]
        rounds.append((np.cumsum([0, *map(len, rows)]), np.concatenate(rows)))
    began = time.process_time()
    for offsets, tokens in rounds:
        side.index.extend_many(numbers, offsets, tokens)
    return {"us_a_token": 1e6 * (time.process_time() - began) / texts.count()}


def kept(make: type[Regear], job: dict) -> dict[str, float]:
    """Building an index from whole texts, saving it, and loading it again."""
    texts, found = Texts.load(Path(job["history"])), {}
    side, began = make(**job["side"]), time.process_time()
    fill(side, texts, job["generations"])
    found["build_seconds"] = time.process_time() - began
    began = time.process_time()
    saved = side.index.save()
    found["save_seconds"] = time.process_time() - began
    before, began = resident(), time.process_time()
    again = Index.load(saved)
    found["load_seconds"] = time.process_time() - began
    found["loaded_bytes"] = resident() - before
    size = len(saved)
    found |= {"bytes": size, "bytes_a_token": size / texts.count()}
    found |= {f"{what}_mb_a_second": size / 1e6 / found[f"{what}_seconds"] for what in ("save", "load")}
    if (again.tokens, again.groups) != (side.index.tokens, side.index.groups) or again.save() != saved:
        raise SystemExit("what was loaded is not what was saved")
    return found


if __name__ == "__main__":
    main(Regear, {"longest": longest, "many": many, "kept": kept})
