"""Two tiny models scored unit by unit: the tables against direct scoring, attributes, resuming, other tokenizers."""

import json
import math
import shutil

import polars as pl
import pytest

from regear.auditing import models as scoring
from regear.auditing.declines import declines
from regear.auditing.model_tables import tabulate, window_rows
from regear.auditing.models import score_models
from regear.auditing.tables import joined
from regear.core.errors import DataError, RecipeError
from regear.measure.choice import score_choices
from regear.measure.perplexity import score_pair
from regear.models.load import load_model, load_tokenizer
from regear.tasks.choice import TASKS, ChoiceItem
from regear.tasks.passages import read_passages
from tests.tiny import make_model, make_text

ITEMS = [
    ChoiceItem(
        f"{lang}/{n}",
        question,
        ("a", "b c", "d"),
        n % 3,
        cluster=str(n),
        attributes={"language": lang, "subject": "x" if n < 2 else "y"},
    )
    for lang, question in (("en", "Which one?"), ("hi", "कौन सा?"))
    for n in range(4)
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny):
    return tiny("llama"), make_model("llama", tmp_path_factory.mktemp("other") / "m", seed=1)


@pytest.fixture
def rows(tmp_path):
    """Parallel rows in two languages, one of them of two windows."""
    path = tmp_path / "rows.jsonl"
    texts = {"hi": "यह एक छोटा वाक्य है। " * 5, "en": make_text(300)}
    lines = [
        {"id": f"{lang}/{n}", "cluster": str(n), "text": text + str(n), "language": lang}
        for n in range(3)
        for lang, text in texts.items()
    ]
    lines.append({"id": "long", "text": make_text(2200), "language": "en"})
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture(autouse=True)
def _task(monkeypatch, cache):
    monkeypatch.setitem(TASKS, "mine", lambda: ITEMS)


def test_windows_and_questions_equal_direct_scores(pair, rows):
    found = score_models(*pair, text=[rows], tasks=["mine"], device="cpu")
    before, after = (load_model(path, "cpu") for path in pair)
    tokenizer = load_tokenizer(pair[0])
    passages = read_passages([rows])
    two, one = score_pair(after, before, tokenizer, [p.window for p in passages])
    windows = found.after.filter(unit="window")
    assert windows["id"].to_list() == [p.id for p in passages]
    assert len(passages) == 8
    assert windows["bits:lower"].to_list() == pytest.approx([x / math.log(2) for x in two.nll])
    assert windows["kl_bits:lower"].to_list() == pytest.approx([x / math.log(2) for x in two.kl])
    ratio = found.before["bits:lower"].sum() / found.before["bytes"].sum()
    assert ratio == pytest.approx(one.bits_per_byte)
    for model, table in ((before, found.before), (after, found.after)):
        direct = score_choices(model, tokenizer, ITEMS)
        questions = table.filter(unit="question")
        assert questions["accuracy"].to_list() == direct.right
        assert questions["gold_logprob"].to_list() == pytest.approx(direct.gold_logprob)
    right = [frame.filter(unit="question")["accuracy"] for frame in (found.before, found.after)]
    lost = found.after.filter(unit="question")["right_to_wrong:lower"]
    assert lost.to_list() == ((right[0] == 1) & (right[1] == 0)).cast(int).to_list()
    assert found.chance == pytest.approx(1 / 3)
    assert {m.name for m in found.metrics} == {
        *("bits_per_byte", "kl_per_byte", "gold_logprob", "accuracy", "right_to_wrong")
    }
    assert any(line.startswith("tokens_per_byte: the tokenizers are the same") for line in found.not_measured)


def test_units_carry_attributes_and_clusters_and_can_be_audited(pair, rows):
    found = score_models(*pair, text=[rows], tasks=["mine"], device="cpu")
    table = {row["id"]: row for row in found.before.to_dicts()}
    hindi = table["hi/1"]
    assert (hindi["language"], hindi["script"], hindi["cluster"]) == ("hi", "devanagari", "1")
    assert table["long/0"]["cluster"] == table["long/1"]["cluster"] == "long"
    assert table["mine/hi/2"]["cluster"] == table["mine/en/2"]["cluster"] == "mine/2"
    assert {"language", "script", "subject", "complexity"} <= set(found.dimensions)
    assert "file" not in found.dimensions  # there is one file
    assert found.measures("accuracy", ["language", "subject"])
    assert not found.measures("bits_per_byte", ["subject"])
    both = joined(found.before.lazy(), found.after.lazy(), found.metrics, ["language"]).collect()
    assert len(both) == 16


def test_the_same_model_changes_nothing(pair, rows):
    found = score_models(pair[0], pair[0], text=[rows], tasks=["mine"], device="cpu")
    changed = [m.top for m in found.metrics if m.name != "kl_per_byte"]
    assert found.before.select(changed).equals(found.after.select(changed))
    assert found.after["kl_bits:lower"].drop_nulls().abs().max() < 1e-4


