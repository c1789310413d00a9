"""Loading a model and its tokenizer the way users do: stock transformers Auto classes."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import regear.models  # noqa: F401 - registers regear's own types
from regear.core.errors import CheckpointError, RecipeError, one_line
from regear.models.adapter import MergedStore, base_of, is_adapter, open_store
from regear.ops.linear import adopt


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        RecipeError: no such device here, or one that holds no numbers.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # read back: `meta` takes any tensor and holds none
    except (RuntimeError, AssertionError, ImportError) as error:
        raise RecipeError(
            f"device {name!r} cannot be used here ({one_line(error)[:80]}); wanted auto, cpu or cuda"
        ) from None
    return device


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model directory; an adapter's own, where it brings one.

    Raises:
        CheckpointError: there is none.
    """
    if is_adapter(directory) and not (directory / "tokenizer_config.json").exists():
        directory = base_of(directory)
    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no usable tokenizer in {directory}: {one_line(error)[:200]}") from None


def load_config(directory: Path) -> Any:
    """The transformers config of a model directory.

    Raises:
        CheckpointError: transformers does not know it.
    """
    try:
        return AutoConfig.from_pretrained(base_of(directory))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"transformers cannot read the config of {directory}: {one_line(error)[:200]}") from None


def load_model(directory: Path, device: str = "auto", *, dtype: torch.dtype | None = None) -> Any:
    """A causal language model in evaluation mode: float32 on a CPU, else the checkpoint's own dtype.

    Raises:
        CheckpointError: damaged files, or tensors that are missing from or unknown to the model.
    """
    place = pick_device(device)
    logging.disable_progress_bar()
    store = open_store(directory)  # finds damaged and pickled weights, and says so in one line
    if isinstance(store, MergedStore):
        model = load_model(store.directory, device, dtype=dtype)
        store.merge_into(model)
        return model
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else load_config(directory).dtype or torch.bfloat16
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(f"transformers cannot load {directory}: {one_line(error)[:300]}") from None
    model, report = loaded
    faults = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report.get(kind)}
    if faults:
        raise CheckpointError(f"{directory} does not fit its config: {faults}")
    adopt(model)
    return model.to(place).eval()


def skeleton(config: Any) -> Any:
    """A causal language model of these shapes without any weights, on the meta device.

    Raises:
        CheckpointError: it is no causal language model.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise CheckpointError(f"transformers makes no model of this config: {one_line(error)[:200]}") from None
