"""Tables of methods. A row imports nothing until it is used, so listing methods costs no torch."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from regear.core.errors import RecipeError
from regear.core.recipe import Recipe, closest


@dataclass(frozen=True)
class Row:
    """One method: its name, its recipe model, where its code lives (`module:attribute`), one line of help."""

    name: str
    recipe: type[Recipe] | None
    target: str
    help: str

    def load(self) -> Any:
        """Import and return the implementation."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


class Table:
    """An ordered set of rows of one kind ("conversion", "collector", …)."""

    def __init__(self, kind: str, rows: list[Row]) -> None:
        self.kind = kind
        self.rows = {row.name: row for row in rows}

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())

    def __getitem__(self, name: str) -> Row:
        if name not in self.rows:
            raise RecipeError(f"unknown {self.kind} {name!r}{closest(name, self.rows)}; known: {', '.join(self.rows)}")
        return self.rows[name]
