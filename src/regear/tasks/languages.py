"""The worked MMLU questions that the lm-eval wheel carries in seven languages, aligned question by question.

They are the few-shot examples of its `llama3/instruct` tasks, apparently machine translations; read where they lie.
"""

import html
from pathlib import Path
from typing import Any

import yaml

from regear.core.errors import DataError
from regear.tasks.choice import LM_EVAL, ChoiceItem, lm_eval_file

LANGUAGES = ("de", "es", "fr", "hi", "it", "pt", "th")
FOLDER = "tasks/llama3/instruct"
LETTERS = "ABCD"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values only; what names a Python function is read as nothing."""


_Loader.add_multi_constructor("!function", lambda loader, suffix, node: None)


def mmlu_languages() -> list[ChoiceItem]:
    """285 questions (57 subjects, 5 each) in seven languages, language by language in the same order.

    `cluster` is the question's number, the same in every language; attributes are language and subject.

    Raises:
        DataError: the files have another shape, or the languages disagree on a question or its answer.
    """
    return read_languages(lm_eval_file(FOLDER))


def read_languages(folder: Path) -> list[ChoiceItem]:
    """The items of `mmlu_XX/mmlu_XX_SUBJECT.yaml` under a folder; see `mmlu_languages`."""
    items = [item for language in LANGUAGES for item in _language(folder, language)]
    answers: dict[str, list[int]] = {}
    for item in items:
        answers.setdefault(item.cluster, []).append(item.answer)
    alone = [name for name, found in answers.items() if len(found) != len(LANGUAGES)]
    apart = [name for name, found in answers.items() if len(set(found)) > 1]
    if not items or alone or apart:
        what = f"no question, or some that are not the same in every language: {', '.join((alone + apart)[:5])}"
        raise DataError(f"{folder}: found {what}; wanted the files of {LM_EVAL}")
    return items


def _language(folder: Path, language: str) -> list[ChoiceItem]:
    items = []
    prefix = f"mmlu_{language}_"
    for path in sorted((folder / f"mmlu_{language}").glob(f"{prefix}*.yaml")):
        subject = path.stem.removeprefix(prefix)
        try:
            samples = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)["fewshot_config"]["samples"]
            items += [_item(sample, language, subject, number) for number, sample in enumerate(samples)]
        except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} holds no questions in the known form ({error!r}); wanted {LM_EVAL}") from None
    return items


def _item(sample: dict[str, Any], language: str, subject: str, number: int) -> ChoiceItem:
    options = tuple(_plain(sample["input_choice_list"][letter]) for letter in LETTERS)
    (right,) = sample["input_correct_responses"]
    return ChoiceItem(
        f"{language}/{subject}/{number}",
        _plain(sample["input_question"]),
        options,
        LETTERS.index(right),
        cluster=f"{subject}/{number}",
        attributes={"language": language, "subject": subject},
    )


def _plain(text: str) -> str:
    """`l&#39;eau` → `l'eau`."""
    return html.unescape(str(text)).strip()
