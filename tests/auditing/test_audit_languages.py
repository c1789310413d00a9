"""The languages benchmark from end to end on a tiny model and tiny catalogues."""

import importlib
import json
from pathlib import Path

import pytest

from regear.tasks.choice import TASKS, ChoiceItem
from tests.tiny import small


@pytest.fixture
def locales(tmp_path):
    """Forty messages in English, German and a language that is written at twice the length."""
    for language, words in (("de", "{0} Wort"), ("xx", "{0} wordword wordword {0}")):
        path = tmp_path / "django" / "conf" / "locale" / language / "LC_MESSAGES" / "django.po"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(f'msgid "{n} word"\nmsgstr "{words.format(n)}"\n' for n in range(160)))
    (tmp_path / "django" / "contrib").mkdir()
    return tmp_path / "django"


def test_it_runs_and_pairs_languages(tiny, text, locales, tmp_path, monkeypatch, cache):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "benchmarks")
    items = [
        ChoiceItem(f"{lang}/{n}", f"{n}?", ("a", "bb"), n % 2, cluster=str(n), attributes={"language": lang})
        for lang in ("de", "xx")
        for n in range(31)
    ]
    monkeypatch.setitem(TASKS, "mmlu-languages", lambda: items)
    saved = tmp_path / "saved.json"
    words = ["--model", tiny("llama"), "--locales", locales, "--languages", "en,de,xx", "--messages", "5"]
    words += ["--work", tmp_path / "work", "--ratios", "1/4", "--save", saved, "--convert", ",".join(small(text))]
    monkeypatch.setattr("sys.argv", ["audit_languages", *map(str, words)])
    importlib.import_module("audit_languages").main()
    results = json.loads(saved.read_text())["results"]
    assert {row["language"] for row in results["premium"]} == {"en", "de", "xx"}
    assert results["premium"][0]["language"] == "xx"
    found = results["models"]["1/4"]
    windows = {(v["metric"], v["slice"].get("language")): v for v in found["window"]["verdicts"]}
    assert len(windows) == 3 * 4
    overall = windows["bits_per_byte", None]
    assert overall["n"] == 96
    assert overall["clusters"] == 32
    german, other, english = (windows["bits_per_block", name] for name in ("de", "xx", "en"))
    assert german["against_english"]["effect"] == pytest.approx(german["effect"] - english["effect"])
    assert other["against_english"]["ci"][0] < other["effect"] - english["effect"] < other["against_english"]["ci"][1]
    assert english["against_english"] is None
    accuracy = next(v for v in found["question"]["verdicts"] if v["metric"] == "accuracy" and v["slice"])
    assert accuracy["n"] == 31
    assert found["chance"] == 0.5
