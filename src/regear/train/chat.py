"""Chat rows as tokens, with the assistant's turns marked for training."""

import re
from collections.abc import Sequence
from typing import Any

from regear.core.errors import one_line

Message = dict[str, Any]
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def is_chat(value: object) -> bool:
    """Whether a field holds messages rather than a string."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def render(tokenizer: Any, messages: Sequence[Message], *, ask: bool = False) -> list[int]:
    """Token ids of the messages in the model's template; with `ask`, up to where the assistant begins to answer.

    Raises:
        ValueError: the tokenizer has no template, or the template refuses the messages.
    """
    return list(_apply(tokenizer, messages, add_generation_prompt=ask)["input_ids"])


def conversation(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant wrote.

    The template's generation mask says so where it has one. Else every beginning of the conversation is rendered, and
    a turn is what the longer rendering adds.

    Raises:
        ValueError: no assistant turn; or one rendering does not begin with the shorter one (a template that rewrites
            earlier turns), so that turns cannot be told apart.
    """
    if not any(m["role"] == "assistant" for m in messages):
        raise ValueError("no assistant turn to train on")
    if GENERATION.search(_template(tokenizer)):
        return _masked_by_template(tokenizer, messages)
    ids = render(tokenizer, messages)
    targets = [False] * len(ids)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(tokenizer, messages[:i], ask=True)
            after = render(tokenizer, messages[: i + 1])
            if not (begins(ids, after) and begins(after, before)):
                raise ValueError(
                    f"the chat template renders the beginning up to message {i + 1} otherwise than inside the whole "
                    "conversation; use a template with a generation mask, or rows of prompt and completion"
                )
            targets[len(before) : len(after)] = [True] * (len(after) - len(before))
    return ids, targets


def answer(tokenizer: Any, prompt: Sequence[Message], completion: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Token ids of the prompt up to where the answer begins, and of the answer.

    Raises:
        ValueError: the rendering of both does not begin with the prompt's.
    """
    if prompt[-1]["role"] == "assistant" or completion[0]["role"] != "assistant":
        raise ValueError("the prompt must end before the assistant's turn, and the completion begin with one")
    before = render(tokenizer, prompt, ask=True)
    both = render(tokenizer, [*prompt, *completion])
    if not begins(both, before):
        raise ValueError("the chat template renders the prompt otherwise when an answer follows; use string columns")
    return before, both[len(before) :]


def begins(longer: Sequence[int], shorter: Sequence[int]) -> bool:
    """Whether `longer` begins with `shorter`."""
    return list(longer[: len(shorter)]) == list(shorter)


def _masked_by_template(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    encoded = _apply(tokenizer, messages, return_assistant_tokens_mask=True)
    targets = [bool(mark) for mark in encoded["assistant_masks"]]
    if not any(targets):
        raise ValueError("the chat template's generation mask marks no token of this conversation")
    return list(encoded["input_ids"]), targets


def _apply(tokenizer: Any, messages: Sequence[Message], **options: bool) -> Any:
    _template(tokenizer)
    try:
        return tokenizer.apply_chat_template(list(messages), return_dict=True, **options)
    except Exception as error:  # templates are programs of others and raise anything
        raise ValueError(f"the chat template refuses the messages ({one_line(error)})") from error


def _template(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        raise ValueError("the tokenizer has no chat template; use prompt and completion as strings")
    return str(template)
