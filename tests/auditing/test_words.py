"""Plain words: the right numbers, the right direction, claims that stay true when rounded, and no jargon."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regear.auditing.scales import SCALES, scale
from regear.auditing.suppress import export
from regear.auditing.unmeasured import not_measured
from regear.auditing.words import Teller, apart, figure
from tests.auditing.results import languages

JARGON = re.compile(r"p-value|q-value|confidence|interval|signific|bootstrap|hypothes", re.IGNORECASE)


def row(effect, ci, verdict="harm", *, metric="accuracy", before=0.52, n=1240, lower=False, **more):
    after = before - effect if lower else before + effect
    found = {"slice": {"language": "hi"}, "metric": metric, "n": n, "clusters": n, "before": before, "after": after}
    return (
        found
        | {"effect": effect, "ci": ci, "margin": 0.02, "verdict": verdict, "reason": "r", "units_needed": None}
        | more
    )


def teller(metric="accuracy", **more):
    return Teller({"metrics": {metric: {"lower_is_better": False, "margin": 0.02, **more}}})


def test_harm_in_people_and_per_hundred():
    assert teller().sentence(row(-0.05, [-0.08, -0.02])) == (
        "For language=hi (1,240 units) accuracy fell from 0.52 to 0.47: 5 fewer right answers per 100, about 62 of these "
        "1,240; we are sure that it is at least 2 per 100."
    )


def test_not_knowing_says_what_would_settle_it():
    found = teller().sentence(row(0.0, [-0.4, 0.3], "undetermined", n=8, units_needed=640))
    assert "we cannot tell" in found
    assert "with 8 units; about 640 would settle it" in found
    assert "a loss of 40 per 100 to a gain of 30 per 100" in found


@pytest.mark.parametrize(
    ("metric", "effect", "before", "lower", "words"),
    [
        ("latency", -30, 120, True, "rose from 120.00 to 150.00: 25 % longer to wait"),
        ("latency", 30, 120, True, "fell from 120.00 to 90.00: 25 % less long to wait"),
        ("bits_per_byte", -0.11, 1.1, True, "10 % more bits"),
        ("ndcg@10", -0.0036, 0.1643, False, "fell from 0.164 to 0.161: 0.36 fewer points of 100"),
        ("hit@10", 0.1, 0.4, False, "10 more people per 100 who get something useful, about 124 of these 1,240"),
        ("visibility", -0.03, 0.05, False, "3 less per 100 of all attention"),
        ("refusal", -0.1, 0.1, True, "10 more refusals per 100"),
        ("clicks", -0.5, 2.0, False, "clicks fell from 2.00 to 1.50: 0.5 less clicks"),
        ("seats", -0.5, 2.0, True, "seats rose from 2.00 to 2.50: 0.5 more seats"),
    ],
)
def test_each_metric_in_its_own_words(metric, effect, before, lower, words):
    ci = [effect - 0.001, effect + 0.001]
    assert words in teller(metric, lower_is_better=lower).sentence(
        row(effect, ci, metric=metric, before=before, lower=lower)
    )


def test_log_probabilities_are_told_as_how_likely():
    found = teller("gold_logprob", unit="nats per byte").amount("gold_logprob", -0.0513, -1.2)
    assert found == "5 % less likely to give it, byte by byte"
    assert teller("gold_logprob").amount("gold_logprob", 0.0953, -1.2) == "10 % more likely to give it"


def test_units_of_measurement_of_unknown_metrics_are_kept():
    assert teller("heat", unit="K").amount("heat", -2, 300) == "2 K less heat"


def test_no_harm_with_a_small_loss_a_possible_loss_and_a_gain():
    assert "there is a loss, but one below 1 per 100 (up to 2 counts as none)" in teller().sentence(
        row(-0.005, [-0.01, -0.001], "no_harm")
    )
    assert "any loss is below 1 per 100" in teller().sentence(row(-0.005, [-0.01, 0.001], "no_harm"))
    assert "a gain, of at least 1 per 100" in teller().sentence(row(0.05, [0.01, 0.09], "no_harm"))


@given(st.floats(1e-3, 1e4))
def test_rounded_bounds_claim_no_more_than_is_known(value):
    low, high = (float(figure(value, way).replace(",", "")) for way in ("down", "up"))
    assert low <= value * (1 + 1e-9)
    assert high >= value * (1 - 1e-9)
    assert high - low <= max(0.1 * value, 1e-3) + 1


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_before_and_after_are_shown_to_differ_where_they_visibly_do(before, after):
    if abs(before - after) > 1e-6:
        one, two = apart(before, after)
        assert one != two


def test_clusters_are_named_where_units_are_not_independent():
    assert "(1,240 units of 300 clusters)" in teller().sentence(row(-0.05, [-0.08, -0.02], clusters=300))


def test_kinds_have_their_own_units():
    made = Teller({"kind": "lists", "metrics": {}})
    assert "1,240 users" in made.sentence(row(-0.05, [-0.08, -0.02], metric="hit@10"))


def test_withheld_groups_are_named_as_such():
    full = languages()
    shown = export(full)
    told = {r["slice"].get("language"): Teller(shown).sentence(r) for r in shown["verdicts"]}
    assert "we show nothing" in told["sw"]
    assert "numbers are not shown" in told["de"]
    assert "16.2 fewer right answers" in told["hi"]


def test_no_jargon_anywhere():
    full = languages()
    made = Teller(full)
    lines = [made.sentence(r) for r in [*full["overall"], *full["verdicts"]]] + [made.what_sure_means()]
    lines += [f"{s.title} {s.more} {s.fewer}" for s in SCALES.values()] + not_measured(full)
    assert not [line for line in lines if JARGON.search(line)]


def test_scales_ignore_case_and_cut_offs():
    assert scale("NDCG@20") is scale("ndcg@5") is SCALES["ndcg"]
    assert scale("bpb") is SCALES["bits_per_byte"]


def test_what_was_not_measured_names_dimensions_small_slices_and_the_unknown():
    full = languages()
    full["verdicts"].append(row(0, [0, 0], "no_harm", n=240) | {"slice": {"language": "unknown"}})
    found = "\n".join(not_measured(full))
    assert "Any dimension but language and gender." in found
    assert "language=sw (8)" in found
    assert "language is unknown for 10% of the units" in found
    assert "not a column" in found
    assert "(8)" not in "\n".join(export(full)["not_measured"])
    assert "no dimension was named" in "\n".join(not_measured({"kind": "lists", "verdicts": [], "units": 5}))
