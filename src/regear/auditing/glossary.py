"""What the words of the plain report mean: labels, limits and who set them, gates, and what is counted."""

from collections.abc import Mapping
from typing import Any

from regear.auditing.catalogue import BANDS, POPULARITY
from regear.auditing.cells import WITHHELD
from regear.auditing.exposure import FALL
from regear.auditing.outcomes import Result, exposed, name_of
from regear.auditing.words import Teller

SET_BY = {
    "given": "chosen by whoever ran this audit",
    "spread": "the tool's default, nobody chose it: a tenth of how much {noun} differed from each other before",
    "usual": "the tool's default for this measure",
}


def glossary(result: Result) -> list[str]:
    """Sentences; only what this result makes use of."""
    return [*_labels(result), *_limits(result), _gate(result), *_lists(result)]


def _labels(result: Result) -> list[str]:
    every = [*result["verdicts"], *(row for table in exposed(result).values() for row in table["rows"])]
    rows = [row for row in every if len(row["slice"]) == 1 and WITHHELD not in row["slice"].values()]
    if not rows:
        return []
    ((name, value),) = rows[0]["slice"].items()
    models = result.get("kind") == "models"
    where = f"of the test items whose {name} is" if models else f"whose column {name} in your own data says"
    cut = " Columns of many numbers are cut into bands." if not models else ""
    found = [f'A label such as {name_of(rows[0])} means: the group {where} "{value}".{cut}']
    bands = {row["slice"].get(POPULARITY) for row in rows} - {None}
    if bands and bands <= set(BANDS):
        found.append(f"popularity: {'; '.join(f'{band} is {meaning}' for band, meaning in BANDS.items())}.")
    return found


def _limits(result: Result) -> list[str]:
    """The limit of every measure, as a number, and who set it."""
    teller, found = Teller(result), []
    for metric, entry in result["metrics"].items():
        whole = next((row for row in result["overall"] if row["metric"] == metric), None)
        limit = teller.limit(metric, whole["before"] if whole else None)
        found.append(
            f"The limit of {teller.short(metric)}: a loss of up to {limit} counts as none{_chosen(entry, teller)}."
        )
    exposure = result.get("exposure") or {}
    if "margin" in exposure:
        who = SET_BY["usual" if exposure["margin"] == FALL else "given"]
        found.append(f"The limit of visibility: a loss of up to {exposure['margin']:.0%} of what a group had ({who}).")
    return found


def _chosen(entry: Mapping[str, Any], teller: Teller) -> str:
    known = SET_BY.get(entry.get("margin_from", ""), "")
    return f" ({known.format(noun=teller.noun)})" if known else ""


def _gate(result: Result) -> str:
    """How a gate differs from a limit."""
    meaning = (
        "A limit only says what is called a loss. A gate says what a change must not do, and is laid down in advance"
    )
    if result["gate"] == "none":
        return f"{meaning}; no gate was set here, so whether to launch is left to those who read this."
    by = f", here by {result['set_by']}" if result.get("set_by") else ""
    return f"{meaning}{by}; it may set limits of its own."


def _lists(result: Result) -> list[str]:
    if result.get("kind") != "lists":
        return []
    places = (result.get("exposure") or {}).get("k")
    where = f"; only the first {places} places of a list count" if places else ""
    found = [f'"Useful" is an item that the user is known to have wanted (it stands in the table of relevance){where}.']
    if exposed(result):
        found.append(
            'Visibility is the share of all "looks", if people look most at the top of a list and less at each further '
            "place; every user's list counts the same, and an item of several groups is split evenly between them."
        )
    return found
