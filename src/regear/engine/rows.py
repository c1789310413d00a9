"""A model's answers to a file of prompts, as rows that training reads: the teacher's own text as data."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from regear.core.errors import DataError, RecipeError, writing
from regear.core.files import digest, publish
from regear.core.run import Progress, silent
from regear.engine.drafters.base import Target
from regear.engine.drafters.history import keep, relearn
from regear.engine.drafters.table import check_draft, open_drafter
from regear.engine.local import DRAFT, LocalEngine
from regear.engine.stream import in_order
from regear.engine.text import stop_tokens
from regear.engine.types import Request
from regear.models.adapter import source_digest
from regear.models.builtin import resolve
from regear.models.load import load_tokenizer
from regear.models.precision import check_dtype, load_as
from regear.tasks.text import BUILTIN, read_documents, windows_of

BEGINNING = 64  # tokens of a text window that the model goes on from

Row = dict[str, Any]


def generate_rows(
    model: str | Path,
    prompts: str | Path,
    output: str | Path,
    *,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
    draft: str = "none",
    draft_tokens: int = DRAFT,
    history: Sequence[str | Path] = (),
    save_history: str | Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Answer every prompt of a file, and write JSONL rows that `regear heal --text` reads.

    A string is continued as it is: `prompt` and `completion`; messages are answered through the chat template:
    `messages`. A row also says whether its answer ended (`stop`) or was cut (`length`). Empty answers are left
    out. Many are answered at once and written in order; a run that was cut off goes on after the last one written. The
    output appears whole, by one rename.

    Args:
        prompts: JSONL rows `{prompt}` (a string or messages) or `{messages}` (a last answer is replaced); or a text
            file, or the word `builtin`, whose windows' beginnings are continued.
        dtype: as in `generate`.
        temperature: 0 is greedy. The seed of a row is fixed by `seed` and its number.
        draft, draft_tokens, history, save_history: who guesses tokens ahead, as in `generate`.

    Returns `output, rows, empty, tokens`.

    Raises:
        RecipeError: a parameter out of range, or an output that is already there.
        DataError: the file is missing, or a row holds no prompt.
    """
    out = Path(output)
    if max_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise RecipeError("wanted max_tokens >= 1, temperature >= 0, 0 < top_p <= 1")
    if out.exists():
        raise RecipeError(f"{out} is already there; choose another output, or remove it")
    check_draft(draft, draft_tokens, history, save_history)
    check_dtype(dtype, device)
    path = resolve(model)
    tokenizer = load_tokenizer(path)
    asked = list(read_prompts(prompts, tokenizer))
    settings = [source_digest(path), asked, max_tokens, temperature, top_p, seed] + ([dtype] if dtype else [])
    partial = out.with_name(f".{out.name}.{digest(settings)[:16]}.partial")
    done = _finished(partial)
    if done < len(asked) or save_history is not None:
        network = load_as(path, device, dtype)
        target = Target(network, tokenizer, tuple(map(Path, history)))
        drafter = open_drafter(draft, target)
        if save_history is not None and done:
            relearn(drafter, _lines(partial.read_text(encoding="utf-8")), target)
        engine = LocalEngine(network, drafter=drafter, draft=draft_tokens)
        requests = (
            Request(
                _encode(tokenizer, asked[number]), max_tokens, temperature, top_p, seed * 1_000_003 + number,
                stop_tokens(network),
            )
            for number in range(done, len(asked))
        )  # fmt: skip
        with open(partial, "a", encoding="utf-8", newline="\n") as file:
            for number, completion in enumerate(in_order(engine, requests), done):
                text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
                row = {**_answered(asked[number], text), "finish_reason": completion.finish_reason}
                row["tokens"] = len(completion.token_ids)
                file.write(json.dumps(row if text.strip() else None, ensure_ascii=False) + "\n")
                file.flush()
                progress("prompts", number + 1, len(asked))
        if save_history is not None:
            keep(drafter, Path(save_history))
    return _publish(partial, out)


def _publish(partial: Path, out: Path) -> dict[str, Any]:
    """The rows that hold an answer, under the output's name."""
    lines = _lines(partial.read_text(encoding="utf-8"))
    kept = [line for line in lines if json.loads(line) is not None]
    if not kept:
        raise DataError(f"all {len(lines)} answers are empty; give other prompts")
    final = partial.with_suffix(".rows")
    with writing(final):
        final.write_text("".join(line + "\n" for line in kept), encoding="utf-8", newline="\n")
        publish(final, out)
    partial.unlink()
    tokens = sum(json.loads(line)["tokens"] for line in kept)
    return {"output": str(out), "rows": len(kept), "empty": len(lines) - len(kept), "tokens": tokens}


def _lines(text: str) -> list[str]:
    """The lines of JSONL, whose strings may hold what `str.splitlines` splits at (U+0085, U+2028, U+2029)."""
    return text.removesuffix("\n").split("\n")


def read_prompts(file: str | Path, tokenizer: Any) -> Iterator[str | list[Row]]:
    """Prompts of a file: strings to go on from, or messages to answer.

    Raises:
        DataError: the file is missing, or a row holds no prompt.
    """
    path = Path(file).expanduser()
    if str(file) == BUILTIN or path.suffix != ".jsonl":
        for window in windows_of(read_documents([file], "training")):
            yield tokenizer.decode(tokenizer(window.text)["input_ids"][:BEGINNING], skip_special_tokens=True)
        return
    try:
        lines = _lines(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}; give JSONL rows with a prompt, or a text file") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _prompt(line, f"{path}, line {number}")


def _prompt(line: str, where: str) -> str | list[Row]:
    try:
        row = json.loads(line)
        found = row["prompt"] if "prompt" in row else row["messages"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{where}: wanted {{"prompt": …}} or {{"messages": […]}}') from None
    if isinstance(found, list):
        if found and isinstance(found[-1], dict) and found[-1].get("role") == "assistant":
            found = found[:-1]
        if found and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in found):
            return found
    elif isinstance(found, str) and found.strip():
        return found
    raise DataError(f"{where}: the prompt is empty, or neither a string nor messages")


def _encode(tokenizer: Any, prompt: str | list[Row]) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        raise DataError("the prompts are messages, and the model has no chat template; give strings")
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])


def _answered(prompt: str | list[Row], text: str) -> Row:
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": text}
    return {"messages": [*prompt, {"role": "assistant", "content": text}]}


def _finished(partial: Path) -> int:
    """How many rows an earlier run finished; half a row is cut off."""
    if not partial.exists():
        partial.parent.mkdir(parents=True, exist_ok=True)
        return 0
    held = partial.read_bytes()
    whole = held[: held.rfind(b"\n") + 1]
    os.truncate(partial, len(whole))
    return whole.count(b"\n")
