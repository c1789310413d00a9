"""Aligned questions in seven languages: a tiny copy of the format, and the wheel's."""

from collections import Counter

import pytest

from regear.core.errors import DataError
from regear.tasks.choice import load
from regear.tasks.languages import LANGUAGES, read_languages

PAGE = """fewshot_config:
  sampler: first_n
  samples:
  - input_choice_list:
      A: '0'
      B: l&#39;eau &lt;
      C: "\\u0905"
      D: 'x'
    input_correct_responses:
    - {letter}
    input_question: "Question in {language} \\
      &amp; more"
include: _continuation_template_yaml
process_docs: !function utils.process_docs_{subject}
task: mmlu_{language}_llama_{subject}
"""


def write(folder, language, subject, letter="B"):
    place = folder / f"mmlu_{language}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "_continuation_template_yaml").write_text("a: 1")
    (place / f"mmlu_{language}_{subject}.yaml").write_text(
        PAGE.format(language=language, subject=subject, letter=letter)
    )


def test_a_tiny_copy(tmp_path):
    for language in LANGUAGES:
        for subject in ("law", "art"):
            write(tmp_path, language, subject)
    items = read_languages(tmp_path)
    assert len(items) == 14
    first = items[0]
    assert (first.id, first.cluster, first.answer) == ("de/art/0", "art/0", 1)
    assert first.question == "Question in de & more"
    assert first.options == ("0", "l'eau <", "अ", "x")
    assert first.attributes == {"language": "de", "subject": "art"}
    assert [item.cluster for item in items[:2]] == [item.cluster for item in items[-2:]]


def test_languages_that_disagree_are_refused(tmp_path):
    for language in LANGUAGES:
        write(tmp_path, language, "law", letter="C" if language == "hi" else "B")
    with pytest.raises(DataError, match="law/0"):
        read_languages(tmp_path)
    for language in LANGUAGES[1:]:
        write(tmp_path / "short", language, "law")
    with pytest.raises(DataError, match="law/0"):
        read_languages(tmp_path / "short")
    with pytest.raises(DataError, match="no question"):
        read_languages(tmp_path / "nowhere")


def test_the_wheels_questions():
    """285 questions, the same answers in every language, nothing left of HTML."""
    items = load("mmlu-languages")
    assert Counter(item.attributes["language"] for item in items) == dict.fromkeys(LANGUAGES, 285)
    assert Counter(item.cluster for item in items).most_common()[-1][1] == 7
    assert len({item.attributes["subject"] for item in items}) == 57
    assert len({(item.cluster, item.answer) for item in items}) == 285
    assert not any("&#39;" in text or "&quot;" in text for item in items for text in (item.question, *item.options))
    assert all(all(item.options) for item in items)
    sizes = Counter()
    for item in items:
        lettered = [f"{letter}. {option}" for letter, option in zip("ABCD", item.options, strict=True)]
        sizes[item.attributes["language"]] += len("\n".join([item.question, *lettered]).encode())
    assert sizes["hi"] / sizes["es"] == pytest.approx(2.16, abs=0.005)
