"""How fast a training step is, beside the operations it must do at the rate this machine multiplies matrices.

Cases run interleaved, one step each a round, with the matrix rate measured between them; medians over rounds. The floor
of a step is its operations (`train/cost.py`, tested against torch's own counter) over that rate, in float32 for every
case. Where the rest goes is read off a profile of one step. Correctness gate: every case has a finite loss.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import finish, parser
from torch.profiler import ProfilerActivity, profile

import regear
from regear.cli.output import grid
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer
from regear.train.cost import Sizes, matrix_rate, operations
from regear.train.loop import Trained
from regear.train.objectives import objective
from regear.train.optim import adamw, select
from regear.train.recipes import StageRecipe
from regear.train.stream import Stream

CASES = {
    "kl, attention": {"objective": "kl"},
    "kl, all": {"objective": "kl", "train": "*"},
    "ce, attention": {"objective": "ce"},
    "ce, all": {"objective": "ce", "train": "*"},
    "align": {"objective": "align"},
    "kl, attention, bfloat16": {"objective": "kl", "precision": "bfloat16"},
}
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "linear", "mkldnn"),
    "attention": ("scaled_dot_product",),
    "softmax of the loss": ("log_softmax", "softmax", "exp"),
    "AdamW": ("adamw", "foreach", "lerp", "addcdiv", "addcmul"),
}


def step(trained: Trained, optimiser: torch.optim.Optimizer, batch, half: bool = False) -> float:
    """One update; its loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        total, _ = trained(batch)
    (total / batch.count).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return float(total.detach()) / batch.count


def shares(trained: Trained, optimiser: torch.optim.Optimizer, batch) -> dict[str, float]:
    """Where one step's time goes."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step(trained, optimiser, batch)
    spent = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in found.key_averages():
        name = event.key.lower()
        kind = next((k for k, words in KINDS.items() if any(w in name for w in words)), "the rest")
        spent[kind] += event.self_cpu_time_total
    return {kind: round(time_ / sum(spent.values()), 3) for kind, time_ in spent.items()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--student", type=Path, help="a converted checkpoint (one is made if not given)")
    options.add_argument("--sequence", type=int, default=512)
    options.add_argument("--rows", type=int, default=2)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=1)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.student
        if place is None:
            place = Path(folder) / "student"
            words = ("convert.kv_ratio=1/3", "convert.preset=care-uniform", "evaluation.tokens=1000")
            regear.convert(arguments.model, place, *words, to="mla")
        student = load_model(place).train()
        tokenizer = load_tokenizer(place)
    teacher = load_model(resolve(arguments.model)).requires_grad_(False)
    stream = Stream(["builtin"], tokenizer, sequence=arguments.sequence, batch=arguments.rows, buffer=64)
    batch, device = next(stream), torch.device("cpu")
    tokens = arguments.rows * arguments.sequence

    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    reached: dict[str, list[float]] = {name: [] for name in CASES}
    work, profiles = {}, {}
    for round_ in range(arguments.rounds + 1):
        for name, words in CASES.items():
            recipe = StageRecipe(tokens=1, lr=1e-6, sequence=arguments.sequence, batch=arguments.rows, **words)
            select(student, recipe.train, recipe.freeze)
            trained = Trained(student, teacher, objective(recipe.objective))
            optimiser = adamw(student, recipe)
            asked = teacher if recipe.objective.teacher != "none" else None
            work[name] = operations(Sizes.of(student), asked and Sizes.of(asked), recipe).total
            half = recipe.half("cpu")
            loss = step(trained, optimiser, batch, half)  # moments are made on the first step
            if not loss < float("inf"):
                sys.exit(f"{name}: loss {loss}")
            rate = matrix_rate(device)
            began = time.perf_counter()
            step(trained, optimiser, batch, half)
            spent = time.perf_counter() - began
            rate = (rate + matrix_rate(device)) / 2
            if round_:
                seconds[name].append(spent)
                reached[name].append(work[name] * tokens / spent / rate)
            elif name in ("kl, attention", "ce, all"):
                profiles[name] = shares(trained, optimiser, batch)

    results, rows = {}, []
    for name in CASES:
        found = statistics.median(seconds[name])
        results[name] = {
            "tokens_per_second": tokens / found,
            "operations_per_token": work[name],
            "share_of_matrix_rate": statistics.median(reached[name]),
        }
        row = [name, f"{tokens / found:.1f}", f"{work[name] / 1e9:.2f}", f"{statistics.median(reached[name]):.2f}"]
        rows.append(row)
    text = grid(["case", "tokens/s", "GFLOP a token", "share of the matrix rate"], rows)
    for name, spent in profiles.items():
        text += f"\n{name}: " + ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in spent.items())
    settings = {"sequence": arguments.sequence, "rows": arguments.rows, "threads": arguments.threads}
    finish("heal_speed", arguments, {**settings, "cases": results, "profiles": profiles}, text)


if __name__ == "__main__":
    main()