def test_a_killed_run_goes_on(pair, rows, monkeypatch):
    monkeypatch.setattr("regear.measure.kept.in_blocks.__kwdefaults__", {"block": 2, "progress": None})
    whole = score_models(*pair, text=[rows], device="cpu")
    calls, real = [], scoring.score_pair

    def dies(*arguments):
        calls.append(len(arguments[3]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(scoring, "LAYOUT", scoring.LAYOUT + 1)  # another identity: nothing is kept yet
    monkeypatch.setattr(scoring, "score_pair", dies)
    with pytest.raises(KeyboardInterrupt):
        score_models(*pair, text=[rows], device="cpu")
    again = score_models(*pair, text=[rows], device="cpu")
    assert calls == [2, 2, 2, 2, 2]  # the third block once more, and no block twice
    assert again.after.equals(whole.after)
    monkeypatch.setattr(scoring, "load_as", lambda *_: pytest.fail("all was scored before"))
    assert score_models(*pair, text=[rows], device="cpu").after.equals(whole.after)


def test_limits_take_whole_clusters(pair, rows):
    found = score_models(*pair, text=[rows], tasks=["mine"], windows=2, items=2, device="cpu").before
    assert found.filter(unit="window")["cluster"].n_unique() == 2
    questions = found.filter(unit="question")
    assert len(questions) == 4
    assert questions.group_by("cluster").len()["len"].to_list() == [2, 2]


def test_what_is_written(pair, rows):
    found = score_models(*pair, tasks=["mine"], generate=3, device="cpu")
    before, after = found.before.filter(unit="prompt"), found.after.filter(unit="prompt")
    assert len(before) == 3
    assert before["agreement"].to_list() == [1.0] * 3
    assert after["agreement"].max() < 1
    assert (before["seconds:lower"] > 0).all()
    assert after["refusal:lower"].is_in([0, 1]).all()
    texts = score_models(*pair, text=[rows], generate=2, device="cpu")
    assert texts.after.filter(unit="prompt")["refusal:lower"].null_count() == 2
    assert any(line.startswith("refusal: no unit has it") for line in texts.not_measured)


def test_other_tokenizers_have_no_kl(pair, rows, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    other = shutil.copytree(pair[1], tmp_path / "other")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {"th": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(other)
    found = score_models(pair[0], other, text=[rows], device="cpu")
    assert [m.name for m in found.metrics] == ["bits_per_byte", "tokens_per_byte"]
    assert "kl_per_byte: the tokenizers differ" in found.not_measured
    english = [frame.filter(language="en")["tokens:lower"].sum() for frame in (found.before, found.after)]
    assert english[1] < english[0]
    joined(found.before.lazy(), found.after.lazy(), found.metrics, ["language"]).collect()
    asked = score_models(pair[0], other, tasks=["mine"], generate=2, device="cpu")
    assert "cost" in [m.name for m in asked.metrics]


def test_mistakes_are_named(pair, rows, tmp_path):
    with pytest.raises(RecipeError, match="nothing to score them on"):
        score_models(*pair)
    with pytest.raises(RecipeError, match="windows=0"):
        score_models(*pair, text=[rows], windows=0)
    with pytest.raises(RecipeError, match="generate with a cache kind"):
        score_models(*pair, text=[rows], generate=1, after_kv="int8")
    taken = tmp_path / "taken.jsonl"
    taken.write_text(json.dumps({"text": make_text(200), "bytes": "few"}))
    with pytest.raises(DataError, match="attribute 'bytes'"):
        score_models(*pair, text=[taken], device="cpu")


def test_attributes_with_too_many_values_are_said_and_not_sliced():
    passages = read_passages([])
    assert passages == []
    scores = {"before": {"bits": 1.0, "tokens": 1, "bytes": 9}, "after": {"bits": 1.0, "tokens": 1, "bytes": 9}}
    from regear.tasks.passages import Passage
    from regear.tasks.text import Window

    rows = [
        window_rows(
            Passage(str(n), str(n), Window("text", "f"), {"url": f"u{n}", "year": n}), scores | {"kl_bits": 0.0}
        )
        for n in range(201)
    ]
    found = tabulate(rows, {}, same_tokenizer=True)
    assert "url" not in found.dimensions
    assert "year" in found.dimensions
    assert "slices of url: it has 201 values; group them first" in found.not_measured


@pytest.mark.parametrize(
    ("answer", "language", "found"),
    [
        ("I’m sorry, but", None, True),
        ("Sure, I cannot wait", "en", False),
        ("क्षमा करें, मैं", "hi", True),
        ("I cannot do that", "hi", True),
        ("Lo siento", "de", False),
        ("anything", "sw", None),
    ],
)
def test_refusals(answer, language, found):
    assert declines(answer, language) is found


def test_tables_survive_parquet(pair, rows, tmp_path):
    found = score_models(*pair, text=[rows], device="cpu")
    found.after.write_parquet(tmp_path / "after.parquet")
    assert pl.read_parquet(tmp_path / "after.parquet").equals(found.after)
