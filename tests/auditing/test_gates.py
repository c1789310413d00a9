"""Gates: what passes, what fails, and what cannot be decided, which never passes silently."""

import datetime
from datetime import date

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regear.auditing.gates import check, judge, load, registered
from regear.auditing.requirements import Gates
from regear.auditing.verdict import decide
from regear.core.errors import RecipeError
from tests.auditing.results import languages

TODAY = date(2026, 3, 1)


def gates(require=(), waivers=()):
    return Gates.model_validate({"require": list(require), "waivers": list(waivers)})


def requires(where, **more):
    return {"slice": where, "metric": "accuracy", **more}


def waiver(where, **more):
    words = {"owner": "Ana", "role": "product", "reason": "no data yet", "expires": TODAY}
    return {"slice": where, "metric": "accuracy", **words, **more}


@pytest.mark.parametrize(
    ("where", "outcome"),
    [
        ({"language": "en"}, "pass"),
        ({}, "pass"),
        ({"language": "hi"}, "fail"),
        ({"language": "sw"}, "undetermined"),
        ({"language": "*"}, "fail"),
        ({"gender": "*"}, "pass"),
        ({"language": "th"}, "undetermined"),
        ({"language": "hi", "gender": "f"}, "undetermined"),
    ],
)
def test_each_slice_gets_the_outcome_of_its_verdict(where, outcome):
    found = judge(languages(), gates([requires(where)]), TODAY)
    assert found["gate"] == outcome
    assert found["gates"][0]["outcome"] == outcome
    assert (found["gates"][0]["reason"] is None) == (outcome == "pass")


def test_a_star_judges_every_value():
    row = judge(languages(), gates([requires({"language": "*"})]), TODAY)["gates"][0]
    assert {s["slice"]["language"]: s["outcome"] for s in row["slices"]} == {
        "de": "pass",
        "en": "pass",
        "hi": "fail",
        "sw": "undetermined",
    }


@pytest.mark.parametrize(
    ("margin", "outcome"), [(0.3, "pass"), ("0.3", "pass"), (0.13, "undetermined"), ("50%", "pass"), ("1%", "fail")]
)
def test_a_margin_of_its_own_decides_anew_from_the_same_interval(margin, outcome):
    assert judge(languages(), gates([requires({"language": "hi"}, margin=margin)]), TODAY)["gate"] == outcome


def test_a_wide_margin_does_not_let_a_small_slice_pass():
    row = judge(languages(), gates([requires({"language": "sw"}, margin=100)]), TODAY)["gates"][0]
    assert row["outcome"] == "undetermined"
    assert "8 independent units" in row["reason"]


def test_not_harm_accepts_what_is_not_known_to_be_harm():
    assert judge(languages(), gates([requires({"language": "sw"}, verdict="not_harm")]), TODAY)["gate"] == "pass"
    assert judge(languages(), gates([requires({"language": "hi"}, verdict="not_harm")]), TODAY)["gate"] == "fail"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"language": "ens"}, "did you mean 'en'"),
        ({"language": False}, "quote them"),
        ({"language": "hi", "gender": "f"}, "language*gender"),
    ],
)
def test_a_requirement_that_matches_nothing_says_why(where, words):
    assert words in judge(languages(), gates([requires(where)]), TODAY)["gates"][0]["reason"]


def test_a_sensitive_slice_is_required_even_if_nobody_wrote_it_down():
    result = languages()
    for row in result["verdicts"]:
        if row["slice"] == {"gender": "f"}:
            row.update(verdict="undetermined", reason="few units")
    required = gates([requires({"language": "en"})])
    found = judge(result, required, TODAY)
    assert found["gate"] == "undetermined"
    assert [(r["slice"], r["asked_by"]) for r in found["gates"] if r["outcome"] != "pass"] == [
        ({"gender": "f"}, "sensitive")
    ]
    waived = gates([requires({"language": "en"})], [waiver({"gender": "f"})])
    assert judge(result, waived, TODAY)["gate"] == "pass"


def test_a_written_margin_stands_in_for_the_audits_on_sensitive_slices():
    written = judge(languages(), gates([requires({"gender": "*"}, margin=0.01)]), TODAY)
    assert written["gate"] == "fail"
    assert {row["asked_by"] for row in written["gates"]} == {"gates"}


