"""Reports: plain answers for those concerned, a record for legal, everything for the engineer, the same bytes again."""

import json
import re
import shlex
from datetime import UTC, datetime

import pytest

from regear.auditing import ledger, report
from regear.auditing.suppress import export
from regear.auditing.unmeasured import not_measured
from tests.auditing.results import languages
from tests.auditing.test_ledger import judged

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def full():
    result = judged()
    hindi = next(v for v in result["verdicts"] if v["slice"] == {"language": "hi"})
    searched = dict(hindi, slice={"language": "hi", "length": "long"}, n=150, clusters=150, q_value=0.001)
    result["discovered"] = [searched | {"search": {"n": 140, "effect": -0.3}}]
    seen = [
        dict(hindi, slice={"provider": name}, metric="visibility", n=n, clusters=n, before=b, after=a, effect=a - b,
             ci=[a - b - 0.01, a - b + 0.01], margin=0.02, verdict=word)
        for name, n, b, a, word in (("big", 900, 0.6, 0.75, "no_harm"), ("mid", 700, 0.25, 0.06, "harm"),
                                    ("tail", 300, 0.15, 0.19, "no_harm"))
    ]  # fmt: skip
    down = {"providers": 3, "down": 1, "share": 0.3, "ci": [0.1, 0.5], "by_chance": 0.1, "fall": 0.2}
    summary = {
        "coverage": {"before": 0.342, "after": 0.197},
        "gini": {"before": 0.5, "after": 0.7},
        "providers_down": down,
    }
    result["exposure"] = {
        "k": 10,
        "users": 943,
        "dimensions": {"provider": {"rows": seen, "distance": 0.2}},
        "summary": summary,
    }
    result["not_measured"] = not_measured(result)
    return json.loads(json.dumps(result))


@pytest.fixture
def written(tmp_path):
    trail = tmp_path / "ledger.jsonl"
    for _ in range(2):
        ledger.append_audit(trail, full(), now=NOW)
    ledger.sign(trail, name="Ana", role="product", decision="reject", comment="Hindi loses too much", now=NOW)
    paths = report.write(full(), tmp_path / "out", trail=trail)
    return {name: path.read_text() for name, path in paths.items()}


