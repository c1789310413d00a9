"""A run: the directory `OUT.run` beside an output, where long work is made durable until the output appears.

It holds the resolved recipe, `metrics.jsonl`, the reports, and every clock and path. The output is built in
`OUT.run/staging` and appears by one rename, so a killed run leaves no half-written output.
"""

import fcntl
import json
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from regear.core.errors import CheckpointError, RegearError
from regear.core.files import write_json
from regear.core.machine import describe

Progress = Callable[[str, int, int], None]


def silent(stage: str, step: int, steps: int) -> None:
    """Progress for nobody."""


def existing_output(out: Path) -> str | None:
    """The fingerprint of a finished output at `out`; None if nothing is there, "" if it is no output of ours."""
    if not out.exists() and not out.is_symlink():
        return None
    try:
        return str(json.loads((out / "regear.json").read_text())["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def is_done(out: Path, fingerprint: str, *, force: bool) -> bool:
    """Whether `out` already holds exactly this result; asked before a `Run` begins.

    Raises:
        CheckpointError: another result is there, or trained steps of one that was not finished, and `force` was not
            given; or something that regear did not make, which is never replaced.
    """
    found = existing_output(out)
    if found == "":
        raise CheckpointError(
            f"{out} already holds something else, which regear will not replace; choose another output"
        )
    if found == fingerprint and not force:
        return True
    if found is not None and not force:
        raise CheckpointError(
            f"{out} already holds a result of another model, text, recipe or version; "
            "choose another output, or pass --force to replace it"
        )
    if not force:
        _check_unfinished(out.with_name(out.name + ".run"), fingerprint)
    return False


def _check_unfinished(directory: Path, fingerprint: str) -> None:
    """Trained steps of another fingerprint may be hours of work, and a run would drop them."""
    state = directory / "run.json"
    if not state.exists() or not _holds_files(directory / "kept" / "training"):
        return
    begun = json.loads(state.read_text())
    if begun.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"{directory} holds unfinished training of another model, text, recipe or version; give the words that "
            f"began it again to finish it ({shlex.join(begun.get('command', ()))}), choose another output, or pass "
            "--force to drop it"
        )


def _holds_files(place: Path) -> bool:
    """Whether a whole file lies there; names that begin with a point are half-written."""
    return any(
        path.is_file() and not any(part.startswith(".") for part in path.relative_to(place).parts)
        for path in place.rglob("*")
    )


def check_apart(out: Path, source: Path) -> None:
    """Refuse an output that is, holds, or lies inside the directory it is made from.

    Raises:
        CheckpointError: they overlap.
    """
    here, there = out.resolve(), source.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise CheckpointError(f"the output {out} overlaps the model's own directory {source}; choose another output")


class Run:
    """Work towards `out`, exclusive to this process and resumable under the same fingerprint.

    `staging` becomes the output; `work` holds what else a restart goes on from, and ends with the run. `scratch` is
    for what any process makes again. A mistake removes the directory only if no file in `staging` or `work` is whole.
    """

    def __init__(self, out: Path, fingerprint: str, recipe: dict[str, Any]) -> None:
        self.out, self.fingerprint, self.recipe = out, fingerprint, recipe
        self.directory = out.with_name(out.name + ".run")
        self.staging = self.directory / "staging"
        self.work = self.directory / "kept"
        self.scratch = self.directory / "scratch"
        self.started = time.monotonic()

    def __enter__(self) -> Self:
        self.fresh = not self.directory.exists()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make {self.directory}: {error.strerror}; choose another output") from None
        self.lock = open(self.directory / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.close()
            raise CheckpointError(f"another process is writing {self.out}; wait for it, or choose another") from None
        shutil.rmtree(self.scratch, ignore_errors=True)  # of a process that was killed; another model's, perhaps
        state = self.directory / "run.json"
        if state.exists() and json.loads(state.read_text()).get("fingerprint") != self.fingerprint:
            shutil.rmtree(self.staging, ignore_errors=True)
            shutil.rmtree(self.work, ignore_errors=True)
        self.staging.mkdir(exist_ok=True)
        self._trim_metrics()
        write_json(state, {"fingerprint": self.fingerprint, "command": sys.argv, **describe()})
        write_json(self.directory / "recipe.json", self.recipe)
        return self

    def log(self, event: str, **values: Any) -> None:
        """Append one line to `metrics.jsonl`.

        Raises:
            CheckpointError: it cannot be written.
        """
        row = {"event": event, "seconds": round(time.monotonic() - self.started, 3), **values}
        try:
            with open(self.directory / "metrics.jsonl", "a", encoding="utf-8") as handle:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.directory / 'metrics.jsonl'}: {error.strerror}; make room and give the "
                "same command again: it goes on from its last durable step"
            ) from None

    def publish(self) -> None:
        """Give the staged output its name in one rename; an older output makes way only now."""
        for half in self.staging.glob(".*.tmp"):  # of a process that was killed while it wrote
            half.unlink()
        old = self.directory / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            os.replace(self.out, old)
        os.replace(self.staging, self.out)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def _trim_metrics(self) -> None:
        """A run that goes on from nothing starts its metrics anew; else a line that was cut off at the end goes."""
        path = self.directory / "metrics.jsonl"
        if not self._durable():
            path.unlink(missing_ok=True)
        elif path.exists():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)

    def _durable(self) -> bool:
        """Whether a restart would go on from something."""
        return _holds_files(self.staging) or _holds_files(self.work)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.lock.close()
        mistake = isinstance(error, (RegearError, OSError))
        if isinstance(error, Exception) and not mistake:
            trace = self.directory / "trace.txt"
            trace.write_text("".join(traceback.format_exception(error)))
            error.add_note(f"trace: {trace}")
        if mistake and self.fresh and not self._durable():
            shutil.rmtree(self.directory, ignore_errors=True)
