"""`regear audit` as people run it: tables, lists and models; gates, reports, the ledger and the card."""

import json

import numpy as np
import polars as pl
import pytest
import yaml

from regear.cli.main import run
from tests.tiny import make_text


def audited(*words, code=0, capsys):
    assert run(["audit", *map(str, words), "--json"]) == code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(*words, capsys):
    assert run(["audit", *map(str, words)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.fixture
def tables(tmp_path):
    """1,500 people; those of north lose 0.4."""
    generator = np.random.default_rng(0)
    region = generator.choice(["north", "south", "east"], 1500)
    before = generator.normal(size=1500)
    after = before + 0.2 * generator.normal(size=1500) - 0.4 * (region == "north")
    ids = [f"person-{i}" for i in range(1500)]
    gender = generator.choice(["f", "m"], 1500)
    pl.DataFrame({"id": ids, "score": before, "region": region}).write_parquet(tmp_path / "before.parquet")
    pl.DataFrame({"id": ids, "score": after}).write_parquet(tmp_path / "after.parquet")
    pl.DataFrame({"id": ids, "gender": gender}).write_parquet(tmp_path / "people.parquet")
    return tmp_path


def gates(folder, **content):
    (folder / "gates.yaml").write_text(yaml.safe_dump(content))
    return folder / "gates.yaml"


def pair(folder):
    return folder / "before.parquet", folder / "after.parquet"


def test_without_by_every_attribute_of_few_values_is_a_dimension(tables, capsys):
    found = audited(*pair(tables), "--metric", "score", "--attributes", tables / "people.parquet", capsys=capsys)
    assert {name for verdict in found["verdicts"] for name in verdict["slice"]} == {"region", "gender"}
    assert {d["name"]: d["sensitive"] for d in found["dimensions"]} == {"region": False, "gender": True}
    assert set(found["inputs"]) == {"before", "after", "attributes"}


@pytest.mark.parametrize(
    ("where", "code", "word"), [({"region": "south"}, 0, "pass"), ({"region": "north"}, 1, "fail")]
)
def test_a_gate_decides_the_exit_code(tables, capsys, where, code, word):
    file = gates(tables, require=[{"slice": where, "metric": "score"}])
    assert audited(*pair(tables), "--metric", "score", "--gates", file, code=code, capsys=capsys)["gate"] == word


def test_what_cannot_be_decided_fails_closed(tables, capsys):
    file = gates(tables, require=[{"slice": {"region": "north"}, "metric": "score", "margin": 0.4}])
    found = audited(*pair(tables), "--metric", "score", "--gates", file, code=1, capsys=capsys)
    assert found["gate"] == "undetermined"


def test_reports_and_the_ledger_name_no_unit_and_no_sensitive_row(tables, capsys):
    words = ["--metric", "score", "--attributes", tables / "people.parquet"]
    trail, folder = tables / "trail.jsonl", tables / "report"
    audited(*pair(tables), *words, "--ledger", trail, "--report", folder, capsys=capsys)
    assert run(["ledger", "verify", str(trail), "-q"]) == 0
    shared = "".join((folder / name).read_text() for name in ("report.html", "stakeholder.md", "legal.md"))
    assert "north" in shared
    assert "person-" not in shared + trail.read_text()


def test_the_slice_nobody_named_is_found(tables, capsys):
    found = audited(*pair(tables), "--metric", "score", "--by", "gender", "--attributes", tables / "people.parquet",
                    capsys=capsys)  # fmt: skip
    assert [row["slice"] for row in found["discovered"] if row["verdict"] == "harm"] == [{"region": "north"}]


@pytest.fixture
def lists(tmp_path):
    """200 users with lists of 5 of 30 items; after the change the items of provider small are gone."""
    generator = np.random.default_rng(0)
    rows, after, wanted = [], [], []
    for user in range(200):
        items = generator.permutation(30)[:5]
        rows += [{"user": f"u{user}", "item": f"i{i}", "rank": r + 1} for r, i in enumerate(items)]
        swapped = [i if i < 20 else i - 20 + 30 for i in items]
        after += [{"user": f"u{user}", "item": f"i{i}", "rank": r + 1} for r, i in enumerate(swapped)]
        wanted.append({"user": f"u{user}", "item": f"i{items[0]}"})
    goods = [{"item": f"i{i}", "provider": "small" if 20 <= i < 30 else "large"} for i in range(40)]
    people = [{"user": f"u{user}", "age": "young" if user % 2 else "old"} for user in range(200)]
    for name, table in (("b", rows), ("a", after), ("wanted", wanted), ("goods", goods), ("people", people)):
        pl.DataFrame(table).write_ndjson(tmp_path / f"{name}.jsonl")
    return tmp_path


def test_lists_say_who_is_hurt_and_who_lost_visibility(lists, capsys):
    words = ["--relevance", lists / "wanted.jsonl", "--catalogue", lists / "goods.jsonl", "--top", 5]
    found = audited(lists / "b.jsonl", lists / "a.jsonl", *words, "--attributes", lists / "people.jsonl", capsys=capsys)
    assert found["kind"] == "lists"
    seen = {row["slice"]["provider"]: row for row in found["exposure"]["dimensions"]["provider"]["rows"]}
    assert seen["small"]["verdict"] == "harm"
    assert seen["large"]["verdict"] == "no_harm"
    assert {v["slice"]["age"] for v in found["verdicts"]} == {"young", "old"}
    assert found["overall"][0]["effect"] < 0
    assert found["nothing_useful"]["lost"] > 0


def test_one_metric_of_lists_can_be_asked_for(lists, capsys):
    words = ["--relevance", lists / "wanted.jsonl", "--top", 5, "--metric", "hit@5"]
    found = audited(lists / "b.jsonl", lists / "a.jsonl", *words, "--report", lists / "r", capsys=capsys)
    assert list(found["metrics"]) == ["hit@5"]
    lost = found["nothing_useful"]["lost"]
    assert f"{lost} who had something useful in their list now have nothing" in (
        lists / "r" / "stakeholder.md"
    ).read_text().replace(",", "")


def test_lists_can_be_gated_on_visibility_and_reported(lists, capsys):
    words = ["--relevance", lists / "wanted.jsonl", "--catalogue", lists / "goods.jsonl", "--top", 5]
    file = gates(lists, require=[{"slice": {"provider": "*"}, "metric": "visibility"}])
    found = audited(lists / "b.jsonl", lists / "a.jsonl", *words, "--gates", file, "--report", lists / "r", code=1,
                    capsys=capsys)  # fmt: skip
    assert found["gate"] == "fail"
    assert "small" in (lists / "r" / "stakeholder.md").read_text()


def test_two_models_on_texts_of_several_kinds(tiny, tmp_path, capsys, cache):
    rows = [{"text": make_text(seed=i)[: 600 + i], "language": "en" if i % 2 else "de"} for i in range(8)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny("llama")
    words = [model, model, "--text", tmp_path / "texts.jsonl", "--after-kv", "int4", "--by", "language"]
    found = audited(*words, "--report", tmp_path / "r", capsys=capsys)
    assert found["kind"] == "models"
    by = {(v["metric"], v["slice"]["language"]): v for v in found["verdicts"]}
    assert {name for name, _ in by} == {"bits_per_byte", "kl_per_byte"}
    assert all(v["verdict"] == "undetermined" for v in by.values())  # eight texts are too few to pass
    assert by["kl_per_byte", "en"]["effect"] < 0
    assert (tmp_path / "r" / "report.html").is_file()


def test_the_card_carries_the_last_audit_once(tiny, tmp_path, capsys, cache):
    import shutil

    after = tmp_path / "after"
    shutil.copytree(tiny("llama"), after)
    (after / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    (tmp_path / "t.txt").write_text(make_text())
    for _ in range(2):
        assert run(["audit", str(tiny("llama")), str(after), "--text", str(tmp_path / "t.txt"), "--card", "-q"]) == 0
    text = (after / "README.md").read_text()
    assert text.startswith("---\nlicense: mit")
    assert text.count("Whom the change hurts") == 1


def test_mistakes_are_one_line(tables, lists, tiny, capsys):
    b, a = pair(tables)
    assert "wanted two tables, or two models" in refused(b, tiny("llama"), capsys=capsys)
    assert "belongs to an audit of models" in refused(b, a, "--text", "builtin", capsys=capsys)
    assert "belongs to an audit of lists" in refused(b, a, "--relevance", b, capsys=capsys)
    assert "no relevance" in refused(lists / "b.jsonl", lists / "a.jsonl", capsys=capsys)
    assert "did you mean 'score'" in refused(b, a, "--metric", "scor", capsys=capsys)
    assert "did you mean 'region'" in refused(b, a, "--metric", "score", "--by", "regin", capsys=capsys)
    assert "only a model has a card" in refused(b, a, "--metric", "score", "--card", capsys=capsys)
    file = gates(tables, require=[{"slice": {"regio": "north"}, "metric": "score"}])
    assert "did you mean 'region'" in refused(b, a, "--metric", "score", "--gates", file, capsys=capsys)
    assert "give two tables" in refused(b, capsys=capsys)


def test_questions_suggest_metrics(capsys):
    assert run(["audit", "--questions"]) == 0
    assert "interest" in capsys.readouterr().out
    assert run(["audit", "--answers", "interest=providers,position=yes"]) == 0
    assert "visibility" in capsys.readouterr().out


def test_a_number_that_is_crossed_is_no_metric(tmp_path, capsys):
    rows = {"id": range(90), "score": [1.0] * 90, "height": [i / 7 for i in range(90)], "g": ["a", "b", "c"] * 30}
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    found = audited(tmp_path / "t.parquet", tmp_path / "t.parquet", "--by", "g*height", "--search", 0, capsys=capsys)
    assert list(found["metrics"]) == ["score"]


def test_places_that_cannot_be_written_are_refused_before_any_work(tables, capsys, monkeypatch):
    words = [*pair(tables), "--metric", "score", "--search", 0]
    (tables / "file").write_text("")
    monkeypatch.setattr("regear.auditing.audit.of_tables", None)  # the work
    assert "it is a file; name a folder" in refused(*words, "--report", tables / "file", capsys=capsys)
    assert "is a file; choose another" in refused(*words, "--report", tables / "file" / "r", capsys=capsys)
    assert "it is a folder; name a file" in refused(*words, "--ledger", tables, capsys=capsys)
    (tables / "broken.jsonl").write_text("{}\n")
    assert run(["audit", *map(str, words), "--ledger", str(tables / "broken.jsonl")]) == 1
    assert "line 1 was edited" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_leaves_no_entry_in_the_ledger(tables, capsys):
    (tables / "file").write_text("")
    words = [*pair(tables), "--metric", "score", "--search", 0, "--ledger", tables / "trail.jsonl"]
    refused(*words, "--report", tables / "file", capsys=capsys)
    assert not (tables / "trail.jsonl").exists()


def test_the_head_of_the_ledger_is_printed(tables, capsys):
    trail = tables / "trail.jsonl"
    words = [*map(str, pair(tables)), "--metric", "score", "--search", "0", "--ledger", str(trail)]
    assert run(["audit", *words]) == 0
    head = capsys.readouterr().out.rstrip().rpartition("head ")[2]
    assert run(["ledger", "verify", str(trail), "--head", head, "-q"]) == 0


def test_the_metric_itself_is_no_dimension(tables, capsys):
    for by in ("score", "region*score"):
        assert "look better after any change" in refused(*pair(tables), "--metric", "score", "--by", by, capsys=capsys)


def test_options_of_lists_are_refused_with_tables(tables, capsys):
    for words in (("--top", 5), ("--exposure-margin", 0.1)):
        assert "belongs to an audit of lists" in refused(*pair(tables), "--metric", "score", *words, capsys=capsys)


def test_values_too_large_to_square_are_refused_by_id(tmp_path, capsys):
    for name, value in (("b", 1e308), ("a", -1e308)):
        pl.DataFrame({"id": range(50), "score": [value] * 50}).write_parquet(tmp_path / f"{name}.parquet")
    message = refused(tmp_path / "b.parquet", tmp_path / "a.parquet", capsys=capsys)
    assert "50 units have score beyond 1e+100" in message


@pytest.mark.filterwarnings("error")
def test_denominators_of_zero_are_undetermined_without_a_warning(tmp_path, capsys):
    for name, more in (("b", 0), ("a", 1)):
        rows = pl.DataFrame({"id": range(50), "clicks": range(more, 50 + more), "shown": [0] * 50})
        rows.write_parquet(tmp_path / f"{name}.parquet")
    words = [tmp_path / "b.parquet", tmp_path / "a.parquet", "--metric", "clicks/shown", "--search", 0]
    assert audited(*words, capsys=capsys)["overall"][0]["verdict"] == "undetermined"


def test_every_answer_of_the_questions_has_a_meaning():
    from regear.auditing.questions import questions

    assert all(meaning for question in questions() for meaning in question["answers"].values())


def test_scores_of_lists_are_no_dimensions(lists, capsys):
    words = [lists / "b.jsonl", lists / "a.jsonl", "--relevance", lists / "wanted.jsonl", "--top", 5]
    words += ["--catalogue", lists / "goods.jsonl", "--attributes", lists / "people.jsonl"]
    for name in ("hit@5", "agge"):
        assert "found age, provider" in refused(*words, "--by", name, capsys=capsys)


def test_scores_of_models_are_no_dimensions(tiny, tmp_path, capsys, cache):
    (tmp_path / "t.txt").write_text(make_text())
    message = refused(tiny("llama"), tiny("llama"), "--text", tmp_path / "t.txt", "--by", "bits:lower", capsys=capsys)
    assert "no attribute 'bits:lower'" in message
    assert "kl_bits" not in message


def test_the_card_counts_what_it_withholds_and_names_its_level(tables):
    from regear.auditing.audit import audit
    from regear.auditing.card import write_card

    (tables / "README.md").write_text("# A model\n")
    result = audit(*pair(tables), metric=["score"], by=["region"], search=0, level=0.9)
    write_card(result, tables, k=2000)
    text = (tables / "README.md").read_text()
    assert "0 harm, 0 undetermined, 0 no_harm, 3 withheld" in text
    assert "90% from" in text


def test_other_outcomes_are_no_slices_unless_asked_for(tmp_path, capsys):
    rows = {"id": range(90), "score": [1.0] * 90, "ok": [0, 1, 1] * 30, "g": ["a", "b", "c"] * 30}
    for name in ("b", "a"):
        pl.DataFrame(rows).write_parquet(tmp_path / f"{name}.parquet")
    words = [tmp_path / "b.parquet", tmp_path / "a.parquet", "--metric", "score", "--search", 0]
    found = audited(*words, capsys=capsys)
    assert {name for verdict in found["verdicts"] for name in verdict["slice"]} == {"g"}
    assert any("Slices of ok" in line for line in found["not_measured"])
    assert audited(*words, "--by", "ok", capsys=capsys)["verdicts"][0]["slice"] == {"ok": 0}
