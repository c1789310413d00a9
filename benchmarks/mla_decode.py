"""Decode time against context: the original beside its default MLA conversion, interleaved in one process.

Floor: the bytes a step must read (all weights once, the cache once). Correctness gate: the converted model's cached
greedy tokens must equal its uncached ones.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import torch
from common import finish, parser

import regear
from regear.cli.output import grid
from regear.measure.speed import cache_size, decode_curve
from regear.models.builtin import resolve
from regear.models.load import load_model


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--contexts", default="128,512,1024,2048,4096")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "mla"
        regear.convert(arguments.model, converted, "evaluation.tokens=1000", to="mla")
        models = [load_model(resolve(arguments.model)), load_model(converted)]
    torch.set_num_threads(arguments.threads)
    ids = torch.arange(40).unsqueeze(0)
    fixed = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    if models[1].generate(ids, **fixed).tolist() != models[1].generate(ids, use_cache=False, **fixed).tolist():
        sys.exit("cached generation differs from uncached")

    contexts = [int(x) for x in arguments.contexts.split(",")]
    weights = [sum(p.numel() * p.element_size() for p in model.parameters()) for model in models]
    cache = [cache_size(model)["bytes"] for model in models]
    rows = []
    for context, times in zip(contexts, decode_curve(models, contexts, repeats=arguments.repeats), strict=True):
        floor = [w + context * c for w, c in zip(weights, cache, strict=True)]
        rows.append({"context": context, "seconds": times, "ratio": times[1] / times[0], "floor_bytes": floor})
    results = {"threads": arguments.threads, "weight_bytes": weights, "cache_bytes_per_token": cache, "rows": rows}
    header = ["context", "before (ms)", "after (ms)", "ratio", "floor before (MB)", "floor after (MB)"]
    body = [
        [str(r["context"]), *(f"{1e3 * s:.1f}" for s in r["seconds"]), f"{r['ratio']:.2f}"]
        + [f"{b / 1e6:.0f}" for b in r["floor_bytes"]]
        for r in rows
    ]
    mean = statistics.mean(r["ratio"] for r in rows)
    finish("mla_decode", arguments, results, f"{grid(header, body)}\nmean ratio {mean:.2f}")


if __name__ == "__main__":
    main()
