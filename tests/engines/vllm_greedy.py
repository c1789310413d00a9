"""Greedy tokens from vLLM, for a checkpoint directory: run by the engine's Python, which has no regear.

Usage: python vllm_greedy.py MODEL_DIR REQUEST.json
REQUEST.json holds `{"prompts": [[token ids], ...], "max_tokens": n}` and may hold `"llm": {LLM's own arguments}`.
Standard output ends with one JSON line: `{"token_ids": [[ids], ...], "backends": [names], "kv_width": floats}`.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def caches(llm) -> dict:
    """What vLLM allocated: the attention classes and the floats cached per token and layer."""
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    layers = [layer for layer in layers if hasattr(layer, "attn_backend")]
    specs = [layer.get_kv_cache_spec(llm.llm_engine.vllm_config) for layer in layers]
    widths = [spec.page_size_bytes // spec.block_size // spec.dtype.itemsize for spec in specs]
    return {"backends": sorted({layer.attn_backend.get_name() for layer in layers}), "kv_width": widths}


def main(model: str, request: str) -> None:
    from vllm import LLM, SamplingParams

    asked = json.loads(Path(request).read_text())
    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=8,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **asked.get("llm", {}),
    )
    greedy = SamplingParams(temperature=0, max_tokens=asked["max_tokens"], ignore_eos=True, detokenize=False)
    results = llm.generate([{"prompt_token_ids": ids} for ids in asked["prompts"]], greedy, use_tqdm=False)
    answer = {"token_ids": [list(result.outputs[0].token_ids) for result in results], **caches(llm)}
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
