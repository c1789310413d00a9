"""What a healing reads before it trains: texts to measure on, digests of what it trains on, and whether they fit."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regear.core.errors import IncompatibleModel
from regear.core.files import read_json, sha256
from regear.healing.recipes import HealRecipe
from regear.models.load import load_config, load_tokenizer
from regear.tasks.text import BUILTIN, Window, digest_of, read_documents, take_tokens, windows_of
from regear.train.overlap import shared_windows, texts_of

SPLITS = {"evaluation": "evaluation", "elsewhere": "unseen"}


def read_windows(recipe: HealRecipe, tokenizer: Any) -> dict[str, list[Window]]:
    """The windows to measure on, by use.

    Raises:
        DataError: a text is missing, not UTF-8 or shorter than one window.
    """
    found = {}
    for use, split in SPLITS.items():
        wanted = getattr(recipe, use)
        found[use], _ = take_tokens(windows_of(read_documents(wanted.text, split)), tokenizer, wanted.tokens)
    return found


def seen_in_training(files: Sequence[str], windows: dict[str, list[Window]]) -> int:
    """How many windows repeat passages of the training text; a warning says so where there are any."""
    judged = [window for found in windows.values() for window in found]
    seen = shared_windows(texts_of(files), judged)
    if seen:
        print(
            f"regear: warning: {seen} of {len(judged)} evaluation windows repeat training text; their figures "
            "will look too good: give other text to evaluation.text and elsewhere.text",
            file=sys.stderr,
        )
    return seen


def check_vocabulary(tokenizer: Any, config: dict[str, Any], teacher: Path) -> None:
    """Refuse a teacher whose tokens mean something else.

    Raises:
        IncompatibleModel: another vocabulary, by size or by content.
    """
    other = load_tokenizer(teacher)
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    if mine != theirs:
        differing = len(set(mine.items()) ^ set(theirs.items()))
        raise IncompatibleModel(
            f"the model's vocabulary ({len(mine)} tokens) and the teacher's ({len(theirs)}) differ in {differing} "
            "entries; wanted the model it was converted from, or another of the same tokenizer"
        )
    size = load_config(teacher).vocab_size
    if size != config.get("vocab_size"):
        raise IncompatibleModel(
            f"the model predicts {config.get('vocab_size')} tokens and the teacher {size}; wanted equal vocab_size"
        )


def training_digest(recipe: HealRecipe) -> list[list[str]]:
    """Name and digest of every training file, in order: two files may have one name."""
    found = []
    for name in recipe.data.text:
        if name == BUILTIN:
            found.append([name, digest_of([Window(d.text, d.kind) for d in read_documents([name], "training")])])
        else:
            found.append([Path(name).name, sha256(Path(name).expanduser())])
    return found


def earlier(directory: Path) -> dict[str, Any]:
    """What the model being healed records of its own making."""
    place = directory / "regear.json"
    made = read_json(place) if place.exists() else {}
    return {key: made[key] for key in ("source", "to", "format", "recipe", "chosen", "from", "stages") if key in made}
