"""LoRA adapters as PEFT writes them: read as the model that they make of their base, W + scale · B A.

Nothing is merged but the tensor that is being read, so an adapter costs no memory and no second copy on disk.

Source: LoRA (arXiv 2106.09685), scale = alpha / r; rank-stabilised (arXiv 2312.03732), scale = alpha / √r.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regear.core.errors import CheckpointError, IncompatibleModel
from regear.core.files import digest, read_json, sha256
from regear.core.provenance import model_digest, model_files
from regear.models.builtin import EMBEDDED, resolve
from regear.models.store import Store
from regear.models.tensorfile import TensorFile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"
HEAD = "lm_head.weight"
MATRIX = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

# Keys that leave the merge as it is. PEFT ignores fan_in_fan_out for linear maps, and our families have no others.
HARMLESS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
WORDS = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules kept beside the matrices",
    "lora_bias": "biases inside the adapter",
    "bias": "retrained biases",
    "target_parameters": "matrices on joined parameters",
    "trainable_token_indices": "retrained tokens",
    "layer_replication": "repeated layers",
    "init_lora_weights": "an initialisation that changes the base's own weights",
}
# Initialisations under which the base stays what it is.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter instead of a model."""
    return (directory / CONFIG).exists()


@dataclass(frozen=True)
class Update:
    """One adapted matrix: the names of A [r, in] and B [out, r] in the adapter's file, and their scale."""

    down: str
    up: str
    scale: float


class MergedStore(Store):
    """A base's tensors with an adapter merged in as they are read; `directory` is the base's.

    Raises:
        CheckpointError: the adapter or its base is missing, damaged, or of another model.
        IncompatibleModel: the adapter has more than plain LoRA matrices.
    """

    def __init__(self, adapter: Path) -> None:
        self.settings: dict[str, Any] = read_json(adapter / CONFIG)
        _refuse(self.settings)
        super().__init__(base_of(adapter))
        self._adapter = _open(adapter)
        self.updates = self._updates(adapter.name)

    def _updates(self, adapter: str) -> dict[str, Update]:
        """Tensor name → its update; every tensor of the adapter is accounted for."""
        shapes = {key: entry.shape for key, entry in self._adapter.entries.items()}
        found: dict[str, dict[str, str]] = {}
        for key in shapes:
            match = MATRIX.fullmatch(key)
            if not match:
                raise IncompatibleModel(f"adapter {adapter} holds {key}; wanted lora_A and lora_B of linear maps only")
            found.setdefault(match[1], {})[match[2]] = key
        if not found:
            raise CheckpointError(f"adapter {adapter} holds no tensor; fetch or save it again")
        updates = {}
        for module, pair in found.items():
            name = f"{module}.weight"
            if ".experts." in name:
                raise IncompatibleModel(f"adapter {adapter} changes single experts ({module}), which is not supported")
            if name == HEAD and self.config.get("tie_word_embeddings"):
                raise IncompatibleModel(
                    f"adapter {adapter} changes {module}, which its base {self.directory.name} ties to its embeddings; "
                    "wanted an adapter that leaves it alone, or a base with tie_word_embeddings=false and its own head"
                )
            if name not in self.shapes:
                raise CheckpointError(f"adapter {adapter} changes {name}, which its base {self.directory.name} lacks")
            if set(pair) != {"A", "B"}:
                raise CheckpointError(f"adapter {adapter} holds half of an update of {module}; fetch or save it again")
            rank = int(_pattern(self.settings, "rank_pattern", module, self.settings["r"]))
            rows, columns = self.shapes[name]
            if (shapes[pair["A"]], shapes[pair["B"]]) != ((rank, columns), (rows, rank)):
                raise CheckpointError(
                    f"adapter {adapter} has {shapes[pair['B']]} · {shapes[pair['A']]} for {name}; "
                    f"its rank {rank} and its base want {(rows, rank)} · {(rank, columns)}"
                )
            alpha = float(_pattern(self.settings, "alpha_pattern", module, self.settings["lora_alpha"]))
            updates[name] = Update(
                pair["A"], pair["B"], alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)
            )
        return updates

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of a tensor of the merged model, in the base's own type."""
        tensor, update = super().rows(name, start, stop), self.updates.get(name)
        if update is None:
            return tensor
        down, up = self._adapter.rows(update.down).float(), self._adapter.rows(update.up, start, stop).float()
        merged = (tensor.float() + update.scale * (up @ down)).to(tensor.dtype)
        if not torch.isfinite(merged).all():
            raise CheckpointError(f"merging the adapter makes NaN or infinity of {name}; its weights are damaged")
        return merged

    @torch.no_grad()
    def merge_into(self, model: Any) -> None:
        """Give a loaded base the merged weights."""
        for name in self.updates:
            model.get_parameter(name).copy_(self.read(name))


def open_store(directory: Path) -> Store:
    """The tensors of a model directory, or of the model that an adapter directory makes of its base."""
    return MergedStore(directory) if is_adapter(directory) else Store(directory)


def base_of(directory: Path) -> Path:
    """The base model's directory; the directory itself where it holds no adapter.

    Raises:
        CheckpointError: the adapter names no base, or one that is not to be had.
    """
    if not is_adapter(directory):
        return directory
    name = read_json(directory / CONFIG).get(BASE)
    if not name:
        raise CheckpointError(f"{CONFIG} of {directory} names no base model; set {BASE} in it")
    try:
        found = resolve(name)
    except CheckpointError:
        raise CheckpointError(
            f"{CONFIG} of {directory} names the base model {name!r}, which is not here; set {BASE} in it to a "
            f"directory or one of: {', '.join(EMBEDDED)}"
        ) from None
    if is_adapter(found):
        raise CheckpointError(f"the base {found} of adapter {directory} holds an adapter itself; wanted a plain model")
    return found


def directories(model: Path) -> list[Path]:
    """Where a model's other files (tokenizer, licence) lie; a later directory's win."""
    return [base_of(model), model] if is_adapter(model) else [model]


def source_digest(model: Path) -> str:
    """One digest of a model, or of a base and its adapter; where the base lies does not count."""
    if not is_adapter(model):
        return model_digest(model)
    settings = {key: value for key, value in read_json(model / CONFIG).items() if key != BASE}
    files = {path.name: sha256(path) for path in model_files(model) if path.name != CONFIG}
    return digest({"base": model_digest(base_of(model)), "adapter": files, "settings": settings})


def _refuse(settings: dict[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise IncompatibleModel(f"the adapter is of type {kind}; wanted LORA: merge it with PEFT first")
    for key, value in settings.items():
        plain = {"init_lora_weights": value in PLAIN_STARTS, "bias": value == "none", "revision": value == "main"}
        if value and key not in HARMLESS and not plain.get(key, False):
            what = f" ({WORDS[key]})" if key in WORDS else ""
            raise IncompatibleModel(
                f"the adapter has {key}={value!r}{what}, which is not supported; merge it with PEFT first"
            )
    if not (isinstance(settings.get("r"), int) and isinstance(settings.get("lora_alpha"), int | float)):
        raise CheckpointError(f"{CONFIG} lacks r or lora_alpha; fetch or save the adapter again")


def _open(adapter: Path) -> TensorFile:
    path = adapter / WEIGHTS
    if not path.exists():
        raise CheckpointError(f"no {WEIGHTS} beside {CONFIG} in {adapter}; save the adapter as safetensors")
    return TensorFile(path)


def _pattern(settings: dict[str, Any], table: str, module: str, default: float) -> float:
    """A module's own value, where a pattern of the table ends its name; the first pattern wins."""
    for pattern, value in (settings.get(table) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return default
