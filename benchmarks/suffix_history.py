"""The texts of the suffix index's benchmark: what was written before, group by group, and what is written next.

Edited: a group is one file of Python's standard library, its texts are copies of it with edits of their own, as
samples of one prompt are alike. Real: rollouts of several epochs, one JSON object a line. Needs numpy alone, for it is
read by processes of other environments too.
"""

import itertools
import json
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

PROMPT = 64  # tokens of a group's file that come before its texts, and are not edited
SPAN = 8  # tokens of the longest edit
MEAN = 2.5  # of an edit, about


@dataclass(frozen=True)
class Texts:
    """Texts in the order they are written; `epochs` ascend. One int32 array of tokens a prompt and a text.

    `seeds` are of the noise that texts were drawn with, -1 where it is not known.
    """

    epochs: list[int]
    groups: list[bytes]
    prompts: list[np.ndarray]
    tokens: list[np.ndarray]
    seeds: list[int]

    def count(self) -> int:
        """Tokens, without the prompts'."""
        return sum(map(len, self.tokens))

    def where(self, epoch: int) -> list[int]:
        return [i for i, one in enumerate(self.epochs) if one == epoch]

    def first(self, count: int) -> "Texts":
        return Texts(*(getattr(self, field.name)[:count] for field in fields(self)))

    def save(self, path: Path) -> None:
        found = {"epochs": np.array(self.epochs), "groups": np.array(self.groups, dtype=bytes)}
        found["seeds"] = np.array([str(seed) for seed in self.seeds])
        for name, rows in (("prompts", self.prompts), ("tokens", self.tokens)):
            found[name] = np.concatenate([np.empty(0, np.int32), *rows])
            found[f"{name}_at"] = np.cumsum([0, *map(len, rows)])
        np.savez(path, **found)

    @classmethod
    def load(cls, path: Path) -> "Texts":
        with np.load(path) as found:
            rows = [np.split(found[name], found[f"{name}_at"][1:-1]) for name in ("prompts", "tokens")]
            rows = [[np.ascontiguousarray(one, np.int32) for one in part] for part in rows]
            return cls(
                found["epochs"].tolist(), found["groups"].tolist(), *rows, [int(seed) for seed in found["seeds"]]
            )


def sources(
    encode: Callable[[str], Sequence[int]], count: int, length: int, file: Path | None = None
) -> list[np.ndarray]:
    """The first `length` tokens of `count` files of the standard library, spread over those that are long enough.

    Of pieces of one `file` instead, where it is given.

    Raises:
        ValueError: too few of them.
    """
    if file:
        ids = np.array(encode(file.read_text(encoding="utf-8")), np.int32)
        found = [ids[i * length :][:length] for i in range(len(ids) // length)][:count]
    else:
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = sorted(root.glob("*.py")) + sorted(
            path for path in root.glob("[a-su-z]*/*.py") if path.parts[-2] != "site-packages"
        )
        large = [path for path in paths if path.stat().st_size > 5 * length]
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in large[:: max(1, len(large) // count)])
        rows = (np.array(encode(text[: 8 * length])[:length], np.int32) for text in texts)
        found = list(itertools.islice((ids for ids in rows if len(ids) == length), count))
    if len(found) < count:
        raise ValueError(f"{len(found)} texts of {length} tokens; wanted {count}: take shorter ones")
    return found


def edited(tokens: np.ndarray, share: float, length: int, generator: np.random.Generator) -> np.ndarray:
    """A copy cut to `length`, with about `share` of its tokens replaced, dropped, moved, or new ones between them."""
    starts = np.flatnonzero(generator.random(len(tokens)) < share / MEAN)
    kinds = generator.integers(0, 4, len(starts))
    spans = np.minimum(generator.geometric(1 / MEAN, len(starts)), SPAN)
    parts, at = [], 0
    for start, kind, span in zip(starts.tolist(), kinds.tolist(), spans.tolist(), strict=True):
        if start < at:
            continue
        parts.append(tokens[at:start])
        at = start if kind == 2 else start + span
        if kind in (0, 2):  # replaced, or new
            parts.append(generator.choice(tokens, span))
        elif kind == 3:  # this span after the next one
            parts += [tokens[start + span : start + 2 * span], tokens[start : start + span]]
            at = start + 2 * span
    found = np.concatenate([*parts, tokens[at:]])
    return found[:length].astype(np.int32)


def edited_history(
    encode: Callable[[str], Sequence[int]],
    groups: int,
    siblings: int,
    length: int,
    held: int,
    seed: int,
    share: float = 0.1,
    file: Path | None = None,
) -> tuple[Texts, Texts]:
    """History of `siblings` texts a group, two an epoch; and `held` texts more that go on from it, in turn by group."""
    files = sources(encode, groups, PROMPT + length + length // 4 + 2 * SPAN, file)
    parts = []
    for first, count in ((0, groups * siblings), (groups * siblings, held)):
        numbers = range(first, first + count)
        rows = [edited(files[i % groups][PROMPT:], share, length, np.random.default_rng([seed, i])) for i in numbers]
        epochs = [(i - first) // groups // 2 if not first else 0 for i in numbers]
        names = [f"group {i % groups}".encode() for i in numbers]
        parts.append(Texts(epochs, names, [files[i % groups][:PROMPT] for i in numbers], rows, [-1] * count))
    return parts[0], parts[1]


def rollouts(path: Path) -> Texts:
    """Rows of `{"epoch", "group", "sample", "prompt": [id, …], "tokens": [id, …]}`, sorted by the first three.

    A row may have the `seed` of its request, which is that of its noise.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = sorted((row for row in rows if row["tokens"]), key=lambda row: (row["epoch"], row["group"], row["sample"]))
    return Texts(
        [row["epoch"] for row in rows],
        [str(row["group"]).encode() for row in rows],
        [np.array(row["prompt"], np.int32) for row in rows],
        [np.array(row["tokens"], np.int32) for row in rows],
        [int(row.get("seed", -1)) for row in rows],
    )
