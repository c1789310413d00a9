"""Latent attention in its plainest form: one sequence, loops over heads and queries, nothing cached or absorbed.

The naive twins of `models/mla/modeling_regear_mla.py`; tests equate them.
"""

import torch


def rotate_pairs(x_D: torch.Tensor, angle_P: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}) of one head by their angles, [D]."""
    half = len(x_D) // 2
    a, b = x_D[:half], x_D[half:]
    return torch.cat([a * angle_P.cos() - b * angle_P.sin(), b * angle_P.cos() + a * angle_P.sin()])


def latent_attention(
    query_THD: torch.Tensor,
    latent_TR: torch.Tensor,
    key_up_GDR: torch.Tensor,
    value_up_GDR: torch.Tensor,
    key_bias_GD: torch.Tensor,
    value_bias_GD: torch.Tensor,
    frequency_P: torch.Tensor,
    key_gain_D: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Causal attention over rebuilt keys and values, [T, H, D].

    Args:
        query_THD: queries after any q_norm, before rotation.
        latent_TR: latents; the first r_k serve keys, the last r_v values (by the widths of the up-projections).
        key_up_GDR: key up-projection by group, [G, D, r_k].
        value_up_GDR: value up-projection by group, [G, D, r_v].
        frequency_P: RoPE frequencies, [D / 2].
        key_gain_D: gain of a k_norm over each head, [D], or over all groups at once, [G * D], if there is one.
    """
    tokens, heads, width = query_THD.shape
    groups, _, key_rank = key_up_GDR.shape
    value_rank = value_up_GDR.shape[2]
    output = torch.zeros_like(query_THD)
    for head in range(heads):
        group = head * groups // heads
        for t in range(tokens):
            query = rotate_pairs(query_THD[t, head], t * frequency_P)
            scores, values = [], []
            for s in range(t + 1):
                keys_GD = key_up_GDR @ latent_TR[s, :key_rank] + key_bias_GD
                if key_gain_D is not None:
                    normed = keys_GD if len(key_gain_D) > width else keys_GD[group]
                    keys_GD = key_gain_D.view(-1, width) * keys_GD / (normed.square().mean() + eps).sqrt()
                key = keys_GD[group]
                scores.append(query @ rotate_pairs(key, s * frequency_P) / width**0.5)
                rest = latent_TR[s, latent_TR.shape[1] - value_rank :]
                values.append(value_up_GDR[group] @ rest + value_bias_GD[group])
            weights = torch.stack(scores).softmax(0)
            output[t, head] = weights @ torch.stack(values)
    return output


def decoupled_attention(
    query_THD: torch.Tensor,
    latent_TR: torch.Tensor,
    key_TP: torch.Tensor,
    up_HUR: torch.Tensor,
    frequency_P: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Causal attention with decoupled RoPE, [T, H, V].

    Args:
        query_THD: queries before rotation; the last P of each head are to be rotated.
        latent_TR: latents.
        key_TP: the key that all heads share, before rotation.
        up_HUR: up-projections by head, rows for the rest of the keys, then for values: [H, D - P + V, R].
        frequency_P: RoPE frequencies, [P / 2].
        scale: of the scores.
    """
    tokens, heads, width = query_THD.shape
    plain = width - key_TP.shape[1]
    output = query_THD.new_zeros(tokens, heads, up_HUR.shape[1] - plain)
    for head in range(heads):
        for t in range(tokens):
            query = query_THD[t, head]
            rotated = rotate_pairs(query[plain:], t * frequency_P)
            rebuilt = [up_HUR[head] @ latent_TR[s] for s in range(t + 1)]
            scores = [
                query[:plain] @ rebuilt[s][:plain] + rotated @ rotate_pairs(key_TP[s], s * frequency_P)
                for s in range(t + 1)
            ]
            weights = (torch.stack(scores) * scale).softmax(0)
            output[t, head] = weights @ torch.stack(rebuilt)[:, plain:]
    return output
