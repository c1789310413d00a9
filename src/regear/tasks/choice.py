"""Multiple-choice items read offline from packages that the user has, or that pip fetches into the cache."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from regear.core.errors import DataError, RecipeError
from regear.core.packages import fetched, installed
from regear.core.recipe import closest

LM_EVAL = "lm-eval==0.4.13"
MMLU_FILE = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"
MMLU_ITEM = re.compile(
    r"Q: (?P<question>.+?)\s*\n\(A\) (?P<a>.+?)\s+\(B\) (?P<b>.+?)\s+\(C\) (?P<c>.+?)\s+\(D\) (?P<d>.+?)\n+"
    r"A: .*?[Tt]he answer is \((?P<answer>[A-D])\)",
    re.DOTALL,
)


@dataclass(frozen=True)
class ChoiceItem:
    """A question, its options, and the index of the right one.

    `cluster`: what translations of one question share, by default nothing; `attributes`: subject, language, ….
    """

    id: str
    question: str
    options: tuple[str, ...]
    answer: int
    cluster: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        return f"Question: {self.question}\nAnswer:"


def mmlu() -> list[ChoiceItem]:
    """The 281 worked MMLU items (57 subjects, up to 5 each) that the lm-eval wheel carries in a readable form.

    Raises:
        DataError: no copy is installed and none can be fetched, or its file has another shape.
    """
    path = lm_eval_file(MMLU_FILE)
    items = []
    for subject, text in sorted(json.loads(path.read_text()).items()):
        for number, match in enumerate(MMLU_ITEM.finditer(text)):
            options = tuple(match[letter].strip() for letter in "abcd")
            answer = "ABCD".index(match["answer"])
            about = {"subject": subject, "language": "en"}
            question = match["question"].strip()
            items.append(ChoiceItem(f"{subject}/{number}", question, options, answer, attributes=about))
    if not items:
        raise DataError(f"{path} holds no items in the known form; wanted {LM_EVAL}")
    return items


def lm_eval_file(name: str) -> Path:
    """A file or folder of the lm-eval package: the installed copy's, else the pinned wheel's."""
    folder = installed("lm_eval")
    if folder and (folder / name).exists():
        return folder / name
    return fetched(LM_EVAL) / "lm_eval" / name


def _mmlu_languages() -> list[ChoiceItem]:
    from regear.tasks.languages import mmlu_languages

    return mmlu_languages()


TASKS: dict[str, Callable[[], list[ChoiceItem]]] = {"mmlu": mmlu, "mmlu-languages": _mmlu_languages}


def load(name: str) -> list[ChoiceItem]:
    """The items of a task by name.

    Raises:
        RecipeError: an unknown task.
    """
    if name not in TASKS:
        raise RecipeError(f"unknown task {name!r}{closest(name, TASKS)}; known: {', '.join(TASKS)}")
    return TASKS[name]()
