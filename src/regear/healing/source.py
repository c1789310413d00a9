"""What a healing starts from and ends as: a checkpoint in any of regear's formats, trained in the canonical one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoConfig

from regear.core.errors import CheckpointError
from regear.core.run import silent
from regear.models.adapter import is_adapter, open_store
from regear.models.formats.read import canonical, is_mla
from regear.models.formats.strict import STRICT
from regear.models.formats.write import in_format, write
from regear.models.load import load_config, load_model, skeleton
from regear.models.save import InMemory, as_stored, save_like
from regear.models.store import Store
from regear.models.tensorfile import DTYPES


@dataclass(frozen=True)
class Start:
    """A model directory to heal, and the headers of its tensors."""

    directory: Path
    store: Store

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Check the headers, and that what they name can be written back once it is trained.

        Raises:
            CheckpointError: a damaged directory, a LoRA adapter, quantised weights, or a layout of tensors that the
                model which transformers makes of them no longer has.
        """
        if is_adapter(directory):
            raise CheckpointError(
                f"{directory} is a LoRA adapter; convert it, or merge it into its base, and heal that"
            )
        start = cls(directory, open_store(directory))
        if not start.strict:
            as_stored(start.store, skeleton(start.config()).state_dict())
        return start

    @property
    def strict(self) -> bool:
        """Whether its weights are folded for a norm that training must not see."""
        return is_mla(self.store.config) and self.format in STRICT

    @property
    def format(self) -> str:
        """The format of input and output."""
        return str(self.store.config["model_type"])

    def config(self) -> Any:
        """The transformers config of the model that `load` gives."""
        if not self.strict:
            return load_config(self.directory)
        held = dict(canonical(self.store).config)
        return AutoConfig.for_model(held.pop("model_type"), **held)

    def load(self, scratch: Path, device: str) -> Any:
        """The model to train, float32, unfolded where an export folded it."""
        if not self.strict:
            return load_model(self.directory, device, dtype=torch.float32)
        place = scratch / "unfolded"
        place.mkdir(parents=True, exist_ok=True)
        write(canonical(self.store), place, torch.float32, silent)
        return load_model(place, device, dtype=torch.float32)

    def save(self, tensors: dict[str, Any], staging: Path, dtype: torch.dtype | None) -> None:
        """Write trained weights (by the names of the model that `load` gave) as the input had them."""
        if not self.strict:
            save_like(self.store, tensors, staging, dtype)
            return
        base = canonical(self.store)
        healed = InMemory(base.config, dict(base.shapes), tensors)
        stored = DTYPES[self.store.dtypes["model.embed_tokens.weight"]]
        write(in_format(healed, self.format, self.store.config["kv_lora_rank"]), staging, dtype or stored, silent)
