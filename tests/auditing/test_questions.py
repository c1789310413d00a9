"""The question list: every answer leads somewhere, and only to what the package has."""

import itertools
from pathlib import Path

import pytest

import regear.auditing
from regear.auditing.questions import _table, questions, suggest
from regear.core.errors import RecipeError


def names(answers, **more):
    return [row["metric"] for row in suggest(answers, **more)]


def test_six_questions_with_answers():
    found = questions()
    assert len(found) == 6
    assert all(question["text"].endswith("?") and len(question["answers"]) > 1 for question in found)


def test_every_answer_that_a_metric_names_exists():
    known = {question["name"]: set(question["answers"]) for question in questions()}
    for row in _table()["metrics"]:
        for name, words in row["when"].items():
            assert set(words) <= known[name]
        assert row["trade_off"].endswith(".")


def test_whatever_is_answered_something_is_suggested():
    asked = questions()
    for words in itertools.product(*(question["answers"] for question in asked)):
        assert names(dict(zip((q["name"] for q in asked), words, strict=True)))


def test_users_and_providers_get_different_metrics():
    shared = {"scarce": "attention", "relevance": "yes", "position": "yes", "labels": "yes", "change": "change"}
    users = names({**shared, "interest": "users"}, kind="lists")
    providers = names({**shared, "interest": "providers"}, kind="lists")
    assert users[:2] == ["ndcg@k", "hit@k"]
    assert providers[0] == "visibility"
    assert set(names({**shared, "interest": "both"}, kind="lists")) == {*users, *providers}


def test_without_relevance_nothing_that_needs_it():
    assert not {"ndcg@k", "accuracy", "per_merit", "gold_logprob"} & set(names({"relevance": "no"}))


def test_every_metric_suggested_stands_in_the_package():
    folder = Path(regear.auditing.__file__).parent
    source = "\n".join(path.read_text() for path in folder.glob("*.py"))
    if not (folder / "recommend.py").exists() or not (folder / "models.py").exists():
        pytest.skip("lists and models are not audited yet")
    for row in _table()["metrics"]:
        if row["kind"] != "tables":
            assert f'"{row["metric"].removesuffix("@k")}' in source, row["metric"]


@pytest.mark.parametrize(
    ("answers", "more", "words"),
    [
        ({"intrest": "users"}, {}, "did you mean 'interest'"),
        ({"interest": "user"}, {}, "did you mean 'users'"),
        ({}, {"kind": "list"}, "did you mean 'lists'"),
    ],
)
def test_a_wrong_word_is_named(answers, more, words):
    with pytest.raises(RecipeError, match=words):
        suggest(answers, **more)
