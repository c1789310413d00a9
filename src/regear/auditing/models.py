"""Two models scored on the same windows, questions and prompts: unit tables for the audit.

Every unit is one row on each side. Windows give bits per byte and KL, questions the right option's log-probability
and whether it won, prompts what the models write. A metric that a unit does not have is empty on both sides.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from regear.auditing.model_tables import ModelTables, prompt_rows, question_rows, tabulate, window_rows
from regear.core.errors import RecipeError
from regear.core.files import digest
from regear.core.machine import versions
from regear.engine.text import encode_prompt
from regear.measure.choice import score_choices
from regear.measure.evaluate import same_tokens
from regear.measure.generation import Written, answer, opening, repeated
from regear.measure.kept import Progress, in_blocks
from regear.measure.perplexity import Scores, score, score_pair
from regear.models.adapter import source_digest
from regear.models.builtin import resolve
from regear.models.kvcache import check_kind
from regear.models.load import load_tokenizer, pick_device
from regear.models.precision import check_dtype, load_as
from regear.tasks.choice import ChoiceItem
from regear.tasks.choice import load as load_task
from regear.tasks.passages import Passage, read_passages
from regear.tasks.text import Window, digest_of, spread

Prompt = Passage | tuple[str, ChoiceItem]  # text to continue, or a task's question to answer
LAYOUT = 1  # raised whenever the same models and texts would be scored differently
PROMPTS_AT_ONCE = 4


@dataclass
class Side:
    """One model and how it is run; its weights are read when they are first needed."""

    path: Path
    device: str
    dtype: str | None
    kv: str | None
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        place = pick_device(self.device).type
        self.identity = {"model": source_digest(self.path), "dtype": self.dtype, "kv": self.kv, "device": place}

    @cached_property
    def model(self) -> Any:
        return load_as(self.path, self.device, self.dtype)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.path)


def score_models(
    before: str | Path,
    after: str | Path,
    *,
    text: Sequence[str | Path] = (),
    tasks: Sequence[str] = (),
    windows: int | None = None,
    items: int | None = None,
    generate: int = 0,
    device: str = "auto",
    before_dtype: str | None = None,
    after_dtype: str | None = None,
    before_kv: str | None = None,
    after_kv: str | None = None,
    progress: Progress | None = None,
) -> ModelTables:
    """Score two models unit by unit. Scores are kept in the cache block by block; a killed run goes on from there.

    Args:
        before: directory, hub id or embedded name.
        after: the model it became.
        text: files, `builtin`, or JSONL rows `{text, …}` whose further keys are attributes; see `read_passages`.
        tasks: names of multiple-choice tasks.
        windows: at most so many windows, evenly spread; those of one `cluster` count as one and stay together.
        items: at most so many questions of each task; the translations of one stay together.
        generate: have both models answer so many of the questions, or, without tasks, continue so many windows.
        device: `auto`, `cpu` or `cuda`.
        before_dtype, after_dtype: precisions, as `load_as` takes them.
        before_kv, after_kv: read every context through a cache of this kind.
        progress: told a stage, the units done and how many there are.

    Raises:
        RecipeError: nothing to score on, or an unknown option.
        DataError: a text or task that cannot be read.
        CheckpointError: a model that cannot be loaded, or that computes NaN.
    """
    _check(text, tasks, {"windows": windows, "items": items}, generate)
    if generate and (before_kv or after_kv):
        raise RecipeError("found generate with a cache kind, which writing does not go through; leave one of them out")
    for dtype, kv in ((before_dtype, before_kv), (after_dtype, after_kv)):
        check_dtype(dtype, device)
        check_kind(kv)
    read = read_passages(text)
    passages = _chosen(read, [passage.cluster for passage in read], windows)
    questions = {
        name: _chosen(found, [i.cluster or i.id for i in found], items)
        for name, found in ((name, load_task(name)) for name in tasks)
    }
    one = Side(resolve(before), device, before_dtype, before_kv)
    two = Side(resolve(after), device, after_dtype, after_kv)
    rows = [window_rows(p, s) for p, s in zip(passages, _windows(one, two, passages, progress), strict=True)]
    for name, found in questions.items():
        sides = [_questions(side, name, found, progress) for side in (one, two)]
        rows += [question_rows(name, item, *pair) for item, *pair in zip(found, *sides, strict=True)]
    prompts = _prompts_of(passages, questions)
    asked = spread(prompts, generate)
    rows += [prompt_rows(p, s) for p, s in zip(asked, _prompts(one, two, asked, progress), strict=True)]
    same = same_tokens([one.tokenizer, two.tokenizer], [Window(_text(prompts[0]), "prompt")])
    return tabulate(rows, _inputs(one, two, passages, questions), same_tokenizer=same)


def _check(text: Sequence[Any], tasks: Sequence[str], limits: dict[str, int | None], generate: int) -> None:
    for name, value in limits.items():
        if value is not None and value < 1:
            raise RecipeError(f"found {name}={value}; wanted at least 1")
    if generate < 0:
        raise RecipeError(f"found generate={generate}; wanted 0 or more")
    if not text and not tasks:
        raise RecipeError("found two models and nothing to score them on; give text or tasks")


def _inputs(
    one: Side, two: Side, passages: Sequence[Passage], questions: dict[str, list[ChoiceItem]]
) -> dict[str, str]:
    """Digests of the models with their settings, of the windows and of the questions."""
    found = {"before": digest(one.identity), "after": digest(two.identity)}
    if passages:
        found["text"] = digest_of([passage.window for passage in passages])
    return found | {f"task {name}": digest([_name(item) for item in items]) for name, items in questions.items()}


def _prompts_of(passages: Sequence[Passage], questions: dict[str, list[ChoiceItem]]) -> list[Prompt]:
    """The questions, or, where there are none, the windows."""
    asked: list[Prompt] = [(name, item) for name, items in questions.items() for item in items]
    return asked or list(passages)


def _text(prompt: Prompt) -> str:
    return prompt.window.text if isinstance(prompt, Passage) else prompt[1].question


def _chosen(units: list[Any], clusters: Sequence[str], count: int | None) -> list[Any]:
    """All units of at most `count` clusters, evenly spread."""
    if count is None:
        return units
    kept = set(spread(list(dict.fromkeys(clusters)), count))
    return [unit for unit, cluster in zip(units, clusters, strict=True) if cluster in kept]


def _windows(one: Side, two: Side, passages: Sequence[Passage], progress: Progress | None) -> list[dict[str, Any]]:
    """Per window and side: bits, scored tokens and bytes; KL in bits, where the tokenizers are the same."""
    if not passages:
        return []
    texts = [p.window for p in passages]
    identity = [LAYOUT, versions(), one.identity, two.identity]
    paired = same_tokens([one.tokenizer, two.tokenizer], texts)

    def scored(block: Sequence[Window]) -> list[dict[str, Any]]:
        if paired:
            after, before = score_pair(two.model, one.model, one.tokenizer, block, (two.kv, one.kv))
        else:
            before, after = (score(side.model, side.tokenizer, block, side.kv) for side in (one, two))
        kl = [value / math.log(2) for value in after.kl] if paired else [None] * len(block)
        sides = zip(_by_window(before), _by_window(after), kl, strict=True)
        return [{"before": b, "after": a, "kl_bits": k} for b, a, k in sides]

    return in_blocks("windows", identity, texts, [text.text for text in texts], scored, progress=progress)


def _by_window(scores: Scores) -> list[dict[str, float]]:
    columns = zip(scores.nll, scores.tokens, scores.bytes, strict=True)
    return [{"bits": nll / math.log(2), "tokens": tokens, "bytes": size} for nll, tokens, size in columns]


def _name(item: ChoiceItem) -> list[Any]:
    return [item.prompt, list(item.options), item.answer]


def _questions(side: Side, name: str, items: Sequence[ChoiceItem], progress: Progress | None) -> list[dict[str, float]]:
    def scored(block: Sequence[ChoiceItem]) -> list[dict[str, Any]]:
        found = score_choices(side.model, side.tokenizer, block, side.kv)
        return [{"correct": r, "gold_logprob": g} for r, g in zip(found.right, found.gold_logprob, strict=True)]

    identity = [LAYOUT, versions(), side.identity]
    return in_blocks(f"questions of {name}", identity, items, list(map(_name, items)), scored, progress=progress)


def _prompts(one: Side, two: Side, prompts: Sequence[Prompt], progress: Progress | None) -> list[dict[str, Any]]:
    """Per prompt: how far the texts agree, in characters, since tokenizers may differ; per side, what was written and
    how long it took, one prompt at a time."""

    def scored(block: Sequence[Prompt]) -> list[dict[str, Any]]:
        for side in (one, two):  # the first pass of a model is slow
            answer(side.model, [_encoded(side, block[0])])
        return [_both(one, two, prompt) for prompt in block]

    names = [[isinstance(prompt, Passage), _text(prompt)] for prompt in prompts]
    identity = [LAYOUT, versions(), one.identity, two.identity]
    return in_blocks("prompts", identity, prompts, names, scored, block=PROMPTS_AT_ONCE, progress=progress)


def _encoded(side: Side, prompt: Prompt) -> list[int]:
    if isinstance(prompt, Passage):
        return opening(side.tokenizer, prompt.window.text)
    return encode_prompt(side.tokenizer, prompt[1].question, raw=False)


def _both(one: Side, two: Side, prompt: Prompt) -> dict[str, Any]:
    before, after = (_written(side, prompt) for side in (one, two))
    first, second = (Written([[ord(letter) for letter in side["text"]]]) for side in (before, after))
    return {"before": before, "after": after, "agreement": second.agreement(first)}


def _written(side: Side, prompt: Prompt) -> dict[str, Any]:
    ids = _encoded(side, prompt)
    start = time.perf_counter()
    tokens = answer(side.model, [ids]).tokens[0]
    seconds = time.perf_counter() - start
    text = side.tokenizer.decode(tokens, skip_special_tokens=True)
    counts = {"written": len(tokens), "prompt_tokens": len(ids), "repetition": repeated(tokens)}
    return {"text": text, "seconds": seconds, **counts}
