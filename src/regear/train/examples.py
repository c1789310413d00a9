"""Rows as training examples: token ids, and which of them are to be predicted.

Columns carry TRL's names: `text`; `messages`; `prompt` and `completion`; `prompt`, `chosen` and `rejected` (in
conversations the prompt may be the messages that both begin with).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from regear.core.errors import DataError
from regear.train import chat
from regear.train.pack import Example
from regear.train.rows import Row, Source

LAYOUTS = {
    "text": ("text",),
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
}
WANTED = "wanted text, or messages, or prompt + completion, or (prompt +) chosen + rejected"


def layout_of(row: Row) -> str:
    """Which of the layouts a row has.

    Raises:
        ValueError: none, or more than one.
    """
    found = [name for name, columns in LAYOUTS.items() if all(row.get(column) is not None for column in columns)]
    if len(found) != 1:
        columns = ", ".join(row) or "none"
        raise ValueError(f"found the columns {columns}, {WANTED}" + (", not several of these" if found else ""))
    return found[0]


class Examples:
    """Turns rows of one objective into examples.

    Args:
        sequence: the most tokens an example may have.
        end: append the end-of-text token to whole texts and string completions, where the tokenizer has one.
        pairs: preference pairs are wanted, and nothing else; else anything but them.
    """

    def __init__(self, tokenizer: Any, sequence: int, *, end: bool = True, pairs: bool = False) -> None:
        self.tokenizer, self.sequence, self.pairs = tokenizer, sequence, pairs
        self.end = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []

    def layout(self, source: Source) -> str:
        """The layout of a source's first row.

        Raises:
            DataError: no row, or not the columns this objective reads.
        """
        for position, row in source.rows():
            try:
                layout = layout_of(row)
                if (layout == "preference") != self.pairs:
                    wanted = "chosen and rejected" if self.pairs else "text, messages, or prompt and completion"
                    raise ValueError(f"found columns of the layout {layout}, wanted {wanted} for this objective")
                return layout
            except ValueError as error:
                raise DataError(f"{source.where(position)}: {error}") from None
        raise DataError(f"{source.name} has no rows")

    def of(self, row: Row, layout: str) -> Iterator[Example]:
        """The examples of a row of that layout: pieces of a text, one of a conversation, two of a pair.

        Raises:
            ValueError: the row has other columns, or holds nothing to train on.
        """
        if layout_of(row) != layout:
            raise ValueError(f"found the layout {layout_of(row)} in a file that began with {layout}; split the file")
        match layout:
            case "text":
                yield from self._text(_filled(row["text"], "text"))
            case "messages":
                if not chat.is_chat(row["messages"]):
                    raise ValueError("messages must be a list of {role, content}, and not empty")
                yield from self._whole(*chat.conversation(self.tokenizer, row["messages"]))
            case "completion":
                prompt, completion = self._answer(row["prompt"], row["completion"])
                yield from self._fit(prompt, [completion])
            case _:
                yield from self._pair(row)

    def _text(self, text: str) -> Iterator[Example]:
        ids = self._ids(text)
        ids += self.end if ids[-1:] != self.end else []
        for start in range(0, len(ids), self.sequence):
            piece = ids[start : start + self.sequence]
            if len(piece) > 1:  # a single token predicts nothing
                yield Example(piece, [True] * len(piece))

    def _pair(self, row: Row) -> Iterator[Example]:
        prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
        if prompt is None:
            if not (chat.is_chat(chosen) and chat.is_chat(rejected)):
                raise ValueError("chosen and rejected without a prompt must be conversations; add a prompt column")
            shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
            if not shared:
                raise ValueError("chosen and rejected must begin with the same messages and then differ")
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if chosen == rejected:
            raise ValueError("chosen and rejected are the same")
        asked, preferred = self._answer(prompt, chosen)
        yield from self._fit(asked, [preferred, self._answer(prompt, rejected)[1]])

    def _answer(self, prompt: Any, completion: Any) -> tuple[list[int], list[int]]:
        if chat.is_chat(prompt) and chat.is_chat(completion):
            return chat.answer(self.tokenizer, prompt, completion)
        asked = self._ids(_filled(prompt, "prompt"))
        if len(asked) > 1 and asked[-1] == self.tokenizer.eos_token_id:  # a tokenizer that ends every text
            asked.pop()
        return asked, self._ids(_filled(completion, "completion"), special=False) + self.end

    def _fit(self, prompt: list[int], completions: Sequence[list[int]]) -> Iterator[Example]:
        """A prompt too long loses its beginning, down to half the sequence; then completions lose their end."""
        longest = max(map(len, completions))
        kept = prompt[-max(self.sequence - longest, self.sequence // 2) :]
        for completion in completions:
            ids = kept + completion
            yield from self._whole(ids, [False] * len(kept) + [True] * len(completion))

    def _whole(self, ids: list[int], targets: list[bool]) -> Iterator[Example]:
        yield Example(ids[: self.sequence], targets[: self.sequence], whole=True)

    def _ids(self, text: str, *, special: bool = True) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _filled(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{column} is {type(value).__name__}, wanted a string (or, with every column, messages)")
    if not value.strip():
        raise ValueError(f"{column} is empty")
    value.encode()  # lone surrogates have no tokens; the error is a ValueError
    return value
