"""How often the audit's intervals hold, how often it raises a false alarm, and whether it finds planted harm.

Every share comes with its exact binomial 95 % interval; `off` lists the cases that miss what was promised: coverage
whose interval excludes 95 % from above or (too rarely covered) from below, false alarms whose interval lies above 5 %.
"""

import math
import time

import numpy as np
import polars as pl
from common import finish, parser

from regear.auditing.judge import judge
from regear.auditing.slices import discover
from regear.auditing.tables import Metric
from regear.auditing.units import Slices, coded

METRIC = Metric("m", "m", None, False)
LEVEL = 0.95
SKEWED = {"log-normal, sigma 0.5": 0.5, "log-normal, sigma 1": 1.0}
FLIPS = {"losses, 2 %": (0.02, 0.0), "flips, 5 % and 2.5 %": (0.05, 0.025), "flips, 30 % and 20 %": (0.3, 0.2)}
KINDS = ["normal", *SKEWED, *FLIPS]
SIZES = [30, 100, 300, 1000]
DIMENSIONS = (2, 3, 4, 5)
CROSSED = ((0, 1), (1, 2), (0, 3), (0, 2))
PLANTED = {"d0": 0, "d1": 0, "d2": 0}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--simulations", type=int, default=1000)
    options.add_argument("--resamples", type=int, default=1000)
    options.add_argument("--discoveries", type=int, default=200, help="tables of 20,000 units with and without harm")
    arguments = options.parse_args()
    settings = {"simulations": arguments.simulations, "resamples": arguments.resamples, "seed": arguments.seed}
    start = time.perf_counter()
    results = {
        "settings": settings | {"level": LEVEL, "discoveries": arguments.discoveries},
        "pointwise": [pointwise(kind, count, **settings) for kind in KINDS for count in SIZES],
        "clustered": clustered(**settings),
        "family": [family(kind, **settings) for kind in KINDS],
        "planted": planted(arguments.discoveries, arguments.seed, loss=0.1),
        "nothing_planted": planted(arguments.discoveries, arguments.seed, loss=0.0),
    }
    results |= {"off": off(results), "seconds": time.perf_counter() - start}
    finish("audit_power", arguments, results, text(results))


def drawn(kind: str, generator: np.random.Generator, count: int) -> tuple[np.ndarray, float]:
    """Changes of so many units, and the mean they are drawn from."""
    if kind == "normal":
        return generator.normal(size=count), 0.0
    if kind in SKEWED:
        sigma = SKEWED[kind]
        return np.exp(sigma * generator.normal(size=count)), math.exp(sigma**2 / 2)
    losses, gains = FLIPS[kind]
    where = generator.random(count)
    return (where > 1 - gains).astype(float) - (where < losses), gains - losses


def table(changes: np.ndarray, members: np.ndarray, clusters: np.ndarray | None = None) -> Slices:
    """Totals of the slices that the columns of `members` mark; the first holds all units."""
    ones = np.ones(len(changes))
    columns = np.stack([changes, ones, 0 * changes, ones], -1)
    cells = members[..., None] * columns[:, None, :]
    moved = members & (changes != 0)[:, None]
    if clusters is not None:
        packs = clusters.max() + 1
        sums, touched = np.zeros((packs, *cells.shape[1:])), np.zeros((packs, members.shape[1]), bool)
        np.add.at(sums, clusters, cells)
        np.logical_or.at(touched, clusters, moved)
        cells, moved = sums, touched
    names = [{"slice": i} if i else {} for i in range(members.shape[1])]
    return Slices(names, cells, members.sum(0), moved.sum(0), (cells[..., 1] > 0).sum(0))


def bounds(found: Slices, resamples: int, seed: int) -> list[tuple[float, float]]:
    """Intervals of the slices that are judged at all."""
    sizes = np.abs(found.sums[:, 0, 0])
    typical = float(sizes[sizes > 0].mean()) if sizes.any() else 1.0
    settings = {"level": LEVEL, "resamples": resamples, "seed": seed, "differential": False}
    verdicts = judge([found], [METRIC], [typical], {"m": 0.1}, **settings)
    return [verdict.ci for verdict in verdicts if verdict.clusters >= 30]


