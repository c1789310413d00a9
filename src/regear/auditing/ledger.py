"""The sign-off trail: one JSON line an entry, chained by SHA-256.

An entry's `digest` is the SHA-256 of its own canonical JSON without it, in which `previous` is the digest of the entry
before (64 zeros at first). Any edited byte, and any entry removed, inserted or moved, breaks the chain at a line that
`verify` names. What a chain alone cannot show: a tail cut off, or rewritten to its end with digests made anew. For
that, keep the head that every append returns elsewhere, and give it to `verify`.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from regear.auditing.cells import K
from regear.auditing.suppress import export
from regear.core.errors import DataError, RecipeError
from regear.core.files import digest, sync_folder

START = "0" * 64
DECISIONS = ("approve", "reject", "waive")
THRESHOLDS = ("slice", "metric", "margin", "verdict", "asked_by", "outcome", "reason")
FIGURES = ("slice", "metric", "n", "before", "after", "effect", "ci", "verdict")
Entry = dict[str, Any]


class BrokenLedger(DataError):
    """A ledger that does not hold together: a check that failed, hence exit code 1."""

    exit_code = 1


def canonical(entry: Mapping[str, Any]) -> bytes:
    """The one way in which an entry is written, without the end of its line."""
    return json.dumps(entry, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def read(path: str | Path, *, head: str | None = None) -> list[Entry]:
    """The entries of a ledger that holds together.

    Args:
        path: the ledger.
        head: the digest that its last entry must have.

    Raises:
        DataError: no such file.
        BrokenLedger: naming the first line that is not as it was written.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"no ledger {path} ({error.strerror}); audit with --ledger, or give an existing file") from None
    entries = _checked(content, path)
    last = entries[-1]["digest"] if entries else START
    if head is not None and last != head.strip().lower():
        raise BrokenLedger(
            f"{path}: its last entry (line {len(entries)}) is {last}, wanted {head}; "
            "entries at the end were removed, added or rewritten since that head was noted"
        )
    return entries


def verify(path: str | Path, *, head: str | None = None) -> Entry:
    """`{entries, head, audits, decisions}` of a ledger that holds together; raises as `read`."""
    entries = read(path, head=head)
    kinds = [entry["kind"] for entry in entries]
    last = entries[-1]["digest"] if entries else START
    return {"entries": len(entries), "head": last, "audits": kinds.count("audit"), "decisions": kinds.count("sign")}


def _checked(content: bytes, path: str | Path) -> list[Entry]:
    *lines, tail = content.split(b"\n")
    entries: list[Entry] = []
    previous = START
    for number, line in enumerate(lines, 1):
        entry = _entry(line, number, path)
        if entry["previous"] != previous:
            raise BrokenLedger(f"{path}: line {number} {_displaced(entry, number)}; restore the ledger from a copy")
        previous = entry["digest"]
        entries.append(entry)
    if tail:
        raise BrokenLedger(
            f"{path}: line {len(lines) + 1} is half-written, as a crash leaves it; the {len(lines)} lines before it "
            f"hold together: cut the file to its first {len(content) - len(tail)} bytes"
        )
    return entries


def _entry(line: bytes, number: int, path: str | Path) -> Entry:
    """A line's entry, if the line is what `append` would write."""
    try:
        entry = json.loads(line)
        fine = canonical(entry) == line and entry["digest"] == _digest(entry)
        fine = fine and isinstance(entry["entry"], int) and {"kind", "previous", "time"} <= entry.keys()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        fine = False
    if not fine:
        raise BrokenLedger(f"{path}: line {number} was edited or damaged; restore the ledger from a copy")
    return entry


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({name: value for name, value in entry.items() if name != "digest"})).hexdigest()


def _displaced(entry: Entry, number: int) -> str:
    if entry["entry"] == number:
        return "does not follow from the line before it, which was replaced"
    lost = "lines before it were removed" if entry["entry"] > number else "lines were inserted or moved"
    return f"holds entry {entry['entry']}: {lost}"


def append(path: str | Path, kind: str, content: Mapping[str, Any], *, now: datetime | None = None) -> str:
    """Add one entry, durably and excluding other writers; returns the new head.

    Raises:
        BrokenLedger: the ledger does not hold together; nothing is added to such a one.
        DataError: it cannot be written.
    """
    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(place, "a+b", buffering=0) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.seek(0)
            before = handle.read()
            entries = _checked(before, place)
            entry = _next(entries, kind, content, now or datetime.now(UTC))
            _write(handle, canonical(entry) + b"\n", len(before))
        if not before:
            sync_folder(place.parent)
    except OSError as error:
        raise DataError(f"cannot write the ledger {place}: {error.strerror}; check the path and the room") from None
    return str(entry["digest"])


