"""Texts that say what they are: windows with attributes (language, domain, dialect, …), for audits by slice."""

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regear.core.errors import DataError
from regear.tasks.text import BUILTIN, WINDOW_BYTES, Document, Window, builtin_documents, cut, read_text

LEAST = 64  # bytes that the rest of a cut text must have to be scored
RESERVED = ("id", "cluster", "text", "weight")


@dataclass(frozen=True)
class Passage:
    """One window, its name, what it must be resampled with, and what is known of it."""

    id: str
    cluster: str
    window: Window
    attributes: Mapping[str, Any] = field(default_factory=dict)


def read_passages(files: Sequence[str | Path], split: str = "evaluation") -> list[Passage]:
    """Windows of text files, of `builtin`, or of JSONL rows `{text, …}` in which every further key is an attribute.

    Rows that agree in all keys but `text` and `weight` are read as one text, as elsewhere; so a row with an `id` stands
    alone. `cluster` names what is resampled together: by default the windows of one `id`, else each window. A window
    holds at most 2048 bytes; the rest of a longer text is kept from 64 bytes on. The attribute `file` is the file's
    name.

    Raises:
        DataError: a file is missing or no text, a row has no text, or two rows share an id.
    """
    texts: dict[str, tuple[str, dict[str, Any]]] = {}
    for file in files:
        if str(file) == BUILTIN:
            for document in builtin_documents(split):
                _add(texts, document.text, {"file": document.kind})
        elif Path(file).suffix == ".jsonl":
            _read_rows(Path(file).expanduser(), texts)
        else:
            path = Path(file).expanduser()
            _add(texts, read_text(path), {"file": path.name})
    passages = [passage for number, (text, keys) in enumerate(texts.values()) for passage in _cut(text, keys, number)]
    repeated = [name for name, count in Counter(p.id for p in passages).items() if count > 1]
    if repeated:
        raise DataError(f"ids stand more than once in the texts: {', '.join(repeated[:5])}; give each row its own")
    return passages


def _read_rows(path: Path, texts: dict[str, tuple[str, dict[str, Any]]]) -> None:
    ids: set[str] = set()
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, name = row["text"], row.get("id")
            if not isinstance(text, str) or not text.strip() or any(isinstance(x, list | dict) for x in row.values()):
                raise ValueError("wanted a text, and attributes that are single values")
            if name in ids:
                raise ValueError(f"the id {name!r} stands above already")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f'{path}, line {number}: wanted {{"text": …, "language": …}}; {error}') from None
        if name is not None:
            ids.add(name)
        keys = {key: value for key, value in row.items() if key not in ("text", "weight")}
        _add(texts, text, {"file": path.name} | keys)


def _add(texts: dict[str, tuple[str, dict[str, Any]]], text: str, keys: dict[str, Any]) -> None:
    place = json.dumps(keys, sort_keys=True)
    before = texts[place][0] + "\n\n" if place in texts else ""
    texts[place] = (before + text, keys)


def _cut(text: str, keys: dict[str, Any], number: int) -> list[Passage]:
    attributes = {key: value for key, value in keys.items() if key not in RESERVED}
    short = len(text.encode()) < WINDOW_BYTES
    windows = cut(Document(text, str(keys["file"])), WINDOW_BYTES, least=1 if short else LEAST)
    name = str(keys.get("id", f"{keys['file']}/{number}"))
    one = len(windows) == 1 and "id" in keys
    found = []
    for place, window in enumerate(windows):
        own = name if one else f"{name}/{place}"
        shared = keys.get("cluster", keys.get("id", own))
        found.append(Passage(own, str(shared), window, {"script": script_of(window.text)} | attributes))
    return found


def script_of(text: str) -> str:
    """The script of most letters and vowel signs, by the first word of their Unicode names: `latin`, `devanagari`, ….

    Japanese, which mixes three scripts, is `kana` where any kana stands among its letters; `none` without letters.
    """
    letters = [letter for letter in text if unicodedata.category(letter)[0] in "LM"]
    counts = Counter(unicodedata.name(letter, "unknown").split()[0].lower() for letter in letters)
    del counts["combining"]  # accents, of any script
    counts["kana"] = counts.pop("hiragana", 0) + counts.pop("katakana", 0)
    if counts["kana"]:
        counts["kana"] += counts.pop("cjk", 0)
    script, most = max(counts.items(), key=lambda pair: pair[1])
    return script if most else "none"
