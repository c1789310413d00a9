"""Any MLA checkpoint that regear made, in whatever format, as the canonical one."""

from typing import Any

from regear.models.formats.canonical import Geometry
from regear.models.formats.strict import STRICT, unfolded
from regear.models.formats.view import Checkpoint
from regear.models.store import Store


def is_mla(config: dict[str, Any]) -> bool:
    """Whether a config is that of a checkpoint regear made in one of its formats."""
    return config.get("model_type") == "regear_mla" or (config.get("model_type") in STRICT and "regear" in config)


def canonical(store: Store) -> Checkpoint:
    """Any decoupled checkpoint that regear made, as decoupled `regear_mla`.

    Raises:
        IncompatibleModel: exact RoPE, or a strict checkpoint of another program.
        CheckpointError: tensors are missing or unknown.
    """
    found: Checkpoint = unfolded(store) if store.config.get("model_type") in STRICT else store
    Geometry.of(found.config)
    return found
