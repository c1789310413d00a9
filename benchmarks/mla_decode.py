"""Decode time against context: the original, exact RoPE, and decoupled RoPE expanded and absorbed, interleaved.

Floor: the bytes a step must read (all weights once, the cache once). Correctness gate: every form's cached greedy
tokens must equal its uncached ones. Then S new tokens at once on a long cache, absorbed against expanded, beside the
multiplications of each: which wins where is what the layer's own rule decides.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import finish, parser

import regear
from regear.cli.output import grid
from regear.measure.speed import cache_size, decode_seconds, filled_cache
from regear.models.builtin import resolve
from regear.models.load import load_model

# Speed does not depend on how well the factors fit, so the quickest ones do.
LITTLE = ["calibration.tokens=4096", "selection.tokens=1000", "evaluation.tokens=1000"]
EXACT = ["convert.preset=svd", *LITTLE]
DECOUPLED = ["convert.rope=decoupled", "convert.factor=svd", "convert.rope_dim=64", "convert.freqfold=1", *LITTLE]
UNTIMED = 1.2  # GB: in so little memory convert times nothing itself


class Form(NamedTuple):
    """One way to decode: a model, and for decoupled layers which of their two ways they take."""

    name: str
    model: Any
    absorb: bool | None = None


@contextmanager
def forced(form: Form) -> Iterator[Any]:
    """The form's model, its decoupled layers bound to one way wherever they have a choice."""
    layers = [] if form.absorb is None else [layer.self_attn for layer in form.model.model.layers]
    for layer in layers:
        layer.absorbs = lambda length, total, mask: form.absorb and (mask is not None or length == 1)
    try:
        yield form.model
    finally:
        for layer in layers:
            del layer.absorbs


def gate(forms: list[Form]) -> None:
    ids = torch.arange(40).unsqueeze(0)
    fixed = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    for form in forms:
        with forced(form) as model:
            if not torch.equal(model.generate(ids, **fixed), model.generate(ids, use_cache=False, **fixed)):
                sys.exit(f"{form.name}: cached generation differs from uncached")


def interleaved(forms: list[Form], repeats: int, measure: Any) -> dict[str, float]:
    """Median over `repeats` rounds of each form's `measure(form, model)`, in seconds."""
    times: dict[str, list[float]] = {form.name: [] for form in forms}
    for _ in range(repeats):
        for form in forms:
            with forced(form) as model:
                times[form.name].append(measure(form, model))
    return {name: statistics.median(found) for name, found in times.items()}


def decode_rows(forms: list[Form], caches: dict[int, Any], contexts: list[int], repeats: int) -> list[dict]:
    """Seconds and floor of one step by form; the caches are cropped from the longest context to the shortest."""
    weights = {f.name: sum(p.numel() * p.element_size() for p in f.model.parameters()) for f in forms}
    per_token = {form.name: cache_size(form.model)["bytes"] for form in forms}
    rows = []
    for context in contexts[::-1]:
        for cache in caches.values():
            if longer := cache.get_seq_length() - context:
                cache.crop(-longer)
        seconds = interleaved(forms, repeats, lambda form, model: decode_seconds(model, caches[id(model)], 4))
        floor = {form.name: weights[form.name] + context * per_token[form.name] for form in forms}
        cached = {form.name: context * per_token[form.name] for form in forms}
        rows.append({"context": context, "seconds": seconds, "floor_bytes": floor, "cache_bytes": cached})
    return rows[::-1]


def multiplications(layer: Any, queries: int, total: int, absorb: bool) -> int:
    """Of one layer's attention, by the rule it decides with; projections, which both ways share, left out."""
    heads, width = layer.config.num_attention_heads, layer.nope_dim + layer.value_dim
    if absorb:
        return heads * queries * (layer.rank * width + total * (2 * layer.rank + layer.rope_dim))
    return heads * total * (layer.rank * width + queries * (width + layer.rope_dim))


