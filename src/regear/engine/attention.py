"""Attention over rows of a cache as transformers calls it, with no copy of keys for query heads that share them.

Query heads of one group stand beside each other as queries of one head: H query heads over G key heads are H/G times
as many queries over G heads. Torch's kernel then reads every key once, where repeating keys would copy all of them.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from regear.core.errors import IncompatibleModel

NAME = "regear_rows"


def attend(
    module: nn.Module,
    query_BHSD: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTV: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q kᵀ · scaling) v, [B, S, H, V].

    Args:
        attention_mask: bool or additive [B, 1, S, T]; None is causal for many queries, and everything for one.

    Raises:
        IncompatibleModel: scores are capped, or heads have sinks.
    """
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux")):
        raise IncompatibleModel(f"{type(module).__name__} caps its scores or has sinks; such heads run without rows")
    batch, heads, length, width = query_BHSD.shape
    groups = key_BGTD.shape[1]
    share = heads // groups
    causal = attention_mask is None and length > 1 and is_causal is not False
    if share == 1 or causal:
        found = scaled_dot_product_attention(
            query_BHSD,
            key_BGTD,
            value_BGTV,
            attn_mask=attention_mask,
            scale=scaling,
            is_causal=causal,
            enable_gqa=share > 1,
        )
        return found.transpose(1, 2), None
    query = query_BHSD.reshape(batch, groups, share * length, width)
    if attention_mask is not None and length > 1:
        attention_mask = attention_mask.repeat(1, 1, share, 1)
    found = scaled_dot_product_attention(query, key_BGTD, value_BGTV, attn_mask=attention_mask, scale=scaling)
    return found.view(batch, heads, length, -1).transpose(1, 2), None


def register() -> None:
    """Make the function known to transformers under `NAME`."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
