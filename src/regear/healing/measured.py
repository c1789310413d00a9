"""What a healing is judged by: the same windows, items and prompts for the teacher and the model before and after."""

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

import torch

from regear.core.errors import IncompatibleModel
from regear.core.stats import Interval
from regear.measure.choice import ChoiceScores, score_choices
from regear.measure.generation import Written, write
from regear.measure.perplexity import Scores, score, score_pair
from regear.models.head import check_head, decoder, head
from regear.ops.linear import linear
from regear.tasks.choice import load as load_task
from regear.tasks.text import Window

TEXTS = ("evaluation", "elsewhere")


@dataclass(frozen=True)
class Measured:
    """One model: scores by use of text (with KL from the teacher if it is not the teacher), tasks, what it writes."""

    texts: dict[str, Scores]
    tasks: dict[str, ChoiceScores]
    written: Written

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        return cls(
            {use: Scores(**part) for use, part in found["texts"].items()},
            {name: ChoiceScores(**part) for name, part in found["tasks"].items()},
            Written(**found["written"]),
        )


@torch.no_grad()
def measure(
    model: Any, teacher: Any, tokenizer: Any, windows: dict[str, list[Window]], tasks: Sequence[str]
) -> tuple[Measured, dict[str, Scores]]:
    """Measure `model` beside its teacher; also the teacher's scores of the texts, which come with it."""
    pairs = {use: score_pair(model, teacher, tokenizer, found) for use, found in windows.items()}
    own = Measured({use: pair[0] for use, pair in pairs.items()}, *_beyond(model, tokenizer, windows, tasks))
    return own, {use: pair[1] for use, pair in pairs.items()}


@torch.no_grad()
def measure_teacher(
    teacher: Any, texts: dict[str, Scores], tokenizer: Any, windows: dict[str, list[Window]], tasks: Sequence[str]
) -> Measured:
    """The rest of what a teacher is measured by, its scores of the texts being known."""
    return Measured(texts, *_beyond(teacher, tokenizer, windows, tasks))


def _beyond(
    model: Any, tokenizer: Any, windows: dict[str, list[Window]], tasks: Sequence[str]
) -> tuple[dict[str, ChoiceScores], Written]:
    chosen = {name: score_choices(model, tokenizer, load_task(name)) for name in tasks}
    return chosen, write(model, tokenizer, windows[TEXTS[0]])


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
    before, after = (math.log(text["ratio"][name][0]) for name in ("before", "after"))
    return 1 - after / before if before > 0 else None


_STATES: weakref.WeakKeyDictionary[Any, dict[Any, torch.Tensor]] = weakref.WeakKeyDictionary()


class Remembered:
    """A model that does not change, run once over each text: its last hidden states are kept, not its wide logits."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, model.device
        self.states = _STATES.setdefault(model, {})

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        """Logits of all positions, [B, L, V], as `.logits`."""
        key = input_ids.numpy(force=True).tobytes()
        if key not in self.states:
            self.states[key] = decoder(self.model)(input_ids=input_ids, use_cache=False).last_hidden_state
        return SimpleNamespace(logits=linear(self.states[key], head(self.model)))


def remembered(model: Any) -> Any:
    """`Remembered`, or the model itself where its logits are not its states times its head."""
    try:
        check_head(model)
    except IncompatibleModel:
        return model
    return Remembered(model)


@torch.no_grad()
def held_out(model: Any, teacher: Any, tokenizer: Any, windows: Sequence[Window]) -> dict[str, float]:
    """Perplexity, and KL from the teacher if there is one, on few windows while training."""
    if teacher is None:
        return {"held_out_perplexity": score(model, tokenizer, windows).perplexity}
    found, _ = score_pair(model, remembered(teacher), tokenizer, windows)
    return {"held_out_perplexity": found.perplexity, "held_out_kl": found.mean_kl}