def pointwise(kind: str, count: int, *, simulations: int, resamples: int, seed: int) -> dict:
    """How often one slice's interval holds."""
    below = above = 0
    for i in range(simulations):
        changes, mean = drawn(kind, np.random.default_rng([seed, count, i]), count)
        ((low, high),) = bounds(table(changes, np.ones((count, 1), bool)), resamples, i)
        below, above = below + (high < mean), above + (low > mean)
    held = simulations - below - above
    return {"kind": kind, "units": count, "covered": share(held, simulations), "below": below, "above": above}


def clustered(*, simulations: int, resamples: int, seed: int, users: int = 100, units: int = 1000) -> dict:
    """Users whose units change together: resampled by user, and (wrongly) by unit."""
    held = {"by user": 0, "by unit": 0}
    whole = np.ones((units, 1), bool)
    for i in range(simulations):
        generator = np.random.default_rng([seed, i])
        user = np.unique(generator.integers(0, users, units), return_inverse=True)[1]
        changes = generator.normal(size=users)[user] + generator.normal(size=units)
        for name, groups in (("by user", user), ("by unit", None)):
            ((low, high),) = bounds(table(changes, whole, groups), resamples, i)
            held[name] += low <= 0 <= high
    return {"users": users, "units": units} | {name: share(count, simulations) for name, count in held.items()}


def family(kind: str, *, simulations: int, resamples: int, seed: int, units: int = 1000) -> dict:
    """Overlapping slices that all lose exactly the margin: how often any is called harmed, or cleared."""
    harmed = cleared = held = 0
    for i in range(simulations):
        generator = np.random.default_rng([seed, units, i])
        changes, mean = drawn(kind, generator, units)
        found = bounds(table(changes, members(generator, units)), resamples, i)
        alarm, miss = any(high < mean for _, high in found), any(low > mean for low, _ in found)
        harmed, cleared, held = harmed + alarm, cleared + miss, held + (not alarm and not miss)
    shares = {"false_harm": harmed, "false_no_harm": cleared, "all_covered": held}
    slices = {"kind": kind, "units": units, "slices": len(found)}
    return slices | {name: share(count, simulations) for name, count in shares.items()}


def members(generator: np.random.Generator, units: int) -> np.ndarray:
    """All units, the values of four uneven dimensions, and some of their crossings."""
    codes = [np.minimum((generator.random(units) ** 1.5 * size).astype(int), size - 1) for size in DIMENSIONS]
    found = [np.ones(units, bool)]
    found += [code == value for code, size in zip(codes, DIMENSIONS, strict=True) for value in range(size)]
    for a, b in CROSSED:
        found += [(codes[a] == x) & (codes[b] == y) for x in range(DIMENSIONS[a]) for y in range(DIMENSIONS[b])]
    return np.stack(found, -1)


def planted(tables: int, seed: int, *, loss: float, units: int = 20_000, noise: float = 0.3) -> dict:
    """One three-way slice, 2 % of the units, loses `loss`; paired noise and the metric before have sd `noise` and 1.

    Slices are judged in the other half against no margin at all, so that without a loss every harm is a false alarm.
    """
    top3 = harmed = false = exact = 0
    for i in range(tables):
        frame = planted_table(np.random.default_rng([seed, i]), units, loss, noise)
        with coded(frame, [METRIC], ["d0", "d1", "d2", "d3", "d4", "d5"], seed=i) as held:
            found = discover(held, 0, margin=1e-9, resamples=500, seed=i)
        false += any(one["verdict"] == "harm" for one in found) if not loss else 0
        ranks = [rank for rank, one in enumerate(found) if one["slice"] == PLANTED]
        top3 += bool(ranks) and ranks[0] < 3
        exact += bool(ranks) and ranks[0] == 0
        harmed += bool(ranks) and ranks[0] < 3 and found[ranks[0]]["verdict"] == "harm"
    setting = {"units": units, "share": 0.02, "loss": loss, "paired_noise": noise, "dimensions": 6}
    if not loss:
        return setting | {"false_alarms_discovered": share(false, tables)}
    return setting | {"first": share(exact, tables), "top_3": share(top3, tables), "harm": share(harmed, tables)}


