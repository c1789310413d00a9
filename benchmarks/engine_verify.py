"""What verification costs, and what n-gram speculation gains by it.

First, one pass with several tokens a text beside a pass with one, the draw of every place included: the engine, and
transformers with its own cache. Then whole texts with n-gram guesses beside the same without: texts that repeat their
prompt (code with a name changed, and a page again) and texts that do not (essays, sampled at temperature 1).
Correctness gates: both models draw the same tokens in a pass, and speculation changes texts at near-ties only.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import finish
from engine_common import TIE, engine_parser, interleaved, load_stock, medians, numbers, partings, verdict
from engine_contenders import Ours
from engine_floor import floor, rates
from engine_prompts import cut_prompts, repeating
from transformers import DynamicCache

from regear.cli.output import grid
from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.drafters.payoff import Payoff
from regear.engine.runner import AttentionRunner
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer

Step = Callable[[int], torch.Tensor]


def our_step(runner: AttentionRunner, ids: np.ndarray, new: np.ndarray) -> Step:
    """A pass over `width` of the new tokens of every text, whose cache is cut back by what the next pass says."""
    rows, context = ids.shape
    runner.reserve(rows, context + new.shape[1], 0)
    none = np.zeros((1, context), bool)
    for row in range(rows):
        runner.read(row, ids[row : row + 1], np.array([context]), np.array([0]), none)

    def step(width: int) -> torch.Tensor:
        counts, starts = np.full(rows, width), np.full(rows, context)
        wanted = np.ones((rows, width), bool)
        return runner.read(0, new[:, :width], counts, starts, wanted).view(rows, width, -1)

    return step


@torch.no_grad()
def stock_step(model: Any, ids: np.ndarray, new: np.ndarray) -> Step:
    """The same by transformers."""
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.from_numpy(ids), past_key_values=cache, logits_to_keep=1)

    @torch.no_grad()
    def step(width: int) -> torch.Tensor:
        scores = model(input_ids=torch.from_numpy(new[:, :width]), past_key_values=cache).logits
        cache.crop(-width)
        return scores

    return step


def agree(one: torch.Tensor, other: torch.Tensor) -> None:
    """End the run if the two draw different tokens where no tie is."""
    drawn = one.argmax(-1, keepdim=True)
    gap = other.amax(-1) - other.gather(-1, drawn)[..., 0]
    if not gap.max() < TIE:
        sys.exit(f"the engine draws a token whose score is {gap.max():.2g} below transformers' best")


def seconds(step: Step, width: int) -> float:
    began = time.perf_counter()
    step(width).argmax(-1)
    return time.perf_counter() - began


def costs(ours: Any, stock: Any, prompts: np.ndarray, context: int, widths: list[int], rounds: int) -> dict[str, Any]:
    """Median seconds of a pass by width, both ways, and what it must cost at least."""
    ids, new = prompts[:, :context], prompts[:, context:]
    steps = {"regear": our_step(AttentionRunner(ours), ids, new), "transformers": stock_step(stock, ids, new)}
    agree(*(step(widths[-1]) for step in steps.values()))
    cases = {
        f"{name} {width}": lambda step=step, width=width: seconds(step, width)
        for width in widths
        for name, step in steps.items()
    }
    found = medians(interleaved(cases, rounds))
    times = {name: {width: found[f"{name} {width}"] for width in widths} for name in steps}
    return {
        "rows": len(ids),
        "seconds": times,
        "over_one": {name: {width: own[width] / own[1] for width in widths} for name, own in times.items()},
        "floor": {width: floor(stock, len(ids), context, width) for width in widths},
    }


def speculation(model: Any, stock: Any, prompts: list[list[int]], arguments: Any, temperature: float) -> dict[str, Any]:
    """Decoding with n-gram guesses beside none: speed, acceptance length, and where texts part."""
    words = {"chunk": 0, "temperature": temperature, "seed": arguments.seed}
    ways = {"off": Ours(model, **words), "ngram": Ours(model, lambda: Payoff(NgramDrafter()), **words)}
    runs = {name: way(prompts, arguments.tokens) for name, way in ways.items()}
    parted = partings(stock, prompts, *runs.values(), temperature=temperature, seed=arguments.seed)
    found = verdict(parted, len(prompts))
    if not found["near_ties_only"]:
        sys.exit(f"speculation changed a text where no tie is: {parted}")
    cases = {name: lambda way=way: way(prompts, arguments.tokens).rate(whole=True) for name, way in ways.items()}
    speed = medians(interleaved(cases, arguments.rounds))
    return {
        "rows": len(prompts),
        "temperature": temperature,
        "tokens_per_second": speed,
        "speed_up": speed["ngram"] / speed["off"],
        "acceptance_length": runs["ngram"].count() / runs["ngram"].forwards,
        **found,
    }


def main() -> None:
    options = engine_parser(__doc__, rounds=5)
    options.add_argument("--context", type=int, default=200)
    options.add_argument("--rows", default="1,4,16,64")
    options.add_argument("--widths", default="1,2,4,8")
    options.add_argument("--texts", default="1,4,16", help="texts at a time, with speculation")
    options.add_argument("--tokens", type=int, default=128, help="written with speculation")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    path = resolve(arguments.model)
    tokenizer, stock, model = load_tokenizer(path), load_stock(path), load_model(path, "cpu")
    widths, measured, passes, texts = sorted({1, *numbers(arguments.widths)}), [rates()], [], []
    for rows in numbers(arguments.rows):
        prompts = np.array(cut_prompts(tokenizer, arguments.text, rows, arguments.context + widths[-1]))
        passes.append(costs(model, stock, prompts, arguments.context, widths, arguments.rounds))
        measured.append(rates())
    for rows in numbers(arguments.texts):
        again = repeating(tokenizer, arguments.text, rows, arguments.context)
        fresh = cut_prompts(tokenizer, arguments.text, rows, arguments.context, "essay")
        for name, prompts, temperature in (("repeats", again, 0.0), ("repeats", again, 0.7), ("does not", fresh, 1.0)):
            texts.append({"text": name, **speculation(model, stock, prompts, arguments, temperature)})
    ratios = [
        [str(row["rows"]), name, f"{1e3 * row['seconds'][name][1]:.1f}", *(f"{over[w]:.2f}" for w in widths)]
        for row in passes
        for name, over in row["over_one"].items()
    ]
    lines = [
        [row["text"], str(row["rows"]), f"{row['temperature']}", f"{row['tokens_per_second']['off']:.1f}",
         f"{row['speed_up']:.2f}", f"{row['acceptance_length']:.2f}", str(len(row["parted"]))] for row in texts
    ]  # fmt: skip
    text = grid(["texts", "", "one token (ms)", *(f"{width} tokens, times" for width in widths)], ratios) + "\n\n"
    text += grid(["text", "texts", "temperature", "off (tok/s)", "speed-up", "acceptance", "near-ties"], lines)
    results = {"threads": arguments.threads, "context": arguments.context, "rounds": arguments.rounds,
               "rates": measured, "passes": passes, "texts": texts}  # fmt: skip
    finish("engine_verify", arguments, results, text)


if __name__ == "__main__":
    main()