@torch.no_grad()
def attention_seconds(model: Any, cache: Any, queries: int) -> float:
    """Seconds inside attention (projections included) of one call with `queries` new tokens; the cache is put back."""
    clock = [0.0]
    hooks = []
    for layer in model.model.layers:
        start = lambda *_: clock.__setitem__(0, clock[0] - time.perf_counter())  # noqa: E731
        stop = lambda *_: clock.__setitem__(0, clock[0] + time.perf_counter())  # noqa: E731
        hooks += [layer.self_attn.register_forward_pre_hook(start), layer.self_attn.register_forward_hook(stop)]
    ids = torch.arange(queries).remainder(model.config.vocab_size).unsqueeze(0)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    cache.crop(-queries)
    return clock[0]


def query_rows(forms: list[Form], cache: Any, queries: list[int], repeats: int) -> list[dict]:
    """Both ways of the decoupled form for several new tokens on the same long cache, and what the layer would take."""
    layer, rows, cached = forms[0].model.model.layers[0].self_attn, [], cache.get_seq_length()
    for count in queries:
        total = cached + count
        seconds = interleaved(forms, repeats, lambda form, model, s=count: attention_seconds(model, cache, s))
        work = {form.name: multiplications(layer, count, total, bool(form.absorb)) for form in forms}
        taken = forms[bool(layer.absorbs(count, total, torch.ones(1)))].name
        rows.append({"queries": count, "total": total, "seconds": seconds, "multiplications": work, "taken": taken})
    return rows


def printed(rows: list[dict], questions: list[dict], names: list[str]) -> str:
    header = ["context", *(f"{n} (ms)" for n in names), *(f"{n} floor (MB)" for n in names)]
    body = [
        [str(row["context"]), *(f"{1e3 * row['seconds'][n]:.1f}" for n in names)]
        + [f"{row['floor_bytes'][n] / 1e6:.0f}" for n in names]
        for row in rows
    ]
    ways = names[-2:]
    second = ["new tokens", *(f"{n} (ms)" for n in ways), *(f"{n} (M mult. a layer)" for n in ways), "taken"]
    lines = [
        [str(row["queries"]), *(f"{1e3 * row['seconds'][n]:.0f}" for n in ways)]
        + [f"{row['multiplications'][n] / 1e6:.0f}" for n in ways]
        + [row["taken"]]
        for row in questions
    ]
    return f"{grid(header, body)}\n\nattention with several new tokens\n{grid(second, lines)}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--contexts", default="128,512,1024,2048,4096")
    options.add_argument("--queries", default="1,8,64,171,512")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--query-repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    arguments = options.parse_args()
    contexts, queries = (sorted(map(int, words.split(","))) for words in (arguments.contexts, arguments.queries))
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / "exact", Path(folder) / "decoupled"]
        for place, words in zip(places, (EXACT, DECOUPLED), strict=True):
            regear.convert(arguments.model, place, *words, to="mla", max_memory=UNTIMED)
        original, exact, decoupled = map(load_model, [resolve(arguments.model), *places])
    torch.set_num_threads(arguments.threads)
    ways = [Form("expanded", decoupled, False), Form("absorbed", decoupled, True)]
    forms = [Form("original", original), Form("exact", exact), *ways]
    gate(forms)
    caches = {id(model): filled_cache(model, contexts[-1]) for model in (original, exact, decoupled)}
    questions = query_rows(ways, caches[id(decoupled)], queries, arguments.query_repeats)
    rows = decode_rows(forms, caches, contexts, arguments.repeats)
    layer = decoupled.model.layers[0].self_attn
    width = layer.nope_dim + layer.value_dim
    results = {
        "threads": arguments.threads,
        "recipe": {"exact": EXACT, "decoupled": DECOUPLED},
        "note": "hardly fitted, which changes quality and not speed; expanded and absorbed are one checkpoint",
        "decoupled": {
            "latent": layer.rank,
            "turning": layer.rope_dim,
            "nope": layer.nope_dim,
            "value": layer.value_dim,
        },
        "break_even_queries": layer.rank * width / (2 * layer.rank - width),
        "rows": rows,
        "queries": questions,
    }
    finish("mla_decode", arguments, results, printed(rows, questions, [form.name for form in forms]))


if __name__ == "__main__":
    main()
