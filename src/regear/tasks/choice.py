"""Multiple-choice items read offline from packages that the user has, or that pip fetches into the cache."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
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
    """A question, its options, and the index of the right one."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        return f"Question: {self.question}\nAnswer:"


def mmlu() -> list[ChoiceItem]:
    """The 281 worked MMLU items (57 subjects, up to 5 each) that the lm-eval wheel carries in a readable form.

    Raises:
        DataError: no copy is installed and none can be fetched, or its file has another shape.
    """
    folder = installed("lm_eval")
    path = folder / MMLU_FILE if folder else Path()
    if not path.is_file():
        path = fetched(LM_EVAL) / "lm_eval" / MMLU_FILE
    items = []
    for subject, text in sorted(json.loads(path.read_text()).items()):
        for number, match in enumerate(MMLU_ITEM.finditer(text)):
            options = tuple(match[letter].strip() for letter in "abcd")
            answer = "ABCD".index(match["answer"])
            items.append(ChoiceItem(f"{subject}/{number}", match["question"].strip(), options, answer))
    if not items:
        raise DataError(f"{path} holds no items in the known form; wanted {LM_EVAL}")
    return items


TASKS: dict[str, Callable[[], list[ChoiceItem]]] = {"mmlu": mmlu}


def load(name: str) -> list[ChoiceItem]:
    """The items of a task by name.

    Raises:
        RecipeError: an unknown task.
    """
    if name not in TASKS:
        raise RecipeError(f"unknown task {name!r}{closest(name, TASKS)}; known: {', '.join(TASKS)}")
    return TASKS[name]()