def _next(entries: list[Entry], kind: str, content: Mapping[str, Any], now: datetime) -> Entry:
    previous = entries[-1]["digest"] if entries else START
    time = now.astimezone(UTC).isoformat(timespec="seconds")
    if kind == "sign":
        content = {**content, "of": _last_audit(entries)}
    entry = {**content, "entry": len(entries) + 1, "kind": kind, "previous": previous, "time": time}
    # What a reader will get: tuples are lists, and a number that is none is null.
    plain = json.loads(json.dumps(entry, default=str), parse_constant=lambda _: None)
    return {**plain, "digest": _digest(plain)}


def _last_audit(entries: list[Entry]) -> int:
    audits = [entry["entry"] for entry in entries if entry["kind"] == "audit"]
    if not audits:
        raise RecipeError("the ledger holds no audit to decide on; audit with --ledger first")
    return int(audits[-1])


def _write(handle: Any, line: bytes, size: int) -> None:
    """The whole line or nothing of it, where the system lets us take it back."""
    try:
        if handle.write(line) != len(line):
            raise OSError(errno.ENOSPC, "no room for the whole entry")
        os.fsync(handle.fileno())
    except OSError:
        os.ftruncate(handle.fileno(), size)
        raise


def append_audit(path: str | Path, result: Mapping[str, Any], *, k: int = K, now: datetime | None = None) -> str:
    """Record an audit: what it read, with what, how it was judged; small groups are withheld here too.

    Args:
        path: the ledger.
        result: of the audit, with what `gates.judge` says of it where there are gates.
        k: slices below so many units are withheld.
        now: the time to write down.

    Returns the new head.
    """
    shown = export(result, k)
    names = ("kind", "before", "after", "inputs", "versions", "seed", "level", "resamples", "units", "metrics", "gate")
    content = {name: shown[name] for name in names if name in shown}
    content["result"] = identity(result)
    content["verdict_counts"] = counts(result)
    content["gates"] = [{name: row.get(name) for name in THRESHOLDS} for row in shown["gates"]]
    content["set_by"] = result.get("set_by", "")
    content["waivers"] = shown["waivers"]
    content["verdicts"] = [{name: row.get(name) for name in FIGURES} for row in [*shown["overall"], *shown["verdicts"]]]
    return append(path, "audit", content, now=now)


def identity(result: Mapping[str, Any]) -> str:
    """The digest by which a ledger knows a result."""
    return digest(json.loads(json.dumps(dict(result), default=str)))


def counts(result: Mapping[str, Any]) -> dict[str, int]:
    """How many slices have each verdict, all metrics counted."""
    words = [row["verdict"] for row in result["verdicts"]]
    return {word: words.count(word) for word in ("harm", "no_harm", "undetermined")}


def sign(
    path: str | Path, *, name: str, role: str, decision: str, comment: str = "", now: datetime | None = None
) -> str:
    """Record who decided what about the latest audit; returns the new head.

    Raises:
        RecipeError: no name or role, another decision, or no audit to decide on.
        BrokenLedger: the ledger does not hold together.
        DataError: no such ledger.
    """
    if decision not in DECISIONS:
        raise RecipeError(f"found decision {decision!r}; wanted one of {', '.join(DECISIONS)}")
    if not name.strip() or not role.strip():
        raise RecipeError("found no name or no role; a decision needs both: --name and --role")
    if decision == "waive" and not comment.strip():
        raise RecipeError("found no comment; a decision to waive needs its reason: --comment")
    read(path)
    return append(path, "sign", {"name": name, "role": role, "decision": decision, "comment": comment}, now=now)


def history(path: str | Path, metric: str, where: Mapping[str, Any]) -> list[Entry]:
    """The verdicts on one slice and metric over all audits, oldest first: `{entry, time, effect, low, high, …}`."""
    found = []
    for entry in read(path):
        for row in entry.get("verdicts", ()) if entry["kind"] == "audit" else ():
            if row["metric"] == metric and row["slice"] == dict(where):
                low, high = row["ci"] or (None, None)
                figures = {name: row[name] for name in ("n", "before", "after", "effect", "verdict")}
                found.append({"entry": entry["entry"], "time": entry["time"], "low": low, "high": high, **figures})
    return found
