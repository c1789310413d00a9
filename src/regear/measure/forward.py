"""One text through a model, with or without a cache that stores few bits: the logits that all scores start from."""

from typing import Any

import torch

from regear.models.kvcache import kv_cache, parts

CHUNK = 512  # tokens of a long text at a time, which bounds the table of logits


def logits_of(
    model: Any, tokens: torch.Tensor, kv: str | None = None, *, mask: torch.Tensor | None = None, keep: int = 0
) -> torch.Tensor:
    """Logits of the last `keep` positions of tokens [B, T] (all for 0), [B, keep, V].

    Args:
        model: any causal language model.
        tokens: token ids, padded on the right if at all.
        kv: read through a cache of this kind; without one, in one pass and without a cache.
        mask: 1 for tokens, 0 for padding, [B, T].
        keep: how many positions are wanted.
    """
    if kv is None:
        return model(input_ids=tokens, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits
    length = tokens.shape[1]
    cache, found = kv_cache(model.config, kv), []
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    for part in parts(length, kv):
        wanted = part.stop - max(part.start, length - keep) if keep else part.stop - part.start
        output = model(
            input_ids=tokens[:, part],
            attention_mask=None if mask is None else mask[:, : part.stop],
            position_ids=None if positions is None else positions[:, part],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=max(1, wanted),
        )
        if wanted > 0:
            found.append(output.logits)
    return torch.cat(found, dim=1)


def fill(model: Any, tokens: torch.Tensor, cache: Any, kv: str | None) -> torch.Tensor:
    """Read tokens [1, T] into a cache of kind `kv`; the logits after the last one, float32 [1, V]."""
    for part in parts(tokens.shape[1], kv, CHUNK):
        output = model(input_ids=tokens[:, part], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[0].float()
