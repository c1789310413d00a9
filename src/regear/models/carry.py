"""What goes along with a model's weights: its name, tokenizer, chat template, generation settings, notices."""

import shutil
from pathlib import Path

from regear.core import card
from regear.core.errors import writing
from regear.core.files import read_json
from regear.models.adapter import BASE, CONFIG, base_of, directories, is_adapter
from regear.models.builtin import EMBEDDED

CARRIED = ("tokenizer*", "*.jinja", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json")
GENERATION = "generation_config.json"
ADAPTED = " with the LoRA adapter "


def carry_along(directory: Path, staging: Path) -> None:
    """Copy the tokenizer, chat template, generation settings, licence and notices of a model unchanged."""
    for place in directories(directory):
        for path in sorted({p for pattern in (*CARRIED, GENERATION) for p in place.glob(pattern)}):
            with writing(staging / path.name):
                shutil.copyfile(path, staging / path.name)
    base = base_of(directory)
    card.carry_notices(base, staging)
    if base != directory:
        card.carry_notices(directory, staging, "adapter-")


def source_name(model: str | Path, directory: Path) -> str:
    """What a card may say of the source: a name, never a place; of an adapter, its base's name and its own."""
    if is_adapter(directory):
        return ADAPTED.join((_base_name(directory), directory.resolve().name))
    if str(model) in EMBEDDED:
        return EMBEDDED[str(model)].origin
    return directory.resolve().name if Path(model).exists() else str(model)


def _base_name(adapter: Path) -> str:
    """The name of an adapter's base."""
    return source_name(read_json(adapter / CONFIG)[BASE], base_of(adapter))
