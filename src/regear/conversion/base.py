"""What a conversion is to the driver in `convert.py`: plan without weights, prepare, write, describe."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from regear.conversion.recipes import ConvertRecipe
from regear.core.report import Plot, Section
from regear.core.run import Progress
from regear.models.families import SourceSpec
from regear.models.load import pick_device
from regear.models.store import Store
from regear.tasks.text import Window

R = TypeVar("R", bound=ConvertRecipe)


@dataclass(frozen=True)
class Texts:
    """Windows and their token ids, by use."""

    windows: dict[str, list[Window]]
    ids: dict[str, list[list[int]]]

    def shared(self) -> int:
        """Evaluation windows whose text also serves calibration or selection."""
        seen = {window.text for use in ("calibration", "selection") for window in self.windows[use]}
        return sum(window.text in seen for window in self.windows["evaluation"])

    def tokens(self, use: str) -> int:
        """How many tokens a use holds."""
        return sum(map(len, self.ids[use]))


@dataclass(frozen=True)
class Plan:
    """What a conversion will make and take, known from headers alone: resident memory at its peak, scratch on disk
    while it runs, and what stays in the cache for later ratios."""

    kv_floats_before: int
    kv_floats_after: int
    parameters_before: int
    parameters_after: int
    output_bytes: int
    memory_bytes: int
    scratch_bytes: int
    cache_bytes: int
    facts: dict[str, Any] = field(default_factory=dict)


class Conversion(ABC, Generic[R]):
    """One change of architecture; a subclass is one file and one row of `CONVERSIONS`."""

    def __init__(self, store: Store, spec: SourceSpec, recipe: R, device: str = "auto") -> None:
        self.store, self.spec, self.recipe, self.device = store, spec, recipe, pick_device(device)

    @property
    @abstractmethod
    def format(self) -> str:
        """The name of the output's format."""

    @abstractmethod
    def plan(self) -> Plan:
        """Sizes, ranks and refusals, without reading a weight."""

    @abstractmethod
    def check_texts(self, texts: Texts, warn: Callable[[str], None]) -> None:
        """Refuse texts that are too short for this conversion, warn of thin ones."""

    @abstractmethod
    def prepare(self, texts: Texts, place: Path, progress: Progress) -> dict[str, Any]:
        """Calibrate, factorise and choose; durable under `place`. Returns what was chosen, for the record."""

    @abstractmethod
    def write(self, staging: Path, progress: Progress) -> None:
        """Write weights, config and modelling code into `staging`, each file atomically."""

    def accept(self, measured: dict[str, Any]) -> None:
        """Raise if what was measured on the written checkpoint shows a fault; by default nothing does."""

    def settings(self) -> dict[str, Any]:
        """What the card names as this conversion's settings."""
        recipe: Any = self.recipe
        return recipe.convert.model_dump(mode="json", exclude_none=True, exclude={"to"})  # type: ignore[no-any-return]

    @abstractmethod
    def explain(self) -> tuple[list[Section], list[Plot]]:
        """Tables for the card and the report, and plots for the report, about what was done inside."""
