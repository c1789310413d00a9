"""What the formats of DeepSeek's shape (`deepseek_v3`, `youtu`) cannot hold, told before converting and on export."""

from collections.abc import Mapping
from typing import Any

from regear.models.families import SourceSpec

# The key of a `regear_mla` config that says so, and what it is.
PARTS = {
    "q_bias": "a bias on queries",
    "kv_bias": "a bias on keys and values",
    "o_bias": "a bias on the attention output",
    "mlp_bias": "a bias on the MLP",
    "post_norm": "norms after attention and MLP instead of before",
    "expert_layers": "softmax routing over experts",
}
# A decoupled layer norms each query by itself, or has the norm folded into its weights as an average.
APPROXIMATED = "QK-norm (it can only be approximated)"
JOINED = "QK-norm over all heads at once"
NORMED_BIAS = "biases under a QK-norm"


def part_obstacles(config: Mapping[str, Any]) -> list[str]:
    """The parts in a config of `regear_mla` that those formats have no place for, whatever its attention is."""
    activation = config.get("hidden_act") or "silu"
    odd = [] if activation in ("silu", "swish") else [f"the activation {activation}"]
    return [words for key, words in PARTS.items() if config.get(key)] + odd


def strict_obstacles(spec: SourceSpec) -> list[str]:
    """What of a source model those formats have no place for, in plain words; empty where all of it fits.

    `APPROXIMATED` is among them: it fits at a loss. Scaled RoPE is not: transformers computes it exactly in these
    formats, and only some servers do not.
    """
    config = {
        "q_bias": spec.kv_bias,
        "kv_bias": spec.kv_bias,
        "o_bias": spec.o_bias,
        "mlp_bias": spec.mlp_bias,
        "post_norm": spec.post_norm,
        "expert_layers": spec.experts,
        "hidden_act": spec.activation,
    }
    norm = JOINED if spec.qk_norm_width == "all" else APPROXIMATED
    return part_obstacles(config) + [norm] * spec.qk_norm


def decoupled_obstacles(spec: SourceSpec) -> list[str]:
    """What of a source model no decoupled layer holds, in any format."""
    if not spec.qk_norm:
        return []
    return [JOINED] * (spec.qk_norm_width == "all") + [NORMED_BIAS] * spec.kv_bias


def server_obstacles(spec: SourceSpec) -> list[str]:
    """What vLLM's and SGLang's own `deepseek_v3` compute differently, though transformers computes it exactly."""
    return [] if spec.rope_type == "default" else [f"RoPE scaling {spec.rope_type!r}"]
