"""Strict recipes: YAML files and `key.path=value` changes, checked before any weight is read."""

import difflib
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from regear.core.errors import RecipeError

R = TypeVar("R", bound="Recipe")


class Recipe(BaseModel):
    """Base of every recipe: unknown keys are refused, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def closest(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key that a recipe model accepts."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in _models(field.annotation):
            yield from keys(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list):
        for part in get_args(annotation):
            yield from _models(part)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file.

    Raises:
        RecipeError: the file is missing, is not UTF-8 YAML, or is not a mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"no recipe file {path} ({error.strerror}); give an existing YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RecipeError(f"{path} holds a {type(value).__name__}; wanted a mapping of recipe keys")
    return value


def set_key(target: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b.c` in nested mappings, making those that are missing."""
    *folders, last = dotted.split(".")
    for folder in folders:
        target = target.setdefault(folder, {})
        if not isinstance(target, dict):
            raise RecipeError(f"key {dotted!r}: {folder!r} holds a value, not further keys")
    target[last] = value


def apply_changes(target: dict[str, Any], changes: Iterable[str]) -> None:
    """Apply `key.path=value` words; values are read as YAML, so `0.5`, `true` and `[a, b]` mean what they say.

    A value that starts with `*` is a name pattern: YAML's aliases have nothing to point at in one word.
    """
    for change in changes:
        key, separator, value = change.partition("=")
        if not separator or not key:
            raise RecipeError(f"found {change!r}; wanted key=value, such as convert.kv_ratio=0.5")
        try:
            set_key(target, key, yaml.safe_load(value) if value and not value.startswith("*") else value)
        except yaml.YAMLError:
            raise RecipeError(f"{change!r}: the value is not YAML; quote it") from None


def validate(model: type[R], values: dict[str, Any]) -> R:
    """Check `values` against the recipe model.

    Raises:
        RecipeError: one line for the first fault, with a did-you-mean for unknown keys.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(model, error)) from None


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    where = ".".join(str(part) for part in fault["loc"])
    known = list(keys(model))
    if fault["type"] == "extra_forbidden":
        plain = ".".join(part for part in fault["loc"] if isinstance(part, str))  # keys of a list have no positions
        folder = plain.rpartition(".")[0]
        guess = closest(plain, known)
        wanted = guess or f"; known keys: {', '.join(k for k in known if k.rpartition('.')[0] == folder)}"
        return f"unknown recipe key {where!r}{wanted}"
    if fault["type"] == "literal_error":
        choices = fault.get("ctx", {}).get("expected", "")
        words = [w.strip(" '") for w in choices.replace(" or ", ",").split(",")]
        return f"{where}: found {fault['input']!r}; wanted {choices}{closest(str(fault['input']), words)}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
