"""Whether what trains also judges: passages that training texts share with evaluation windows."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from regear.tasks.text import Window
from regear.train.rows import open_sources

PASSAGE = 100


def shared_windows(training: Iterable[str], evaluation: Sequence[Window], passage: int = PASSAGE) -> int:
    """How many evaluation windows repeat a passage of the training texts.

    Texts are compared by runs of `passage` characters, whitespace aside: every shared run of twice that length is
    found, some shorter ones are, and none below `passage`.
    """
    windows: dict[str, set[int]] = {}
    for i, window in enumerate(evaluation):
        text = plain(window.text)
        for start in range(len(text) - passage + 1):
            windows.setdefault(text[start : start + passage], set()).add(i)
    found: set[int] = set()
    for text in map(plain, training):
        for start in range(0, len(text) - passage + 1, passage):
            found |= windows.get(text[start : start + passage], set())
    return len(found)


def texts_of(files: Sequence[str | Path], split: str = "training") -> Iterator[str]:
    """Every text of the training files, row by row: the strings and the messages' contents."""
    for source in open_sources(files, split):
        for _, row in source.rows():
            yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def plain(text: str) -> str:
    """A text with single spaces, as texts are compared."""
    return " ".join(text.split())