def planted_table(generator: np.random.Generator, units: int, loss: float, noise: float) -> pl.LazyFrame:
    sizes = (4, 4, 3, 2, 5, 6)
    chances = (0.25, 0.25, 0.32)  # of the first value of the first three: 2 % hold all
    codes = [generator.integers(1, size, units) for size in sizes]
    for code, chance in zip(codes, chances, strict=False):
        code[generator.random(units) < chance] = 0
    hit = (codes[0] == 0) & (codes[1] == 0) & (codes[2] == 0)
    before = generator.normal(size=units)
    after = before + noise * generator.normal(size=units) - loss * hit
    ones = np.ones(units)
    columns = {"b0": before, "bw0": ones, "a0": after, "aw0": ones}
    columns |= {f"d{i}": code for i, code in enumerate(codes)}
    return pl.DataFrame({"id": np.arange(units), "cluster": np.arange(units), **columns}).lazy()


def share(count: int, of: int) -> dict:
    """A share with its exact (Clopper and Pearson) 95 % interval."""
    low = 0.0 if not count else _solve(lambda p: 1 - _below(count - 1, of, p), 0.025)
    high = 1.0 if count == of else _solve(lambda p: 1 - _below(count, of, p), 0.975)
    return {"share": count / of, "ci": [low, high], "count": int(count), "of": of}


def _below(count: int, of: int, p: float) -> float:
    logs = (
        math.lgamma(of + 1) - math.lgamma(i + 1) - math.lgamma(of - i + 1) + i * math.log(p) + (of - i) * math.log1p(-p)
        for i in range(count + 1)
    )
    return math.fsum(math.exp(x) for x in logs)


def _solve(rising, wanted: float) -> float:
    low, high = 1e-12, 1 - 1e-12
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < wanted else (low, middle)
    return (low + high) / 2


def off(results: dict) -> dict[str, list[str]]:
    """The cases that are covered too rarely or too often, and those that raise too many false alarms."""
    found: dict[str, list[str]] = {"covered_too_rarely": [], "covered_too_often": [], "false_alarms": []}
    cells = [(f"{one['kind']}, {one['units']} units", one["covered"]) for one in results["pointwise"]]
    cells += [("clustered by user", results["clustered"]["by user"])]
    cells += [(f"{one['kind']}, all of {one['slices']} slices", one["all_covered"]) for one in results["family"]]
    for name, covered in cells:
        low, high = covered["ci"]
        if high < LEVEL:
            found["covered_too_rarely"].append(name)
        if low > LEVEL:
            found["covered_too_often"].append(name)
    alarms = [
        (f"{one['kind']}, {word}", one[word]) for one in results["family"] for word in ("false_harm", "false_no_harm")
    ]
    alarms.append(("discovered", results["nothing_planted"]["false_alarms_discovered"]))
    found["false_alarms"] = [name for name, alarm in alarms if alarm["ci"][0] > 1 - LEVEL]
    return found


def text(results: dict) -> str:
    def shown(found: dict) -> str:
        return f"{found['share']:.3f} ({found['ci'][0]:.3f} – {found['ci'][1]:.3f})"

    lines = [
        f"covered: {one['kind']:24} {one['units']:5} units  {shown(one['covered'])}" for one in results["pointwise"]
    ]
    lines += [f"covered: clustered, {name}  {shown(results['clustered'][name])}" for name in ("by user", "by unit")]
    for one in results["family"]:
        words = ("all_covered", "false_harm", "false_no_harm")
        lines.append(f"{one['slices']} slices: {one['kind']:24} " + "  ".join(f"{w} {shown(one[w])}" for w in words))
    found = results["planted"]
    lines.append("planted: " + "  ".join(f"{w} {shown(found[w])}" for w in ("first", "top_3", "harm")))
    lines.append(f"nothing planted: {shown(results['nothing_planted']['false_alarms_discovered'])} false alarms")
    lines += [f"{name}: {', '.join(cases) or 'none'}" for name, cases in results["off"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
