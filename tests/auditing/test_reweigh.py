"""New text weighed by an audit's verdicts: the rule, what is left out, and that conversions take the file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import regear
from regear.auditing.reweigh import reweigh
from regear.core.errors import DataError, RecipeError
from regear.tasks.text import read_documents, windows_of
from tests.tiny import make_text, small


def verdict(language: str, effect: float, word: str = "harm", margin: float = 0.1) -> dict:
    return {
        "slice": {"language": language},
        "metric": "bits_per_byte",
        "effect": effect,
        "margin": margin,
        "verdict": word,
    }


VERDICTS = [verdict("hi", -0.25), verdict("de", -0.9), verdict("fr", -0.9, "undetermined"), verdict("th", -0.2)]


@pytest.fixture
def texts(tmp_path):
    """New rows in three languages, and audited ones; one new row repeats an audited one."""
    audited, new = tmp_path / "audited.jsonl", tmp_path / "new.jsonl"
    rows = [
        {"text": make_text(2400, seed=10 * i + n), "language": language, "id": f"{language}{n}"}
        for i, language in enumerate(("hi", "de", "fr"))
        for n in range(3)
    ]
    audited.write_text(json.dumps({"text": "Before it. " + rows[0]["text"][500:900], "language": "hi"}))
    new.write_text("\n".join(json.dumps(row) for row in rows))
    return new, audited


def test_weights_follow_the_loss_in_margins(texts):
    new, audited = texts
    found = reweigh(VERDICTS, [new], [audited])
    language = {row["text"][:300]: row["language"] for row in map(json.loads, new.read_text().split("\n"))}
    weights = {}
    for row in found.rows:
        weights.setdefault(language.get(row["text"][:300]), set()).add(row["weight"])
    assert (weights["hi"], weights["de"], weights["fr"]) == ({2.5}, {4.0}, {1.0})
    assert [row["weight"] for row in found.rows] == sorted((r["weight"] for r in found.rows), reverse=True)
    assert [entry["slice"] for entry in found.without_text] == [{"language": "th"}]
    assert [entry["weight"] for entry in found.slices] == [2.5, 4.0]


def test_audited_text_is_left_out(texts):
    new, audited = texts
    found = reweigh(VERDICTS, [new], [audited])
    first = json.loads(new.read_text().split("\n")[0])["text"]
    assert found.repeated == 1
    assert not any(first[500:900] in row["text"] for row in found.rows)
    with pytest.raises(DataError, match="was audited"):
        reweigh(VERDICTS, [new], [new])


def test_the_draw_is_seeded_and_bounded(texts):
    new, audited = texts
    one, same, other = (reweigh(VERDICTS, [new], [audited], windows=14, seed=seed) for seed in (0, 0, 1))
    assert one.rows == same.rows != other.rows
    assert len(one.rows) == 14


@given(st.floats(-50, -0.11), st.floats(1, 8))
def test_no_weight_leaves_its_bounds(effect, most):
    from regear.auditing.reweigh import _of

    assert 1 <= _of(verdict("hi", effect), most) <= most


def test_a_conversion_reads_the_weights(texts, tiny, text, tmp_path, cache):
    new, audited = texts
    path = tmp_path / "weighed.jsonl"
    found = reweigh(VERDICTS, [new], [audited])
    found.write(path)
    windows = windows_of(read_documents([path], "calibration"))
    assert {window.weight for window in windows} == {1.0, 2.5, 4.0}
    words = [word for word in small(text) if not word.startswith("calibration")]
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in found.rows))
    for name, file in (("weighed", path), ("even", plain)):
        given = [f"calibration.text=[{file}]", "calibration.tokens=65536", "convert.kv_ratio=1/2"]
        regear.convert(tiny("llama"), tmp_path / name, *words, *given, to="mla")
    both = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("weighed", "even")]
    assert both[0] != both[1]


def test_mistakes_are_named(texts):
    new, audited = texts
    with pytest.raises(RecipeError, match="nothing to make up for"):
        reweigh([verdict("hi", -0.3, "no_harm")], [new], [audited])
    with pytest.raises(RecipeError, match="no window of a harmed slice, such as language=th"):
        reweigh([verdict("th", -0.3)], [new], [audited])
    with pytest.raises(RecipeError, match=r"most=0\.5"):
        reweigh(VERDICTS, [new], [audited], most=0.5)
    with pytest.raises(DataError, match="the windows of weight"):
        reweigh(VERDICTS, [new], [audited], windows=2, seed=3)
