"""A causal model in two: the decoder that ends in last hidden states, and the head that makes logits of them."""

from typing import Any

import torch
from torch import nn

from regear.core.errors import IncompatibleModel

PROBE = 8  # tokens


def decoder(model: Any) -> Any:
    """The model without its head."""
    return model.get_decoder()


def head(model: Any) -> torch.Tensor:
    """The weight of the language-model head, [V, D].

    Raises:
        IncompatibleModel: the head is more than one matrix.
    """
    module = model.get_output_embeddings()
    if not isinstance(module, nn.Linear) or module.bias is not None:
        raise IncompatibleModel(f"the head is {module}; wanted a linear map without bias and without an adapter")
    return module.weight


@torch.no_grad()
def apart(model: Any) -> float:
    """How far the head's product with last hidden states is from the logits, over the largest, on a few tokens."""
    tokens = torch.arange(PROBE, device=model.device).unsqueeze(0) % len(model.get_input_embeddings().weight)
    expected = model(input_ids=tokens, use_cache=False).logits.double()
    states = decoder(model)(input_ids=tokens, use_cache=False).last_hidden_state
    found = model.get_output_embeddings()(states).double()
    return float((found - expected).abs().max() / expected.abs().max())


def splits(model: Any) -> bool:
    """Whether logits are the head's product with last hidden states."""
    return model.get_output_embeddings() is not None and apart(model) <= 64 * torch.finfo(model.dtype).eps


def check_head(model: Any) -> None:
    """Prove on a few tokens that last hidden states times the head's weight are the model's logits.

    Raises:
        IncompatibleModel: they are not, as in models that scale or cap their logits.
    """
    head(model)
    if not splits(model):
        raise IncompatibleModel(
            f"{type(model).__name__}: its logits are not its last hidden states times its head (off by "
            f"{apart(model):.2g}), as where logits are scaled or capped; such models cannot be trained here yet"
        )
