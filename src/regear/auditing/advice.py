"""What to do, by rule: from the gate, who is hurt, who may be, and waivers that will end."""

from regear.auditing import makers
from regear.auditing.groups import MOST_UNITS
from regear.auditing.outcomes import FEW, Result, Row, cut, hurt, name_of, plain, possibly, unclear
from regear.auditing.unmeasured import label
from regear.auditing.words import Teller

MEND = {
    "lists": "re-rank their lists towards what they want, or train with more weight on them",
    "models": "give their language or kind of text more weight in calibration and healing",
    "tables": "give them more weight where the change was fitted",
}
RULE = "the best guess is a loss beyond the limit, but one within it, or none, is possible too"


def advice(result: Result) -> list[str]:
    """Sentences; the groups named are those that the answer to who is hurt names."""
    teller, people = Teller(result), hurt(result)
    found = []
    if result["gate"] in ("fail", "undetermined"):
        found.append("Do not roll the change out to everyone as it is: its gate does not pass.")
    if any(not row["slice"] for row in people):
        found.append("The change hurts on the whole: use a milder one, or repair it, before looking at single groups.")
    kind = result.get("kind", "")
    found += _stop([row for row in people if row["slice"]], MEND.get(kind, MEND["tables"]))
    found += _stop(
        makers.ranked(result, makers.lost), "give these items more room in the lists, by re-ranking or in training"
    )
    found += [*_settle(result, teller), *_waivers(result)]
    return found or ["Nothing has to be done now. Audit again with the next change, and when the data change."]


def _stop(rows: list[Row], mend: str) -> list[str]:
    names = list(dict.fromkeys(name_of(row) for row in rows))
    if not names:
        return []
    return [f"For {cut(names)}: do not launch as it is. First {mend}, then audit again; else keep the old version."]


def possible(result: Result) -> list[str]:
    """Who may be hurt, and by which rule they are named."""
    teller = Teller(result)
    people = [teller.named(row) for row in possibly(result)]
    items = [name_of(row) for row in makers.ranked(result, makers.possible)]
    found = [f"Possibly hurt, not proven ({RULE}): {cut(people)}."] if people else []
    rule = "by the same rule" if people else RULE
    return [*found, *([f"Possibly seen less, not proven ({rule}): {cut(items)}."] if items else [])]


def _settle(result: Result, teller: Teller) -> list[str]:
    """What it takes to decide about those possibly hurt, by name, and about the others that are open, together."""
    rows = possibly(result)
    found = []
    if rows:
        each = [f"{teller.named(row)}, {_takes(row)}" for row in rows[:FEW]]
        more = f"; {len(rows) - FEW:,} more, in the tables" if len(rows) > FEW else ""
        found.append(
            "For those possibly hurt, decide before the launch whether to wait for more data. To tell whether the loss "
            f"is beyond the limit it takes so many {teller.noun} of the group: {'; '.join(each)}{more}."
        )
    if items := [name_of(row) for row in makers.ranked(result, makers.possible)]:
        found.append(f"For those possibly seen less ({cut(items)}): look again with the lists of more {teller.noun}.")
    if others := unclear(result):
        needs = sorted(row["units_needed"] for row in others if _more(row))
        span = f"{needs[0]:,} to {needs[-1]:,}" if needs and needs[0] < needs[-1] else f"{needs[0]:,}" if needs else ""
        takes = (
            f" To tell, it takes about {span} {teller.noun} of the group; the tables say how many for each."
            if span
            else ""
        )
        which = "the other comparisons" if rows else "the comparisons"
        found.append(
            f"For {which} about which we cannot tell ({len(others):,}) the best guess is no loss beyond the limit, or "
            f"there are too few {teller.noun} for a guess.{takes}"
        )
    return found


def _more(row: Row) -> bool:
    return bool(row["units_needed"]) and row["n"] < row["units_needed"] < MOST_UNITS


def _takes(row: Row) -> str:
    return f"about {row['units_needed']:,} (here {row['n']:,})" if _more(row) else "which more would hardly settle"


def _waivers(result: Result) -> list[str]:
    found = []
    for waiver in result.get("waivers", []):
        if waiver["state"] != "unused":
            when = "ended" if waiver["state"] == "expired" else "ends"
            where = f"{label(waiver['slice'])} ({waiver['metric']})"
            found.append(f"The waiver of {plain(waiver['owner'])} for {where} {when} on {waiver['expires']}: decide.")
    return found
