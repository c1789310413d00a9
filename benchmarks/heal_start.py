"""Does a better start save training? Two conversions healed side by side on the same batches.

After every few steps both students' KL from the original is measured on held-out text. For every KL that both reach,
the ratio of the tokens they needed is reported (between measurements, by linear interpolation of log KL); for one that
only the better start reaches, the bound. Correctness gates, on the same windows: the original's KL
from itself is 0, and both starts differ from it.
"""

import math
import sys
from itertools import pairwise
from pathlib import Path

import torch
from common import finish, parser

import regear
from regear.cli.output import grid
from regear.measure.perplexity import score_pair
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer
from regear.tasks.text import read_documents, spread, windows_of
from regear.train.loop import Trained
from regear.train.objectives import objective
from regear.train.optim import adamw, rate, select
from regear.train.recipes import StageRecipe
from regear.train.stream import Stream

STARTS = {"svd": "svd", "care": "care-uniform"}


class Student:
    """A model in training."""

    def __init__(self, place: Path, teacher: torch.nn.Module, recipe: StageRecipe) -> None:
        self.model = load_model(place)
        select(self.model, recipe.train, recipe.freeze)
        self.trained = Trained(self.model, teacher, objective(recipe.objective))
        self.optimiser, self.recipe = adamw(self.model, recipe), recipe
        self.curve: list[tuple[int, float]] = []

    def step(self, batch, step: int, steps: int) -> None:
        self.model.train()
        share = rate(step, steps, self.recipe)
        total, _ = self.trained(batch, share)
        (total / batch.count).backward()
        torch.nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], self.recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr * share * group["scale"]
        self.optimiser.step()
        self.optimiser.zero_grad()


def tokens_to(curve: list[tuple[int, float]], kl: float) -> float | None:
    """Tokens after which a curve first lies at `kl`; None if it never does."""
    for (t0, k0), (t1, k1) in pairwise(curve):
        if k0 <= kl:
            return float(t0)
        if k1 <= kl:
            return t0 + (t1 - t0) * (math.log(k0) - math.log(kl)) / (math.log(k0) - math.log(k1))
    return None


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--work", type=Path, default=Path("heal-start"))
    options.add_argument("--ratio", default="1/2")
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--every", type=int, default=5)
    options.add_argument("--windows", type=int, default=6)
    options.add_argument("--lr", type=float, default=1e-3)
    arguments = options.parse_args()
    recipe = StageRecipe(tokens=1, lr=arguments.lr, warmup=4, schedule="constant")
    teacher = load_model(resolve(arguments.model)).requires_grad_(False)
    students, tokenizer = {}, load_tokenizer(resolve(arguments.model))
    for name, preset in STARTS.items():
        place = arguments.work / f"{name}-{arguments.ratio.replace('/', '-')}"
        if not place.exists():
            words = (f"convert.kv_ratio={arguments.ratio}", f"convert.preset={preset}", "evaluation.tokens=4096")
            regear.convert(arguments.model, place, *words, to="mla")
        students[name] = Student(place, teacher, recipe)
    windows = spread(windows_of(read_documents(["builtin"], "evaluation")), arguments.windows)
    if not abs(score_pair(teacher, teacher, tokenizer, windows)[0].mean_kl) < 1e-6:
        sys.exit("the original differs from itself")
    stream = Stream(["builtin"], tokenizer, sequence=recipe.sequence, batch=recipe.batch, seed=arguments.seed)
    for step in range(arguments.steps + 1):
        if step % arguments.every == 0:
            for student in students.values():
                kl = score_pair(student.model.eval(), teacher, tokenizer, windows)[0].mean_kl
                student.curve.append((step * recipe.batch * recipe.sequence, kl))
        if step == 0 and not all(s.curve[0][1] > 0 for s in students.values()):
            sys.exit("a start does not differ from the original")
        batch = next(stream)
        for student in students.values():
            student.step(batch, step, arguments.steps)

    svd, care = (students[name].curve for name in STARTS)
    levels = sorted({round(k, 4) for _, k in (*svd, *care)}, reverse=True)
    rows = []
    for kl in levels:
        needed = [tokens_to(curve, kl) for curve in (svd, care)]
        bound = needed[0] is None and needed[1] is not None
        if needed[1] and (needed[0] or bound):
            rows.append({"kl": kl, "svd": needed[0], "care": needed[1], "ratio": (needed[0] or svd[-1][0]) / needed[1]})
    body = [[f"{t:,}", f"{a:.4f}", f"{b:.4f}"] for (t, a), (_, b) in zip(svd, care, strict=True)]
    lines = [grid(["tokens", "KL from SVD", "KL from CARE"], body)]
    for row in rows:
        more = "at least " if row["svd"] is None else ""
        lines.append(f"KL {row['kl']:.4f}: {more}{row['ratio']:.1f} times the tokens from SVD")
    if not rows:
        lines.append(f"SVD's lowest KL {svd[-1][1]:.4f} is above CARE's start {care[0][1]:.4f}")
    finish(
        "heal_start", arguments, {"ratio": arguments.ratio, "svd": svd, "care": care, "needed": rows}, "\n".join(lines)
    )


if __name__ == "__main__":
    main()
