"""Who is hurt, by how much, how sure, what was not measured, what to do: the answers in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from regear.auditing import makers
from regear.auditing.advice import advice, possible
from regear.auditing.glossary import glossary
from regear.auditing.groups import dimension_table, group_tables
from regear.auditing.outcomes import (
    FEW,
    Result,
    Row,
    by_dimension,
    counted,
    exposed,
    hurt,
    name_of,
    named,
    plain,
    pooled,
    searched,
)
from regear.auditing.unmeasured import listed
from regear.auditing.words import Teller, figure
from regear.core.report import Section

GATE = {
    "pass": "The gate passes.",
    "fail": "The gate fails: a requirement is not met.",
    "undetermined": "The gate does not pass: a requirement could not be decided.",
    "none": "No gate was set: nobody laid down in advance what the change must not do.",
}
COMPARED = {"lists": "the lists of a recommender", "models": "two models", "tables": "two tables of results"}


@dataclass(frozen=True)
class Part:
    """A question, its answer in sentences, and tables that belong to it."""

    title: str
    lines: Sequence[str]
    tables: Sequence[Section] = field(default_factory=tuple)


def lead(result: Result) -> str:
    """What was compared, and whether it passed."""
    count = f"{result['units']:,}" if result.get("units") is not None else "a few"
    what = COMPARED.get(result.get("kind", ""), COMPARED["tables"])
    names = f"{plain(result['before'])} (before) with {plain(result['after'])} (after)"
    same = f"on the same {count} {Teller(result).noun}"
    return f"This audit compares {what} before and after a change: {names}, {same}. {GATE[result['gate']]}"


def answers(result: Result) -> list[Part]:
    """Questions and their answers in plain words, from a result that went through `export`."""
    teller = Teller(result)
    gains = _gains(result, teller)
    lost = makers.tables(result, makers.lost)
    found = [
        Part("Who is hurt?", _who(result, teller)),
        Part("By how much?", _amounts(result, teller), [*group_tables(result, teller), *lost]),
    ]
    if gains:
        found.append(Part("Who gains?", gains, makers.tables(result, makers.gained)))
    return [
        *found,
        Part("How sure are we?", _certain(result, teller), dimension_table(result)),
        Part("What was not measured?", list(result["not_measured"])),
        Part("What to do?", advice(result)),
        Part("What the words mean", glossary(result)),
    ]


def _who(result: Result, teller: Teller) -> list[str]:
    """Whether anyone is surely hurt, and who first; then each of them, those who may be, and how many are unknown."""
    people = hurt(result)
    found = [_headline(result, teller, people)]
    found += _first([f"{name_of(row)}: worse on {teller.short(row['metric'])}{searched(row)}." for row in people])
    if exposed(result) and result["verdicts"] and not any(row["slice"] for row in people):
        found.append(f"No group of {teller.noun} is surely hurt by more than the limit{_limit(result, teller)}.")
    return [*found, *makers.losers(result), *possible(result), *_numbers(result, teller)]


def _limit(result: Result, teller: Teller) -> str:
    if len(result["metrics"]) > 1 or not result["overall"]:
        return ""
    return f" ({teller.limit(result['overall'][0]['metric'], result['overall'][0]['before'])})"


def _headline(result: Result, teller: Teller, people: list[Row]) -> str:
    lost = makers.ranked(result, makers.lost)
    rest = [row for table in exposed(result).values() for row in table["rows"] if pooled(row) and makers.lost(row)]
    if not (people or lost or rest):
        of = f" of {teller.noun} or of items" if exposed(result) else ""
        return f"We found no group{of} that is surely hurt by more than the limit{_limit(result, teller)}."
    worst = [*people, *lost, *rest][0]
    counts = [f"all {teller.noun} taken together"] if any(not row["slice"] for row in people) else []
    groups = {name_of(row) for row in people if row["slice"]}
    counts += [_groups(len(found), of) for found, of in ((groups, teller.noun), (lost, "items or makers")) if found]
    counts += ["those seen least, taken as one"] if rest else []
    return f"Yes. Hurt most: {_worst(worst, teller)}. Surely hurt in all: {listed(counts)}."


def _groups(count: int, of: str) -> str:
    return f"{count:,} group{'s' if count > 1 else ''} of {of}"


def _worst(row: Row, teller: Teller) -> str:
    name = name_of(row) if row["slice"] else f"all {teller.noun}"
    if row["effect"] is None:
        return name
    if row["metric"] in teller.metrics:
        return f"{name}, {teller.amount(row['metric'], row['effect'], row['before'])}"
    return f"{name}, seen less, {makers.change(row)}"


def _numbers(result: Result, teller: Teller) -> list[str]:
    """Exactly how many comparisons have which outcome."""
    found = []
    of_items = [row for table in exposed(result).values() for row in named(table)]
    for what, rows in ((teller.noun, result["verdicts"]), ("items or makers", of_items)):
        count = counted(rows)
        if rows:
            doubt = count["possible"] + count["unclear"]
            found.append(
                f"Of {sum(count.values()):,} comparisons of groups of {what}: surely hurt {count['hurt']:,}, surely no "
                f"loss beyond the limit {count['fine']:,}, we cannot tell {doubt:,} (of which possibly hurt "
                f"{count['possible']:,}), withheld {count['withheld']:,}."
            )
    return found or ["No group was compared: no dimension was named."]


def _amounts(result: Result, teller: Teller) -> list[str]:
    people = [row for row in hurt(result) if row["slice"]]
    found = [teller.sentence(row) for row in result["overall"]]
    found += _first([f"{teller.sentence(row)[:-1]}{searched(row)}." for row in people])
    return [*found, *_nothing(result), *makers.spread(result)]


def _nothing(result: Result) -> list[str]:
    """How many lost everything useful, and how many gained something."""
    lost = result.get("nothing_useful")
    if not lost:
        return []
    told = (
        f"Of {lost['users']:,} users, {lost['lost']:,} who had something useful in their list now have nothing; "
        f"{lost['gained']:,} who had nothing now have something."
    )
    if "lost_ci" not in lost:
        return [f"{told} These are counts; no certainty was computed for them."]
    lose, gain = (
        f"{figure(100 * low, 'down')} to {figure(100 * high, 'up')}"
        for low, high in (lost["lost_ci"], lost["gained_ci"])
    )
    sure = f"Of every 100 such users surely {lose} lose all that was useful, and {gain} gain something"
    return [f"{told} {sure}; no limit was set for these counts."]


def _gains(result: Result, teller: Teller) -> list[str]:
    rows = [row for row in result["verdicts"] if row["verdict"] == "no_harm" and row["ci"] and row["ci"][0] > 0]
    return [*_first([teller.sentence(row) for row in rows]), *makers.winners(result)]


def _certain(result: Result, teller: Teller) -> list[str]:
    """What "sure" means, which claims it covers together, and how far the search is to be trusted."""
    groups = len(result["overall"]) + sum(row.get("groups") or 1 for row in result["verdicts"])
    sets = [f"the {groups:,} comparisons of {teller.noun}, all {teller.noun} included"]
    if exposed(result):
        seen = sum(row.get("groups") or 1 for table in exposed(result).values() for row in table["rows"])
        sets.append(f"the {seen:,} comparisons of visibility")
    if "lost_ci" in (result.get("nothing_useful") or {}):
        sets.append("the two counts of users with nothing useful left, or something new")
    found = [teller.what_sure_means()]
    quiet = [name for name, rows in by_dimension(result) if not counted(rows)["hurt"]]
    if quiet:
        found.append(f"No group is surely hurt by {listed(quiet)}; that alone does not say that none is hurt.")
    if len(sets) > 1:
        every = 100 * (1 - len(sets) * (1 - teller.level))
        told = "; ".join(f"({place}) {what}" for place, what in enumerate(sets, 1))
        held = f" All {len(sets)} sets at once would be true in at least {every:.3g} of 100." if every > 0 else ""
        found.append(f"There are {len(sets)} sets, each sure by itself: {told}.{held}")
    else:
        found.append(f"There is one set: {sets[0]}.")
    if any(row["verdict"] == "harm" for row in result.get("discovered", [])):
        found.append(
            "What was found by search belongs to no set: it is judged finding by finding, and of many findings a few "
            "may be luck."
        )
    return found


def _first(lines: list[str]) -> list[str]:
    more = [f"… and {len(lines) - FEW:,} more, in the tables."] if len(lines) > FEW else []
    return [*lines[:FEW], *more]