def part(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_plain_report_answers_the_five_questions(written):
    text = written["stakeholder"]
    assert "language=hi: worse on accuracy" in part(text, "Who is hurt?")
    assert "By provider, surely seen less: 1 of 3 groups, provider=mid." in part(text, "Who is hurt?")
    assert "16.2 fewer right answers per 100" in part(text, "By how much?")
    assert "34% stood in anyone's list before, 20% after" in part(text, "By how much?")
    assert "at least 95 of 100" in part(text, "How sure are we?")
    assert "| language=sw | – | – | – | withheld" in part(text, "By how much?")
    assert "Any dimension but language, gender and provider" in part(text, "What was not measured?")
    assert "Do not roll the change out" in part(text, "What to do?")
    assert "keep the old version" in part(text, "What to do?")


def test_the_plain_report_has_no_jargon(written):
    assert not re.search(
        r"p-value|q-value|q_value|confidence|interval|bootstrap|signific", written["stakeholder"], re.IGNORECASE
    )


def test_found_by_search_is_labelled_wherever_it_stands(written):
    words = "checked on units that the search had not seen"
    for name in ("stakeholder", "engineer", "html"):
        assert words in written[name]


def test_nobody_hurt_is_said_as_what_it_is(tmp_path):
    result = languages()
    result["verdicts"] = [v for v in result["verdicts"] if v["verdict"] == "no_harm"]
    text = report.write(result, tmp_path)["stakeholder"].read_text()
    assert "no group that is surely hurt" in part(text, "Who is hurt?")
    assert "Nothing has to be done now" in part(text, "What to do?")


def test_what_cannot_be_told_is_not_told_as_fine(tmp_path):
    result = languages()
    result["verdicts"] = [v for v in result["verdicts"] if v["slice"].get("language") != "hi"]
    for v in result["verdicts"]:
        v |= {"verdict": "undetermined", "reason": "wide", "units_needed": 9999}
    text = report.write(result, tmp_path, 1)["stakeholder"].read_text()
    assert "cannot tell" in part(text, "Who is hurt?")
    assert "it takes about 9,999 units" in part(text, "What to do?")
    assert "surely no loss beyond the limit 0, we cannot tell 5 (of which possibly hurt 0), withheld 0" in text


def test_the_record_for_legal(written):
    text = written["legal"]
    for words in (
        "b" * 64,
        "a loss up to 0.049",
        "set by Bo",
        "Ana (product), until 2027-01-01",
        "gender: 2 values, sensitive",
    ):
        assert words in text
    assert "Ana (product), reject, this audit: Hindi loses too much" in part(text, "Decisions")
    assert "fewer than 10 units" in part(text, "Suppression and retention")
    assert "regear | 0.1.0" in text


def test_small_groups_stand_in_the_engineers_files_only(written):
    for name in ("html", "stakeholder", "legal"):
        assert "8 independent units" not in written[name]
        assert "language=sw (8" not in written[name]
    assert "8 independent units" in written["engineer"]
    assert "for the engineer only" in written["engineer"]
    assert json.loads(written["json"]) == full()


def test_small_sensitive_values_are_named_in_no_report_that_is_handed_on(tmp_path):
    result = full()
    gender = [v for v in result["verdicts"] if "gender" in v["slice"]]
    for name, n in (("nonbinary", 4), ("agender", 2)):
        few = dict(gender[0], slice={"gender": name}, n=n, clusters=n, verdict="undetermined", reason=f"{n} units")
        result["verdicts"].append(few)
    paths = report.write(result, tmp_path)
    for name in ("html", "stakeholder", "legal"):
        assert not re.search("nonbinary|agender", paths[name].read_text()), name
    assert "nonbinary" in paths["engineer"].read_text()


def test_the_page_is_one_file_with_its_plots(written):
    page = written["html"]
    assert page.count("<svg") == 3  # effects, exposure, history
    assert not re.search(r"<(script|link|img|iframe)", page)
    assert set(re.findall(r"https?://[^\"'\s<>]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "Who is hurt?" in page


def test_the_same_result_gives_the_same_bytes(tmp_path):
    one, two = (report.write(full(), tmp_path / name) for name in ("a", "b"))
    assert all(one[name].read_bytes() == two[name].read_bytes() for name in one)


def test_names_cannot_break_out_of_tables_or_pages(tmp_path):
    result = languages()
    for v in result["verdicts"]:
        if v["slice"] == {"language": "hi"}:
            v["slice"] = {"language": "a|b\n<script>$x_y$"}
    paths = report.write(result, tmp_path)
    assert "<script>" not in paths["html"].read_text()
    assert "<script>" not in paths["stakeholder"].read_text()
    tables = [line for line in paths["engineer"].read_text().splitlines() if "script" in line]
    assert tables
    assert all(line.startswith("|") for line in tables)
    assert all("a\\|b <script>" in line for line in tables)


def test_the_command_repeats_the_audit(written):
    words = shlex.split(written["engineer"].split("```")[1])
    assert words[:4] == ["regear", "audit", "before.parquet", "after.parquet"]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--by"] == ["language", "gender"]
    assert words[words.index("--resamples") + 1] == "200"


def test_a_broken_ledger_leaves_no_report(tmp_path):
    trail = tmp_path / "ledger.jsonl"
    trail.write_bytes(b"{}\n")
    with pytest.raises(ledger.BrokenLedger):
        report.write(full(), tmp_path / "out", trail=trail)
    assert not (tmp_path / "out").exists()


def test_answers_for_a_terminal():
    assert any("language=hi" in line for line in report.summary(full()))


def test_those_who_may_be_hurt_are_named_as_such():
    from regear.auditing.answers import answers

    result = languages()
    for row in result["verdicts"]:
        if row["slice"] == {"gender": "f"}:
            row |= {"verdict": "undetermined", "effect": -2 * row["margin"], "ci": [-3 * row["margin"], 0.0]}
    told = {one.title: " ".join(one.lines) for one in answers(export(result))}
    rule = "the best guess is a loss beyond the limit, but one within it, or none, is possible too"
    assert f"Possibly hurt, not proven ({rule}): gender=f." in told["Who is hurt?"]
    assert "For those possibly hurt, decide before the launch" in told["What to do?"]
