"""Which planted harms regear, fairlearn, aequitas and SliceLine find in the same tables, and what they report of none.

Ten tables hold a harm of one kind each, ten are drawn alike without. Found: among the first five slices a tool reports
is the planted one, or one whose units overlap it by half (Jaccard). A loss that all share is told when the whole is
reported worse and no slice as losing more than the rest. Any slice reported of a table without harm is a false alarm.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from common import finish, parser

from regear.auditing.compare import compare
from regear.auditing.slices import discover
from regear.auditing.tables import Metric, joined
from regear.auditing.units import coded

CHILD = Path(__file__).with_name("audit_rivals_child.py")
SIZES = (2, 3, 4, 5, 6)
NAMES = [f"x{i}" for i in range(len(SIZES))]
FIRST, OVERLAP = 5, 0.5
WHERE = {
    "one-way": {"x3": 1},
    "two-way": {"x2": 1, "x3": 2},
    "three-way": {"x1": 0, "x2": 2, "x3": 3},
    "small slice": {"x2": 0, "x3": 0, "x4": 0},
    "rare flips": {"x4": 3},
    "skewed": {"x2": 3, "x1": 1},
    "clustered": {"x2": 1},
    "uniform": {},
    "ratio": {"x1": 2, "x3": 4},
    "gain elsewhere": {"x1": 1, "x4": 5},
}
# Some six standard errors of half the slice, whatever its kind.
LOSS = {"one-way": 0.08, "two-way": 0.12, "three-way": 0.25, "small slice": 0.35, "rare flips": 0.06, "skewed": 0.7}
LOSS |= {"clustered": 0.3, "uniform": 0.1, "ratio": 0.08, "gain elsewhere": 0.15}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rivals", type=Path, help="a Python with fairlearn, aequitas and sliceline; left out: none")
    options.add_argument("--units", type=int, default=8000)
    options.add_argument("--large", type=int, default=1_000_000, help="units of the timed table of 12 attributes")
    options.add_argument("--limit", type=float, default=300, help="seconds a rival may take over the large table")
    arguments = options.parse_args()
    tables = {
        f"{kind}{suffix}": made(kind, arguments.units, arguments.seed, planted)
        for kind in WHERE
        for suffix, planted in (("", True), (" none", False))
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        told = {"regear": {name: ours(table, arguments.seed) for name, table in tables.items()}}
        told |= theirs(arguments.rivals, folder, tables)
        results = {"units": arguments.units, "tools": {name: judged(tables, found) for name, found in told.items()}}
        results["large"] = large(arguments, folder / "large")
    if len(told) == 1:
        results["note"] = "rivals left out: give --rivals PYTHON of an environment that holds them"
    finish("audit_rivals", arguments, results, text(results))


def made(kind: str, units: int, seed: int, planted: bool) -> pl.DataFrame:
    """One table; without harm it has the same noise, users and gains."""
    generator = np.random.default_rng([seed, list(WHERE).index(kind), planted])
    cluster = np.arange(units)
    if kind == "clustered":
        users = units // 20
        cluster = generator.integers(0, users, units)
        codes = [generator.integers(0, size, users)[cluster] for size in SIZES]
    else:
        codes = [generator.integers(0, size, units) for size in SIZES]
    frame = pl.DataFrame({"id": np.arange(units), "cluster": cluster, **dict(zip(NAMES, codes, strict=True))})
    hit, loss = mask(frame, WHERE[kind]), LOSS[kind] * planted
    before, after, shown = generator.normal(size=units), None, np.ones(units)
    noise = 0.3 * generator.normal(size=units)
    if kind == "rare flips":
        before = (generator.random(units) < 0.9).astype(float)
        flip = generator.random(units)
        after = np.where(flip < 0.005, 1 - before, before)
        after[hit & (flip > 1 - loss)] = 0.0
    elif kind == "skewed":
        noise = np.exp(generator.normal(size=units)) - np.exp(0.5)
    elif kind == "clustered":
        noise += 0.3 * generator.normal(size=users)[cluster]
    elif kind == "ratio":
        shown = generator.integers(1, 20, units).astype(float)
        before = generator.binomial(shown.astype(int), 0.5).astype(float)
        after = generator.binomial(shown.astype(int), 0.5 - loss * hit).astype(float)
    elif kind == "gain elsewhere":
        noise += 0.2 * (codes[3] == 0)
    after = before + noise - loss * hit if after is None else after
    return frame.with_columns(before=before, after=after, shown=shown)


def mask(table: pl.DataFrame, where: dict) -> np.ndarray:
    found = np.ones(len(table), bool)
    for name, value in where.items():
        found &= table[name].to_numpy() == value
    return found


def ours(table: pl.DataFrame, seed: int) -> dict:
    """Discovery to depth 3 with no margin; reported: slices judged harmed, and harmed more than the rest of them."""
    start = time.perf_counter()
    ratio = bool((table["shown"] != 1).any())
    metric = Metric("m", "m", "shown" if ratio else None, False)
    sides = [table.rename({side: "m"}).lazy() for side in ("before", "after")]
    attributes = [name for name in table.columns if name.startswith("x")]
    with coded(joined(*sides, [metric], attributes), [metric], attributes, seed=seed) as units:
        found = discover(units, 0, margin=1e-9, seed=seed)
        whole = compare(units, [], {"m": 1e-9}, seed=seed)[0]
    harmed = [one for one in found if one["verdict"] == "harm"]
    apart = [one for one in harmed if one["differential"] and one["differential"]["ci"][1] < 0]
    seconds = time.perf_counter() - start
    shown = [one["slice"] for one in harmed]
    return {"slices": shown, "whole": whole.verdict == "harm", "apart": bool(apart), "seconds": seconds}


def theirs(python: Path | None, folder: Path, tables: dict[str, pl.DataFrame]) -> dict:
    if python is None or not python.exists():
        return {}
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")
    subprocess.run([python, CHILD, folder, folder / "told.json"], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "told.json").read_text())


def judged(tables: dict[str, pl.DataFrame], told: dict) -> dict:
    found = {kind: hit(tables[kind], WHERE[kind], told[kind]) for kind in WHERE}
    alarms = [kind for kind in WHERE if told[f"{kind} none"]["slices"]]
    errors = {name: one["error"] for name, one in told.items() if "error" in one}
    seconds = sum(one["seconds"] for one in told.values())
    reported = {name: one["slices"][:FIRST] for name, one in told.items()}
    return {
        "found": found,
        "count": sum(found.values()),
        "false_alarms": alarms,
        "seconds": seconds,
        "errors": errors,
        "reported": reported,
    }


def hit(table: pl.DataFrame, where: dict, told: dict) -> bool:
    if not where:
        return bool(told["whole"] and not told["apart"])
    wanted = mask(table, where)
    for one in told["slices"][:FIRST]:
        found = mask(table, one)
        if (wanted & found).sum() >= OVERLAP * (wanted | found).sum():
            return True
    return False


def large(arguments, folder: Path) -> dict:
    """Seconds over one table of 12 attributes of 2 to 20 values, with a planted three-way slice of about 1 %."""
    units, generator = arguments.large, np.random.default_rng(arguments.seed)
    sizes = [5, 4, 5, 2, 20, *generator.integers(2, 21, 7)]
    codes = {f"x{i}": generator.integers(0, size, units) for i, size in enumerate(sizes)}
    table = pl.DataFrame(
        {"id": np.arange(units), "cluster": np.arange(units), **codes, "before": generator.normal(size=units)}
    )
    where = {"x0": 0, "x1": 0, "x2": 0}
    change = 0.3 * generator.normal(size=units) - 0.1 * mask(table, where)
    table = table.with_columns(after=pl.col("before") + change, shown=pl.lit(1.0))
    told = ours(table, arguments.seed)
    results = {"units": units, "values": [int(x) for x in sizes], "regear": told["seconds"]}
    results["regear_found"] = told["slices"][:1] == [where]
    if arguments.rivals and arguments.rivals.exists():
        folder.mkdir()
        table.write_parquet(folder / "large.parquet")
        results["SliceLine"] = timed(
            [arguments.rivals, CHILD, folder, folder / "told.json", "SliceLine"], arguments.limit
        )
        if (folder / "told.json").exists():
            results["SliceLine_told"] = json.loads((folder / "told.json").read_text())["SliceLine"]["large"]
    return results


def timed(command: list, limit: float) -> float | str:
    start = time.perf_counter()
    try:
        done = subprocess.run(command, timeout=limit, capture_output=True)
    except subprocess.TimeoutExpired:
        return f"not done in {limit:.0f} s"
    return time.perf_counter() - start if not done.returncode else "did not end well"


def text(results: dict) -> str:
    tools = results["tools"]
    lines = [f"{'':16}" + "".join(f"{name:>12}" for name in tools)]
    lines += [
        f"{kind:16}" + "".join(f"{'found' if one['found'][kind] else '–':>12}" for one in tools.values())
        for kind in WHERE
    ]
    lines.append(f"{'found of 10':16}" + "".join(f"{one['count']:12}" for one in tools.values()))
    lines.append(f"{'false alarms':16}" + "".join(f"{len(one['false_alarms']):12}" for one in tools.values()))
    lines.append(f"{'seconds':16}" + "".join(f"{one['seconds']:12.1f}" for one in tools.values()))
    big = results["large"]
    lines.append(
        f"{big['units']:,} units × 12 attributes: regear {big['regear']:.1f} s, SliceLine {big.get('SliceLine', '–')}"
    )
    return "\n".join([*lines, results["note"]] if "note" in results else lines)


if __name__ == "__main__":
    main()
