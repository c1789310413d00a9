"""A run's metrics for TensorBoard, beside `metrics.jsonl`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from regear.core.errors import RecipeError


class Board:
    """Writes the numbers of every training step as event files into a folder.

    Raises:
        RecipeError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RecipeError("--tensorboard needs tensorboard: pip install 'regear[train]'") from None
        self.open: Callable[..., Any] = lambda: SummaryWriter(str(folder))
        self.writer: Any = None

    def beside(self, log: Callable[..., None]) -> Callable[..., None]:
        """`log`, and the same rows here: one curve a number and stage, against steps."""

        def both(event: str, **values: Any) -> None:
            log(event, **values)
            if event == "step":
                self._step(**values)

        return both

    def _step(self, stage: int, step: int, **values: Any) -> None:
        self.writer = self.writer or self.open()
        for name, value in values.items():
            if name != "steps" and isinstance(value, int | float):
                self.writer.add_scalar(f"stage {stage + 1}/{name}", value, step)
        self.writer.flush()
