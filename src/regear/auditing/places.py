"""Where an audit will write, looked at before any work: a model may take hours to score."""

import os
from pathlib import Path

from regear.auditing import ledger as trail
from regear.core.errors import DataError


def check_places(*, ledger: str | Path | None = None, report: str | Path | None = None) -> None:
    """Refuse a ledger that is broken, and places that cannot be written; makes nothing.

    Raises:
        BrokenLedger: the ledger does not hold together.
        DataError: a file where a folder should be, a folder where a file should be, or no permission.
    """
    if ledger is not None:
        place = Path(ledger)
        if place.is_dir():
            raise DataError(f"cannot write the ledger {place}: it is a folder; name a file, such as trail.jsonl")
        if place.exists():
            trail.read(place)
        _check(place, f"the ledger {place}")
    if report is not None:
        if Path(report).is_file():
            raise DataError(f"cannot write the report {report}: it is a file; name a folder")
        _check(Path(report), f"the report {report}")


def _check(place: Path, what: str) -> None:
    """Refuse a place where nothing can be made: what is there may not be written, or is a file and no folder."""
    there = next(part for part in (place.absolute(), *place.absolute().parents) if part.exists())
    if there != place.absolute() and not there.is_dir():
        raise DataError(f"cannot write {what}: {there} is a file; choose another place")
    if not os.access(there, os.W_OK):
        raise DataError(f"cannot write {what}: no permission for {there}; choose another place")
