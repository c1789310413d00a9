"""Exports: nothing about a small group stands in them, and nothing can be worked out from what does."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regear.auditing.cells import WITHHELD, withheld
from regear.auditing.gates import judge
from regear.auditing.requirements import Gates
from regear.auditing.suppress import export
from tests.auditing.results import audited, languages

K = 10
COUNTS = st.one_of(st.just(0), st.integers(1, 12), st.integers(10, 80))


def cell(**where):
    return frozenset(where.items())


def row(where, n, verdict="undetermined", **more):
    numbers = {"before": 0.5, "after": 0.25, "effect": -0.25, "ci": [-0.5, -0.1]}
    words = {
        "reason": f"{n} independent units",
        "units_needed": 7 * n + 1,
        "differential": {"effect": 0.1, "ci": [0, 1]},
    }
    found = {"slice": where, "metric": "m", "n": n, "clusters": n, "margin": 0.1, "verdict": verdict}
    return found | numbers | words | more


def result(rows, dimensions=("g",), sensitive=(), **more):
    total = sum(r["n"] for r in rows if len(r["slice"]) == 1 and next(iter(r["slice"])) == dimensions[0])
    found = {"kind": "tables", "units": total, "clusters": total, "metrics": {"m": {"margin": 0.1}}}
    found |= {"dimensions": [{"name": d, "values": 3, "sensitive": d in sensitive} for d in dimensions]}
    return found | {"overall": [row({}, total, "no_harm")], "verdicts": rows, "not_measured": [], "gate": "none"} | more


def tables(counts, sets):
    """Cells of every table of `sets` (axes of the array) with their counts."""
    found = {}
    for axes in sets:
        summed = counts.sum(axis=tuple(i for i in range(counts.ndim) if i not in axes))
        for where in np.ndindex(summed.shape):
            found[frozenset(zip((f"d{a}" for a in axes), map(int, where), strict=True))] = int(summed[where])
    return found


def ranges(sizes, hidden):
    """Fewest and most that each withheld cell may hold, given all that is shown: two linear programs a cell."""
    from scipy.optimize import linprog

    order = sorted(hidden, key=lambda c: sorted(map(str, c)))
    left, right = [], []
    for total, finer in itertools.product(sizes, {frozenset(n for n, _ in c) for c in sizes}):
        if frozenset(n for n, _ in total) < finer:
            parts = [c for c in sizes if frozenset(n for n, _ in c) == finer and total <= c]
            left.append([(c in parts) - (c == total) for c in order])
            shown = sum(sizes[c] for c in parts if c not in hidden)
            right.append((0 if total in hidden else sizes[total]) - shown)
    bounds = [(0, None)] * len(order)
    found = {}
    for i, c in enumerate(order):
        ends = [linprog(sign * np.eye(len(order))[i], A_eq=left, b_eq=right, bounds=bounds) for sign in (1, -1)]
        low, high = (e.x[i] if e.status == 0 else sign * np.inf for e, sign in zip(ends, (-1, 1), strict=True))
        found[c] = (low, high)
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(COUNTS, min_size=2, max_size=6))
def test_no_small_slice_of_a_dimension_follows_from_the_total(counts):
    sizes = tables(np.array(counts), [(), (0,)])
    hidden = withheld(sizes, K)
    assert {c for c, size in sizes.items() if 0 < size < K} <= hidden
    if cell() in hidden or not hidden:
        return
    gone = [c for c in hidden if c]
    rest = sizes[cell()] - sum(size for c, size in sizes.items() if c and c not in hidden)
    assert len(gone) >= 2
    assert rest >= K


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(2, 4), st.integers(2, 3)).flatmap(
        lambda shape: st.lists(COUNTS, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
            lambda values: np.array(values).reshape(shape)
        )
    ),
    st.sampled_from([[(), (0,), (1,), (0, 1)], [(), (0,), (0, 1)], [(), (0, 1)]]),
)
def test_no_small_slice_follows_from_totals_and_crossings_together(counts, sets):
    sizes = tables(counts, sets)
    hidden = withheld(sizes, K)
    for c, (low, high) in ranges(sizes, hidden).items():
        if 0 < sizes[c] < K:
            assert high - low > 0.5, (sizes, hidden, c)


def test_a_cell_that_only_several_totals_together_fix_is_protected():
    """Two blocks of four small cells and one between them: every row and column has two, yet that one follows."""
    counts = np.full((4, 4), 90)
    for where in [*itertools.product((0, 1), (0, 1)), *itertools.product((2, 3), (2, 3)), (1, 2)]:
        counts[where] = 6
    sizes = tables(counts, [(), (0,), (1,), (0, 1)])
    between = cell(d0=1, d1=2)
    small = {c for c, size in sizes.items() if size < K}
    assert np.diff(ranges(sizes, small)[between]) < 0.5
    low, high = ranges(sizes, withheld(sizes, K))[between]
    assert high - low > 0.5


def test_tables_that_share_an_unregistered_total_protect_each_other():
    counts = np.full((2, 3, 3), 50)
    counts[0, 0] = 1
    sizes = tables(counts, [(0, 1), (0, 2)])
    hidden = withheld(sizes, K)
    gone = [c for c in hidden if ("d0", 0) in c and dict(c).get("d1") is not None]
    assert len(gone) >= 2


def test_the_next_smallest_goes_too():
    found = export(result([row({"g": "a"}, 4), row({"g": "b"}, 300, "no_harm"), row({"g": "c"}, 40)]))
    assert {r["slice"]["g"]: (r["n"], r["verdict"]) for r in found["verdicts"]} == {
        "a": (None, WITHHELD),
        "b": (300, "no_harm"),
        "c": (None, WITHHELD),
    }
    assert "fewer than 10" in found["verdicts"][0]["reason"]


def test_small_and_complementary_slices_look_alike():
    a, c = (
        r
        for r in export(result([row({"g": "a"}, 4), row({"g": "b"}, 300), row({"g": "c"}, 25)]))["verdicts"]
        if r["n"] is None
    )
    assert {k: v for k, v in a.items() if k != "slice"} == {k: v for k, v in c.items() if k != "slice"}


def test_harm_to_a_large_group_is_told_without_its_numbers():
    found = export(result([row({"g": "a"}, 4), row({"g": "b"}, 300, "harm"), row({"g": "c"}, 900, "harm")]))["verdicts"]
    b = next(r for r in found if r["slice"] == {"g": "b"})
    assert (b["verdict"], b["n"], b["effect"], b["ci"]) == ("harm", None, None, None)
    tight = export(result([row({"g": "a"}, 4), row({"g": "b"}, 31, "harm"), row({"g": "c"}, 900, "harm")]))["verdicts"]
    assert {r["slice"]["g"]: r["verdict"] for r in tight}["b"] == WITHHELD


def test_a_harmed_slice_is_withheld_last():
    found = export(result([row({"g": "a"}, 4), row({"g": "b"}, 300, "harm"), row({"g": "c"}, 900, "no_harm")]))
    assert {r["slice"]["g"]: r["n"] for r in found["verdicts"]} == {"a": None, "b": 300, "c": None}


def test_few_clusters_are_a_small_group_however_many_rows_they_have():
    found = export(result([row({"g": "a"}, 500, clusters=2), row({"g": "b"}, 600), row({"g": "c"}, 700)]))["verdicts"]
    assert [r["n"] for r in found] == [None, None, 700]


def test_one_pattern_for_all_metrics():
    rows = [row({"g": g}, n) for g, n in (("a", 4), ("b", 40), ("c", 50))]
    other = [row({"g": g}, n, metric="o") for g, n in (("a", 4), ("b", 60), ("c", 45))]
    found = export(result(rows + other))["verdicts"]
    assert len({r["slice"]["g"] for r in found if r["n"] is None}) == 2


def test_small_values_of_a_sensitive_dimension_are_not_even_named():
    rows = [row({"faith": f}, n) for f, n in (("one", 400), ("two", 300), ("three", 5), ("four", 3))]
    found = export(result(rows, ["faith"], ["faith"]))
    text = json.dumps(found)
    assert "three" not in text
    assert "four" not in text
    assert [r["groups"] for r in found["verdicts"] if r["verdict"] == WITHHELD] == [3]


def test_requirements_and_waivers_do_not_name_them_either():
    rows = [row({"faith": f}, n) for f, n in (("one", 400), ("two", 300), ("quaker", 5))]
    full = result(rows, ["faith"], ["faith"])
    words = {"owner": "Ana", "role": "r", "reason": "x", "expires": "2099-01-01"}
    asked = [{"slice": {"faith": v}, "metric": "m"} for v in ("*", "quaker", "sikh")]
    gates = Gates.model_validate(
        {"require": asked, "waivers": [{"slice": {"faith": "quaker"}, "metric": "m", **words}]}
    )
    import datetime

    full |= judge(full, gates, datetime.date(2026, 1, 1))
    assert "quaker" in json.dumps(full)
    assert "quaker" not in json.dumps(export(full))


def test_found_slices_that_leave_a_small_rest_are_left_out():
    rows = [row({"g": "a"}, 400), row({"g": "b"}, 400)]
    searched = [
        row({"g": "a", "h": "x"}, 198, search={"n": 198, "effect": -1}),
        row({"g": "b", "h": "x"}, 100, search={"n": 100, "effect": -1}),
        row({"g": "b", "h": "y"}, 9, search={"n": 60, "effect": -1}),
    ]
    found = export(result(rows, discovered=searched))["discovered"]
    assert [r["slice"] for r in found] == [{"g": "b", "h": "x"}]


def test_providers_seen_by_few_are_withheld():
    exposed = [
        row({"provider": p}, n, metric="visibility", relative=0.3, items=2) for p, n in (("p", 3), ("q", 70), ("r", 90))
    ]
    full = result([row({"g": "a"}, 100)], exposure={
        "k": 10, "users": 100, "dimensions": {"provider": {"rows": exposed, "distance": 0.1}},
        "summary": {"gini": {"before": 0.1, "after": 0.2}, "lost_most": [{"value": "p", "lists_before": 3}]},
    })  # fmt: skip
    found = export(full)["exposure"]
    assert [r["n"] for r in found["dimensions"]["provider"]["rows"]] == [None, None, 90]
    assert found["dimensions"]["provider"]["rows"][0]["relative"] is None
    assert "lost_most" not in found["summary"]
    assert found["summary"]["gini"]["after"] == 0.2


def test_nothing_that_is_not_listed_leaves():
    full = languages() | {"examples": [{"id": "unit-7", "text": "raw"}]}
    text = json.dumps(export(full))
    assert "unit-7" not in text
    assert "raw" not in text


def test_the_original_stays_as_it_was_and_k_one_hides_nothing():
    full = languages()
    copy = json.loads(json.dumps(full))
    assert export(full, 1)["verdicts"] == full["verdicts"]
    export(full)
    assert full == copy


@pytest.fixture(scope="module")
def crossed():
    generator = np.random.default_rng(3)
    columns = {"score": generator.normal(size=400).tolist(), "score_after": generator.normal(size=400).tolist()}
    columns["region"] = generator.choice(["n", "s", "e", "w"], 400, p=[0.5, 0.3, 0.18, 0.02]).tolist()
    columns["age"] = generator.choice(["young", "old", "child"], 400, p=[0.6, 0.35, 0.05]).tolist()
    return audited(columns, ["score"], ["region", "age"], depth=2, attributes=["age"])


def test_sums_and_counts_of_small_groups_cannot_be_solved_for(crossed):
    """Of a real audit: solve the export's own equations for every number withheld, by least squares."""
    full, found = crossed, export(crossed)
    sizes = {frozenset(r["slice"].items()): r["n"] for r in [*full["overall"], *full["verdicts"]]}
    shown = {frozenset(r["slice"].items()): r for r in [*found["overall"], *found["verdicts"]] if r["n"] is not None}
    hidden = sizes.keys() - shown.keys()
    small = {c for c, size in sizes.items() if size < K}
    assert small
    assert small <= hidden
    for c, (low, high) in ranges(sizes, hidden).items():
        if c in small:
            assert high - low > 0.5
    for r in full["verdicts"]:
        c = frozenset(r["slice"].items())
        assert c not in shown or shown[c]["effect"] == r["effect"]
