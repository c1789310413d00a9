"""What vLLM's transformers backend makes of a checkpoint's attention: run by the engine's Python, which has no regear.

Usage: python vllm_fuser.py MODEL_DIR...
Models are built without weights and every attention module is shown to vLLM's own matcher. Standard output ends with
one JSON line: `{"models": [{"uses_mla": bool, "head_size": n, "dims": {...} or null, "layers": [{"layer", "mla",
"reason", "fusers", "dispatches"}]}]}`. `mla` says whether the layer would be served from latents, `reason` at which of
the matcher's steps it was refused, `dispatches` whether vLLM finds its call of the attention interface at all, and
`head_size` is the width that vLLM's MLA kernels check.
"""

import json
import os
import sys

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def build(path: str) -> tuple:
    """The engine's configuration and the model on the meta device, made the way the backend makes it."""
    import torch
    from transformers import AutoModel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models.transformers.fusers.attention import VLLM_ATTN_IMPL

    arguments = EngineArgs(model=path, model_impl="transformers", trust_remote_code=True, dtype="float32")
    config = arguments.create_engine_config()
    text = config.model_config.hf_config.get_text_config()
    text._attn_implementation = VLLM_ATTN_IMPL
    with torch.device("meta"):
        model = AutoModel.from_config(text, dtype=torch.float32, trust_remote_code=True)
    return config, model


def refusal(module, config) -> str:
    """The step of vLLM's matcher that refuses `module`; empty if none does."""
    from vllm.model_executor.models.transformers.fusers import MLAFuser
    from vllm.model_executor.models.transformers.fx_utils import trace

    graph = trace(module)
    fuser = MLAFuser.match(graph, module) if graph is not None else None
    if fuser is None:
        return "match: no MLA pattern in the traced forward"
    try:
        fuser.update_forward(module)
    except Exception as error:
        return f"rewrite: {error}"
    return "" if fuser.validate(module, config) else "validate: the configuration does not ask for MLA"


def report(path: str) -> dict:
    """What vLLM's backend would do with one checkpoint."""
    from vllm.model_executor.layers.attention.mla_attention import get_mla_dims
    from vllm.model_executor.models.transformers.fuser import Fusers
    from vllm.model_executor.models.transformers.fusers import AttentionFuser, MLAFuser

    config, model = build(path)
    fusers, layers = Fusers(model, config), []
    for name, module in model.named_modules():
        if getattr(module, "layer_idx", None) is None or next(module.children(), None) is None:
            continue
        chosen = fusers[module]
        layers.append(
            {
                "layer": name,
                "mla": any(isinstance(fuser, MLAFuser) for fuser in chosen),
                "reason": refusal(module, config),
                "fusers": [type(fuser).__name__ for fuser in chosen],
                "dispatches": any(isinstance(fuser, AttentionFuser) for fuser in chosen),
            }
        )
    uses_mla = bool(config.model_config.use_mla)
    dims = vars(get_mla_dims(config.model_config)) if uses_mla else None
    return {"uses_mla": uses_mla, "head_size": config.model_config.get_head_size(), "dims": dims, "layers": layers}


if __name__ == "__main__":
    print("\n" + json.dumps({"models": [report(path) for path in sys.argv[1:]]}), flush=True)
