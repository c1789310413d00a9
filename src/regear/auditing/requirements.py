"""The gates file: which slices must not be harmed, by how much, and who waived what until when."""

from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from regear.core.errors import RecipeError
from regear.core.recipe import Recipe, closest, read_yaml, validate

ANY = "*"


class Requirement(Recipe):
    """One slice (or every one, with `*` as the value; `{}` is all units), one metric, and the verdict it must have."""

    slice: dict[str, Any] = Field(default_factory=dict)
    metric: str
    margin: float | str | None = None
    verdict: Literal["no_harm", "not_harm"] = "no_harm"

    @field_validator("margin")
    @classmethod
    def _positive(cls, value: float | str | None) -> float | str | None:
        try:
            fine = value is None or 0 < float(str(value).removesuffix("%")) < float("inf")
        except ValueError:
            fine = False
        if not fine:
            raise ValueError(f"found {value!r}; wanted a positive number, or a percentage such as 2%")
        return value


class Waiver(Recipe):
    """Someone's word that one slice may miss its requirement, up to and including the day it expires."""

    slice: dict[str, Any]
    metric: str
    owner: str = Field(min_length=1)
    role: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    expires: date

    @field_validator("slice")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if ANY in value.values():
            raise ValueError("found '*' in a waiver; name the slice: a waiver covers nobody that it does not name")
        return value


class Gates(Recipe):
    """The file: requirements, waivers, and who set the thresholds."""

    set_by: str = ""
    require: list[Requirement] = Field(default_factory=list)
    waivers: list[Waiver] = Field(default_factory=list)


def load(path: str | Path) -> Gates:
    """Read `gates.yaml`.

    Raises:
        RecipeError: no such file, or one that is not as described, in one line with the nearest known key.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise RecipeError(f"no gates file {place}; give an existing YAML file to --gates")
    return validate(Gates, read_yaml(place))


def check(gates: Gates, dimensions: Iterable[str], metrics: Iterable[str], *, sensitive: bool = False) -> None:
    """Refuse gates that name what the audit will not measure, before any work.

    Args:
        gates: as loaded.
        dimensions: names that slices may have.
        metrics: names of metrics.
        sensitive: whether a dimension is sensitive, which requires something even if the file does not.

    Raises:
        RecipeError: an unknown metric or dimension, or gates that require nothing.
    """
    known = {"dimension": list(dimensions), "metric": list(metrics)}
    named: list[Requirement | Waiver] = [*gates.require, *gates.waivers]
    for row in named:
        for kind, names in (("metric", [row.metric]), ("dimension", list(row.slice))):
            for name in names:
                if name not in known[kind]:
                    raise RecipeError(
                        f"gates: no {kind} {name!r} in this audit{closest(name, known[kind])}; "
                        f"it has: {', '.join(known[kind]) or 'none'}"
                    )
    if not gates.require and not sensitive:
        raise RecipeError("gates: found no requirement; add `require:` with at least one metric, or leave --gates out")
