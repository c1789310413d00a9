"""What a server has to know of a checkpoint: bytes of cache, what splits over devices, which kernel takes which width.

Kernel widths and engines' behaviour are no facts of this program: `AS_READ` says where and when they were found.
"""

from typing import Any

from regear.core.report import Section
from regear.models.formats.strict import STRICT

AS_READ = "read in the sources of vLLM 0.32 and 0.33, SGLang 0.5.23 and transformers 5.23 (2026)"
STOCK = (
    "Load it with stock transformers (5.15 or newer, so that the cache holds latents){servers}; no code of its own is "
    "needed. Serve it in bfloat16 or float32: in float16 its latents underflow. Do not train it in this form: convert "
    "it to `regear_mla` first."
)
LOADING = {
    "regear_mla": "Load it with stock transformers and `trust_remote_code=True`; the modelling code travels in this "
    "directory.",
    "deepseek_v3": STOCK.format(servers=", vLLM or SGLang"),
    "youtu": STOCK.format(servers=""),
}
SGLANG_OWN = ["SGLang", "no: it serves MLA of the models it knows only"]
# What vLLM's MLA kernels have in common; Triton's takes no more than these either.
SERVED = (320, 512, 576)


def server_facts(config: dict[str, Any]) -> Section:
    """One table for the card, from the config of any format."""
    ranks, rope = widths(config)
    floats = sum(ranks) + rope * len(ranks)
    rows = [
        ["cache a token, 16-bit", f"{2 * floats:,} bytes"],
        ["cache a token, 8-bit", f"{floats:,} bytes"],
        ["tensor parallelism", _parallel(config)],
        *kernels(config, ranks, rope),
    ]
    note = (
        f"Widths of a layer: latent {_span(ranks)}, shared rotated key {rope}. Engines and kernels as {AS_READ}. Where "
        "no MLA kernel takes the width, vLLM serves with VLLM_MLA_DISABLE=1, and whole keys and values in its cache."
    )
    return Section("For servers", ["", ""], rows, note)


def widths(config: dict[str, Any]) -> tuple[list[int], int]:
    """Latent floats of every layer, and rotated ones (0 with exact RoPE)."""
    if config["model_type"] in STRICT:
        return [config["kv_lora_rank"]] * config["num_hidden_layers"], int(config["qk_rope_head_dim"])
    return [rank for rank, _, _ in config["latent_ranks"]], int(config.get("rope_dim") or 0)


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"


def _parallel(config: dict[str, Any]) -> str:
    base = "the latent cache is whole on every rank (it serves all heads); heads and MLP split"
    if config.get("qk_norm") and config.get("rope_mode") == "decoupled":
        return f"{base}, except that the query norm keeps vLLM's transformers backend at one rank"
    return base


def kernels(config: dict[str, Any], ranks: list[int], rope: int) -> list[list[str]]:
    """Engine and kernel against what becomes of this checkpoint there."""
    own = config["model_type"] == "regear_mla"
    rows = [["transformers" + (", `trust_remote_code=True`" if own else ""), "yes"]]
    backend = "vLLM, `--model-impl transformers`" + (" `--trust-remote-code`" if own else "")
    if own and config.get("expert_layers"):
        return [*rows, [backend, "not tried with routed experts"], SGLANG_OWN]
    if own and (not rope or len(set(ranks)) > 1):
        why = "keys turn after they are rebuilt" if not rope else "its MLA kernels take one width for all layers"
        return [*rows, [backend, f"yes, but with whole keys and values in its cache: {why}"], SGLANG_OWN]
    if own:
        return [
            *rows,
            [backend, "yes, from latents, with the kernels below"],
            SGLANG_OWN,
            *_widths(config, ranks[0], rope),
        ]
    if config["model_type"] == "youtu":
        return [*rows, [backend, "yes, from latents, with the kernels below"], *_widths(config, ranks[0], rope)]
    scaled = (config.get("rope_parameters") or {}).get("rope_type", "default") != "default"
    natively = "no: it computes this RoPE scaling as YaRN, which is another function" if scaled else "yes"
    rows += [["vLLM, its own deepseek_v3", natively], [backend, "yes"], ["SGLang, Triton kernel", natively]]
    return [*rows, *_widths(config, ranks[0], rope)]


def _widths(config: dict[str, Any], rank: int, rope: int) -> list[list[str]]:
    heads, nope = config["num_attention_heads"], config.get("qk_nope_head_dim") or config["nope_dim"]
    fast = (rank, rope) == (512, 64)
    takes = {
        "vLLM, Triton MLA (latent + rotated = 320, 512 or 576; 16-bit)": rank + rope in SERVED,
        "vLLM, FlashAttention MLA and CPU MLA (latent + rotated = 576)": rank + rope == 576,
        "FlashMLA (512 + 64)": fast,
        "CUTLASS MLA (512 + 64, at most 128 heads)": fast and heads <= 128,
        "FlashInfer MLA (256 or 512, + 64; 64, 128 or 192 unrotated)": rank in (256, 512)
        and rope == 64
        and nope in (64, 128, 192),
    }
    return [[name, "yes" if there else f"no: here {rank} + {rope}{_pad(rank, rope)}"] for name, there in takes.items()]


def _pad(rank: int, rope: int) -> str:
    wider = [total - rope for total in SERVED if total >= rank + rope]
    return f"; `convert.latent_pad={wider[-1]}` makes it 576" if wider and rank + rope < 576 else ""
