"""Progress bars: on a terminal, and nowhere else."""

import sys
from types import TracebackType
from typing import Any, Self


class Bars:
    """Told a stage, the step done and how many there are; draws one bar a stage on standard error."""

    def __init__(self, *, quiet: bool) -> None:
        self.shown = sys.stderr.isatty() and not quiet
        self.bars: Any = None
        self.stages: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self.shown:
            from rich.console import Console
            from rich.progress import Progress

            self.bars = Progress(console=Console(stderr=True), transient=True)
            self.bars.start()
        return self

    def __call__(self, stage: str, step: int, steps: int) -> None:
        if self.bars is None:
            return
        if stage not in self.stages:
            self.stages[stage] = self.bars.add_task(stage, total=steps)
        self.bars.update(self.stages[stage], completed=step, total=steps)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.bars is not None:
            self.bars.stop()