def test_a_waiver_counts_up_to_and_including_its_day():
    required = [requires({"language": "hi"})]
    with_waiver = gates(required, [waiver({"language": "hi"})])
    found = judge(languages(), with_waiver, TODAY)
    assert found["gate"] == "pass"
    assert found["gates"][0]["slices"][0]["outcome"] == "waived"
    assert found["waivers"][0]["state"] == "used"
    late = judge(languages(), with_waiver, TODAY + datetime.timedelta(days=1))
    assert late["gate"] == "fail"
    assert late["waivers"][0]["state"] == "expired"
    assert "the waiver of Ana expired on 2026-03-01" in late["gates"][0]["reason"]


def test_a_waiver_of_another_slice_or_metric_changes_nothing():
    for other in (waiver({"language": "sw"}), waiver({"language": "hi"}, metric="length")):
        found = judge(languages(), gates([requires({"language": "hi"})], [other]), TODAY)
        assert found["gate"] == "fail"
        assert found["waivers"][0]["state"] == "unused"


def test_exposure_can_be_required():
    result = languages()
    lost = dict(result["verdicts"][0], slice={"provider": "p1"}, metric="visibility", verdict="harm")
    result["exposure"] = {"k": 10, "dimensions": {"provider": {"rows": [lost]}}}
    found = judge(result, gates([{"slice": {"provider": "*"}, "metric": "visibility"}]), TODAY)
    assert found["gate"] == "fail"


def test_no_requirement_does_not_pass():
    result = languages()
    result["dimensions"] = []
    assert judge(result, gates(), TODAY)["gate"] == "undetermined"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.001, 1))
def test_every_margin_gives_the_verdict_of_the_interval(middle, half, margin):
    interval = [middle - half, middle + half]
    row = dict(registered(languages())[0], ci=interval, margin=0.05, verdict=decide(*interval, 0.05))
    result = {"overall": [row], "verdicts": []}
    entry = judge(result, gates([requires({}, margin=margin)]), TODAY)["gates"][0]["slices"][0]
    assert entry["verdict"] == decide(*interval, margin)


def test_a_missing_bound_is_undetermined():
    result = languages()
    result["overall"][0]["ci"] = [None, 0.1]
    assert judge(result, gates([requires({}, margin=1)]), TODAY)["gate"] == "undetermined"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("require: [{slice: {}, metrc: accuracy}]", "did you mean 'require.metric'"),
        ("requires: []", "did you mean 'require'"),
        ("require: [{slice: {}, metric: a, verdict: noharm}]", "did you mean 'no_harm'"),
        ("require: [{slice: {}, metric: a, margin: -1}]", "wanted a positive number"),
        ("require: [{slice: {}, metric: a, margin: 2 percent}]", "wanted a positive number"),
        ("require: [{slice: {}}]", "require.0.metric"),
        ("waivers: [{slice: {a: b}, metric: m, owner: o, role: r, reason: x}]", "expires"),
        ("waivers: [{slice: {a: b}, metric: m, owner: '', role: r, reason: x, expires: 2026-01-01}]", "owner"),
        (
            "waivers: [{slice: {a: '*'}, metric: m, owner: o, role: r, reason: x, expires: 2026-01-01}]",
            "name the slice",
        ),
        ("- 1", "wanted a mapping"),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_line(tmp_path, text, words):
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no gates file"):
        load(tmp_path / "none.yaml")


def test_a_file_means_what_it_says(tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump({"require": [requires({"language": "hi"}, margin="2%")], "set_by": "Ana"}))
    assert judge(languages(), load(path), TODAY)["gate"] == "fail"
    assert judge(languages(), load(path), TODAY)["set_by"] == "Ana"


def test_unknown_names_are_refused_before_any_work():
    check(gates([requires({"language": "*"})], [waiver({"gender": "f"})]), ["language", "gender"], ["accuracy"])
    with pytest.raises(RecipeError, match=r"no metric 'acuracy'.*did you mean 'accuracy'"):
        check(gates([{"slice": {}, "metric": "acuracy"}]), [], ["accuracy"])
    with pytest.raises(RecipeError, match=r"no dimension 'langauge'.*did you mean 'language'"):
        check(gates([requires({"langauge": "hi"})]), ["language"], ["accuracy"])
    with pytest.raises(RecipeError, match="no dimension 'sex'"):
        check(gates([requires({})], [waiver({"sex": "f"})]), ["language"], ["accuracy"])
    with pytest.raises(RecipeError, match="no requirement"):
        check(gates(), ["language"], ["accuracy"])
    check(gates(), ["language"], ["accuracy"], sensitive=True)
