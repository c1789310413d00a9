"""Six questions that suggest a portfolio of metrics, each with what it costs to rely on it."""

import importlib.resources
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from regear.core.errors import RecipeError
from regear.core.recipe import closest

KINDS = ("tables", "lists", "models")


@cache
def _table() -> dict[str, Any]:
    found = yaml.safe_load(importlib.resources.files("regear.auditing").joinpath("questions.yaml").read_text("utf-8"))
    return dict(found)


def questions() -> list[dict[str, Any]]:
    """`[{name, text, answers: {word: meaning}}]`, in the order to ask them."""
    return [{"name": name, **entry} for name, entry in _table()["questions"].items()]


def suggest(answers: Mapping[str, str], *, kind: str | None = None) -> list[dict[str, str]]:
    """The metrics that fit: `[{metric, kind, trade_off}]`.

    Args:
        answers: question → word; a question left out rules nothing out.
        kind: `tables`, `lists` or `models`; all by default.

    Raises:
        RecipeError: an unknown question, answer or kind.
    """
    table = _table()
    for name, word in answers.items():
        if name not in table["questions"]:
            known = table["questions"]
            raise RecipeError(f"no question {name!r}{closest(name, known)}; there are: {', '.join(known)}")
        words = table["questions"][name]["answers"]
        if word not in words:
            raise RecipeError(f"{name}: found {word!r}; wanted one of {', '.join(words)}{closest(str(word), words)}")
    if kind is not None and kind not in KINDS:
        raise RecipeError(f"no kind {kind!r}{closest(kind, KINDS)}; there are: {', '.join(KINDS)}")
    return [
        {name: row[name] for name in ("metric", "kind", "trade_off")}
        for row in table["metrics"]
        if (kind is None or row["kind"] in (kind, "any")) and _fits(row["when"], answers)
    ]


def _fits(when: Mapping[str, list[str]], answers: Mapping[str, str]) -> bool:
    return all(answers[name] in words for name, words in when.items() if name in answers)
