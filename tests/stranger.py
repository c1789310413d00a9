"""What a process that never imports regear makes of a strict export."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, sys, torch
from transformers import AutoModelForCausalLM, DynamicCache
place, ids = sys.argv[1], torch.tensor([json.loads(sys.argv[2])])
model, report = AutoModelForCausalLM.from_pretrained(
    place, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
)
cache = DynamicCache(config=model.config)
model(ids, past_key_values=cache, use_cache=True)
tokens = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
print(json.dumps({
    "class": type(model).__module__,
    "missing": sorted(report["missing_keys"]),
    "unexpected": sorted(report["unexpected_keys"]),
    "widths": [[layer.keys.shape[-1], layer.values.shape[-1]] for layer in cache.layers],
    "heads": [layer.keys.shape[1] for layer in cache.layers],
    "tokens": tokens.tolist(),
    "regear": any(name.split(".")[0] == "regear" for name in sys.modules),
}))
"""


def stranger(place: Path, ids: list[int]) -> dict:
    """The loaded class, keys missing and unexpected, cached widths and heads of every layer, and 24 greedy tokens."""
    command = [sys.executable, "-c", SCRIPT, str(place), json.dumps(ids)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
