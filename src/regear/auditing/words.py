"""Verdicts in plain words, with units people know; nothing here assumes that the reader knows statistics."""

from collections.abc import Mapping
from math import ceil, exp, floor
from typing import Any, Literal

from regear.auditing.cells import WITHHELD
from regear.auditing.scales import scale
from regear.auditing.unmeasured import label

Row = Mapping[str, Any]
Rounding = Literal["near", "down", "up"]
NOUN = {"lists": "users", "models": "test items"}  # what a unit is, by kind of audit


class Teller:
    """Sentences about the verdicts of one result."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.metrics: Mapping[str, Any] = result["metrics"]
        self.noun = NOUN.get(result.get("kind", ""), "units")
        self.level = result.get("level", 0.95)

    def lower(self, metric: str) -> bool:
        """Whether less of it is better."""
        return bool(self.metrics.get(metric, {}).get("lower_is_better"))

    def amount(self, metric: str, effect: float, before: float | None) -> str:
        """A change as people count it: "5 fewer right answers per 100". `effect` below zero is worse."""
        told, more = scale(metric), (effect < 0) == self.lower(metric)
        words = told.more if more else told.fewer
        per = ", byte by byte" if told.kind == "odds" and "byte" in str(self._unit(metric)) else ""
        return f"{self.size(metric, effect, before)} {words}{per}"

    def _unit(self, metric: str) -> str | None:
        return self.metrics.get(metric, {}).get("unit")

    def size(self, metric: str, effect: float, before: float | None, round_to: Rounding = "near") -> str:
        """The change without its direction: "5", "3.2 %", "0.05 ms"."""
        kind, size = scale(metric).kind, abs(effect)
        if kind == "per_100":
            return figure(100 * size, round_to)
        if kind == "odds":
            change = exp(-size) if (effect < 0) != self.lower(metric) else exp(size)
            return f"{figure(100 * abs(change - 1), round_to)} %"
        if kind == "percent" and before:
            return f"{figure(100 * size / abs(before), round_to)} %"
        unit = self._unit(metric)
        return figure(size, round_to) + (f" {unit}" if unit else "")

    def who(self, row: Row) -> str:
        """ "language=hi (1,240 units)"."""
        name = label(row["slice"])
        if not row["slice"]:
            return f"all {row['n']:,} {self.noun}" if row.get("n") is not None else f"all {self.noun}"
        if row.get("n") is None:
            return f"{name} ({row['groups']} groups)" if row.get("groups", 1) > 1 else name
        few = row.get("clusters") not in (None, row["n"])
        among = f" of {row['clusters']:,} clusters" if few else ""
        return f"{name} ({row['n']:,} {self.noun}{among})"

    def sentence(self, row: Row) -> str:
        """What is known of one slice and metric, in one or two sentences."""
        who, told = self.who(row), scale(row["metric"])
        if row["verdict"] == WITHHELD:
            return f"For {who} we show nothing on {told.title}: {row['reason']}."
        if row.get("effect") is None and row["verdict"] == "undetermined":
            return f"For {who} {told.title} cannot be assessed: {row['reason']}."
        if row.get("effect") is None:
            word = "became" if row["verdict"] == "harm" else "did not become"
            numbers = f"the numbers are not shown: {row['reason']}"
            return f"For {who} {told.title} {word} worse by more than the margin; {numbers}."
        return f"For {who} {self._moved(row)}; {self._sure(row)}."

    def _moved(self, row: Row) -> str:
        title, before, after = scale(row["metric"]).title, row["before"], row["after"]
        if before == after or row["effect"] == 0:
            return f"{title} stayed at {figure(before)}"
        way = "fell" if after < before else "rose"
        moved = f"{title} {way} from {' to '.join(apart(before, after))}"
        return f"{moved}: {self.amount(row['metric'], row['effect'], before)}{self._people(row)}"

    def _people(self, row: Row) -> str:
        counted = scale(row["metric"]).counted
        number = round(abs(row["effect"]) * row["n"])
        return f", about {number:,} of these {row['n']:,}" if counted and number else ""

    def _sure(self, row: Row) -> str:
        (low, high), before, metric = row["ci"], row["before"], row["metric"]
        if row["verdict"] == "undetermined":
            return f"we cannot tell: {self._settle(row)}"
        if row["verdict"] == "harm":
            return f"we are sure that it is at least {self.bound(metric, high, before, 'down')}"
        if low > 0:
            return f"we are sure that it is a gain, of at least {self.bound(metric, low, before, 'down')}"
        limit, most = self.size(metric, -row["margin"], before), self.bound(metric, low, before, "up")
        loss = "there is a loss, but one" if high < 0 else "any loss is"
        return f"we are sure that {loss} below {most} (up to {limit} counts as none)"

    def bound(self, metric: str, effect: float, before: float | None, round_to: Rounding) -> str:
        """One end of what is possible, rounded so that the claim stays true."""
        told = self.size(metric, effect, before, round_to)
        return told + (" per 100" if scale(metric).kind == "per_100" else "")

    def _settle(self, row: Row) -> str:
        """ "anything from … to … is possible with 8 units; about 640 would settle it"."""
        ends = [self._end(row, effect) for effect in row["ci"]]
        needed, count = row.get("units_needed"), f"{row['n']:,} {self.noun}"
        settle = "; the change is so near the limit that more would not settle it" if needed is None else ""
        if needed is not None and needed > row["n"]:
            settle = f"; about {needed:,} would settle it"
        return f"anything from {ends[0]} to {ends[1]} is possible with {count}{settle}"

    def _end(self, row: Row, effect: float) -> str:
        way = "a loss" if effect < 0 else "a gain"
        return f"{way} of {self.bound(row['metric'], effect, row['before'], 'up')}"

    def signed(self, row: Row, effect: float, round_to: Literal["near", "low", "high"] = "near") -> str:
        """A change or one end of what is possible, below 0 where it is worse; ends are rounded away from the middle."""
        away = (round_to == "low") == (effect < 0)
        size = self.size(
            row["metric"], effect, row["before"], "near" if round_to == "near" else "up" if away else "down"
        )
        return f"{'-' if effect < 0 else '+'}{size}" if effect else size

    def short(self, metric: str) -> str:
        """The measure in a few words: "how well lists match what people want in the first 10 places"."""
        base, _, places = metric.partition("@")
        title = scale(base).title.partition(" (")[0]
        return f"{title} in the first {places} places" if places else title

    def named(self, row: Row) -> str:
        """The group, with the measure where there are several."""
        name = label(row["slice"])
        return f"{name} ({self.short(row['metric'])})" if len(self.metrics) > 1 else name

    def limit(self, metric: str, before: float | None) -> str:
        """The loss that still counts as none: "1.9 points of 100"."""
        points = " points of 100" if scale(metric).kind == "per_100" else ""
        return self.size(metric, -self.metrics[metric]["margin"], before) + points

    def what_sure_means(self) -> str:
        """What stands behind "sure", once for the whole report."""
        return (
            f'"Sure" means: if such an audit were repeated many times with other {self.noun}, then in at least '
            f"{100 * self.level:g} of 100 of them all claims of one set would be true together."
        )


def figure(value: float, round_to: Rounding = "near") -> str:
    """The figures that matter: 5, 0.52, 1,240; rounded down or up where a claim must stay true."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 1 else 2 if size >= 0.095 else 3 if size >= 0.0095 else 4
    if size and size < 0.00095:
        return f"{value:.1e}"
    scaled = round(value * 10**digits, 9)
    moved = (floor(scaled) if round_to == "down" else ceil(scaled) if round_to == "up" else round(scaled)) / 10**digits
    text = f"{moved:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def apart(before: float, after: float) -> tuple[str, str]:
    """Both values with as many figures as it takes to see that they differ."""
    for digits in range(2, 8):
        one, two = (f"{value:,.{digits}f}" for value in (before, after))
        if one != two:
            break
    if min(abs(before), abs(after)) >= 1000:
        one, two = (f"{value:,.0f}" for value in (before, after)) if round(before) != round(after) else (one, two)
    return one, two
