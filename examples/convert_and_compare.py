"""Convert a model to MLA, load the result with stock transformers, and look at what changed.

python examples/convert_and_compare.py [MODEL OUT [key=value …]]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import regear

model, out, *changes = sys.argv[1:] or ["smollm2-135m-instruct", "smollm2-mla"]
result = regear.convert(model, out, *changes, to="mla")
print(f"KV floats a token: {result['kv_floats_per_token']}")
print(f"perplexity: {result['perplexity']['before']:.2f} -> {result['perplexity']['after']:.2f}, KL {result['kl']:.4f}")

# Any process with transformers loads the directory; regear need not be installed there.
tokenizer = AutoTokenizer.from_pretrained(out)
converted = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
prompt = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(converted.generate(**prompt, max_new_tokens=20, do_sample=False)[0]))
