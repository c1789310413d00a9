"""What a healing is judged by: the same windows, items and prompts for the teacher and the model before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regear.core.stats import Interval
from regear.measure.choice import ChoiceScores, score_choices
from regear.measure.generation import Written, write
from regear.measure.perplexity import Scores, score, score_pair
from regear.tasks.choice import load as load_task
from regear.tasks.text import Window

TEXTS = ("evaluation", "elsewhere")


@dataclass(frozen=True)
class Measured:
    """One model: scores by use of text (with KL from the teacher if it is not the teacher), tasks, what it writes."""

    texts: dict[str, Scores]
    tasks: dict[str, ChoiceScores]
    written: Written


@torch.no_grad()
def measure(
    model: Any, teacher: Any, tokenizer: Any, windows: dict[str, list[Window]], tasks: Sequence[str]
) -> Measured:
    """Measure `model`; `teacher` is None where it is the teacher itself."""
    texts = {
        use: score(model, tokenizer, found) if teacher is None else score_pair(model, teacher, tokenizer, found)[0]
        for use, found in windows.items()
    }
    chosen = {name: score_choices(model, tokenizer, load_task(name)) for name in tasks}
    return Measured(texts, chosen, write(model, tokenizer, windows[TEXTS[0]]))


def record(
    teacher: Measured, before: Measured, after: Measured, windows: dict[str, list[Window]], seed: int
) -> dict[str, Any]:
    """Everything measured, as JSON: ratios to the teacher are paired by window, changes of tasks by item."""
    return {
        "texts": {
            use: _text(teacher.texts[use], before.texts[use], after.texts[use], found, seed)
            for use, found in windows.items()
        },
        "tasks": {
            name: _task(teacher.tasks[name], before.tasks[name], after.tasks[name], seed) for name in after.tasks
        },
        "generation": {
            "teacher": teacher.written.summary(teacher.written),
            "before": before.written.summary(teacher.written),
            "after": after.written.summary(teacher.written),
        },
    }


def _text(teacher: Scores, before: Scores, after: Scores, windows: Sequence[Window], seed: int) -> dict[str, Any]:
    sides = {"before": before, "after": after}
    found: dict[str, Any] = {"tokens": sum(teacher.tokens), "windows": len(windows)}
    found["perplexity"] = {"teacher": teacher.perplexity, **{name: s.perplexity for name, s in sides.items()}}
    found["ratio"] = {name: _interval(s.ratio_to(teacher, seed=seed)) for name, s in sides.items()}
    found["kl"] = {name: s.mean_kl for name, s in sides.items()}
    found["by_kind"] = {}
    for kind in sorted({window.kind for window in windows}):
        places = [i for i, window in enumerate(windows) if window.kind == kind]
        base, *parts = (_some(scores, places) for scores in (teacher, before, after))
        found["by_kind"][kind] = {
            name: _interval(part.ratio_to(base, seed=seed)) for name, part in zip(sides, parts, strict=True)
        }
    return found


def _some(scores: Scores, places: Sequence[int]) -> Scores:
    return Scores([scores.nll[i] for i in places], [scores.tokens[i] for i in places])


def _task(teacher: ChoiceScores, before: ChoiceScores, after: ChoiceScores, seed: int) -> dict[str, Any]:
    return {
        "teacher": teacher.summary(),
        "before": before.summary(),
        "after": after.summary(),
        "won": {name: _interval(x) for name, x in after.change_from(before, seed=seed).items()},
        "still_lost": {name: _interval(x) for name, x in after.change_from(teacher, seed=seed).items()},
    }


def _interval(found: Interval) -> list[float]:
    return [found.value, found.low, found.high]


def regained(text: dict[str, Any]) -> float | None:
    """The share of the excess log-perplexity that training won back; None where nothing was lost."""
    import math

    before, after = (math.log(text["ratio"][name][0]) for name in ("before", "after"))
    return 1 - after / before if before > 0 else None


@torch.no_grad()
def held_out(model: Any, teacher: Any, tokenizer: Any, windows: Sequence[Window]) -> dict[str, float]:
    """Perplexity, and KL from the teacher if there is one, on few windows while training."""
    if teacher is None:
        return {"held_out_perplexity": score(model, tokenizer, windows).perplexity}
    found, _ = score_pair(model, teacher, tokenizer, windows)
    return {"held_out_perplexity": found.perplexity, "held_out_kl": found.mean_kl}
