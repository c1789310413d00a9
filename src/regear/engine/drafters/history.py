"""Past texts for the suffix drafter, from files: JSONL of answers, or an index that an earlier run saved."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regear.core.errors import DataError, RecipeError
from regear.core.files import digest
from regear.engine.drafters.base import Drafter, Target, Tokens
from regear.engine.drafters.suffix import MAGIC, SuffixDrafter

WANTED = '{"prompt": …, "completion": …}, {"messages": […, {"role": "assistant", …}]}, or {"prompt_ids", "token_ids"}'


def open_suffix(argument: str, target: Target) -> SuffixDrafter:
    """The drafter of `suffix`, which has read `target.history`.

    Raises:
        RecipeError: something stands after it, or there are several indexes.
        DataError: a file is missing, damaged, holds something else, or ids of another vocabulary.
    """
    if argument:
        raise RecipeError(f"--draft suffix:{argument}: found {argument!r} after the colon; wanted suffix alone")
    saved = [path for path in target.history if _is_index(path)]
    if len(saved) > 1:
        raise RecipeError(f"found {len(saved)} saved indexes, {', '.join(map(str, saved))}; give one, and JSONL beside")
    drafter = SuffixDrafter.load(saved[0]) if saved else SuffixDrafter()
    if target.tokenizer is not None:
        vocabulary = digest(target.tokenizer.get_vocab())
        if drafter.vocabulary not in (None, vocabulary):
            raise DataError(f"{saved[0]} holds token ids of another vocabulary; give what a model of this one wrote")
        drafter.vocabulary = vocabulary
    for path in target.history:
        if path not in saved:
            for prompt, tokens, group in read_texts(path, target):
                drafter.learn(prompt, tokens, group)
    drafter.advance()
    return drafter


def keep(drafter: Drafter | None, path: Path) -> None:
    """Save what the suffix drafter among these has learnt.

    Raises:
        RegearError: the file cannot be written.
    """
    found = suffix_of(drafter)
    if found is not None:
        found.save(path)


def relearn(drafter: Drafter | None, lines: Sequence[str], target: Target) -> None:
    """Tell the suffix drafter among these of rows that an earlier part of the same run wrote; empty ones are `null`."""
    found = suffix_of(drafter)
    for number, line in enumerate(lines, 1):
        if found is not None and json.loads(line) is not None:
            prompt, tokens, group = _text(line, target, f"row {number}")
            found.learn(prompt, tokens, group)


def suffix_of(drafter: Any) -> SuffixDrafter | None:
    """The suffix drafter behind others."""
    if drafter is None or isinstance(drafter, SuffixDrafter):
        return drafter
    inner = getattr(drafter, "drafters", None) or [getattr(drafter, "drafter", None)]
    return next((found for one in inner if (found := suffix_of(one))), None)


def read_texts(path: Path, target: Target) -> Iterator[tuple[Tokens, Tokens, str | None]]:
    """Prompt, answer and group of every row of a JSONL file.

    Raises:
        DataError: the file is missing, or a row is not of a known form.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _text(line, target, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; give JSONL of past answers, or a saved index") from None


def _text(line: str, target: Target, where: str) -> tuple[Tokens, Tokens, str | None]:
    try:
        row = json.loads(line)
        group = None if row.get("group") is None else str(row["group"])
        if group is not None:
            group.encode()  # a lone surrogate is no text
        if "token_ids" in row:
            both = _checked(row.get("prompt_ids", []), int), _checked(row["token_ids"], int)
        else:
            both = _encoded(row, target)
        found = np.array(both[0], np.int32), np.array(both[1], np.int32)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise DataError(f"{where}: wanted {WANTED}") from None
    size = target.model.config.get_text_config().vocab_size
    for part in found:
        if len(part) and not 0 <= part.min() <= part.max() < size:
            raise DataError(f"{where}: found ids from {part.min()} to {part.max()}; wanted them below {size}")
    return *found, group


def _encoded(row: dict[str, Any], target: Target) -> tuple[list[int], list[int]]:
    """Token ids of a row's prompt and answer; an answer that ended does so with the model's stop token."""
    tokenizer = target.tokenizer
    if "messages" in row:
        *before, answer = row["messages"]
        prompt = _templated(tokenizer, before)
        role, text = _checked([answer["role"], answer["content"]], str)
        if role != "assistant":
            raise ValueError("the last message is no answer")
    else:
        asked, text = _checked([row["prompt"], row["completion"]], str)
        prompt = tokenizer(asked)["input_ids"]
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    stop = target.model.generation_config.eos_token_id
    stops = stop if isinstance(stop, list) else [stop] if stop is not None else []
    return prompt, tokens + (stops[:1] if row.get("finish_reason", "stop") == "stop" else [])


def _templated(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    except Exception as error:  # templates are programs of others and raise anything
        raise ValueError("refused by the chat template") from error


def _checked(values: Any, kind: type) -> list[Any]:
    """A list of this kind alone: numpy would read "7", 7.9 and [[7]] as the id 7."""
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise TypeError(f"found {values!r:.40}; wanted a list of {kind.__name__}")
    return values


def _is_index(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}; give JSONL of past answers, or a saved index") from None
