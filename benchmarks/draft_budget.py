"""The draft budget in simulated rollouts with a long tail: makespan and throughput by slots, against fixed policies.

Lengths are log-normal with a tenth at the cap; step times follow a curve measured on one core of a CPU, and one that
is flat up to 256 tokens as on a GPU; the drafter's chances are calibrated. Every policy writes the same epochs; the
first is its history and is not counted. Correctness gate: the makespan of both modes of the budget is at most
that of no guesses and that of guesses without a budget, up to 2 %.
"""

import sys

import numpy as np
from common import finish, parser
from draft_budget_policies import ByClass, ByEquation, Fixed
from draft_budget_world import CURVES, Clock, Oracle, curve, rollout, samples

from regear.cli.output import grid
from regear.engine.budget.policy import Budget
from regear.engine.drafters.payoff import Payoff

WIDEST = 32  # guesses a text and step
SLACK = 1.02
SHAPES = {"short": (186, 320, 16, 8), "long": (3000, 16_000, 16, 4)}  # median, cap, groups, samples of each
BUDGETS = "budget, throughput", "budget, makespan"


def policies(oracle: Oracle, cost) -> dict:
    """By name; `None` guesses nothing."""
    base = cost(1)
    token = max((cost(16) - cost(1)) / 15, 1e-4 * base)
    return {
        "plain": lambda: None,
        "unlimited": lambda: Fixed(oracle),
        "payoff": lambda: Payoff(oracle, oracle.clock),
        "classes": lambda: ByClass(oracle),
        "printed": lambda: ByEquation(oracle, base, token, printed=True),
        "corrected": lambda: ByEquation(oracle, base, token, printed=False),
        BUDGETS[0]: lambda: Budget(oracle, "throughput", oracle.clock),
        BUDGETS[1]: lambda: Budget(oracle, "makespan", oracle.clock),
    }


def measured(name: str, kind: str, shape: tuple, slots: int, seed: int, epochs: int) -> dict:
    """A policy over the epochs after the first: the sums of its runs."""
    median, cap, groups, each = shape
    clock = Clock()
    oracle, cost = Oracle(clock), curve(kind)
    policy = policies(oracle, cost)[name]()
    runs = []
    for epoch in range(epochs + 1):
        batch = samples(groups, each, median, cap, seed, epoch)
        run = rollout(policy, oracle, batch, slots, cost, cap, WIDEST, seed + epoch, epoch * len(batch))
        runs.append(run)
        if hasattr(policy, "advance"):
            policy.advance()
    counted = [run.row() for run in runs[1:]]
    return {key: float(np.mean([row[key] for row in counted])) for key in counted[0]}


def failures(cells: list[dict]) -> list[str]:
    """Where a budget's makespan is above that of no guesses or of guesses without a budget."""
    found = []
    for cell in cells:
        best = min(cell["policies"][name]["seconds"] for name in ("plain", "unlimited"))
        where = f"{cell['shape']} {cell['curve']} {cell['slots']}"
        found += [
            f"{where}: {name} takes {cell['policies'][name]['seconds'] / best:.3f} of the better one"
            for name in BUDGETS
            if cell["policies"][name]["seconds"] > SLACK * best
        ]
    return found


def simulate(shapes: dict, slots: list[int], seed: int, epochs: int, names: list[str] | None = None) -> list[dict]:
    """A cell for every shape, curve and number of slots, with the policies that are named, or all."""
    names = names or list(policies(Oracle(Clock()), curve("cpu")))
    return [
        {
            "shape": shape,
            "curve": kind,
            "slots": count,
            "policies": {name: measured(name, kind, shapes[shape], count, seed, epochs) for name in names},
        }
        for shape in shapes
        for kind in CURVES
        for count in slots
        if count <= shapes[shape][2] * shapes[shape][3]
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--slots", default="4,16,64,128")
    options.add_argument("--epochs", type=int, default=2, help="that are counted")
    options.add_argument("--shapes", default=",".join(SHAPES))
    arguments = options.parse_args()
    shapes = {name: SHAPES[name] for name in arguments.shapes.split(",")}
    slots = [int(count) for count in arguments.slots.split(",")]
    cells = simulate(shapes, slots, arguments.seed, arguments.epochs)
    names = list(cells[0]["policies"])
    lines = []
    for cell in cells:
        plain = cell["policies"]["plain"]["seconds"]
        found = [f"{cell['policies'][name]['seconds'] / plain:.3f}" for name in names[1:]]
        lines.append([cell["shape"], cell["curve"], str(cell["slots"]), f"{plain:.1f}", *found])
    wrong = failures(cells)
    results = {"epochs": arguments.epochs, "widest": WIDEST, "cells": cells, "failures": wrong}
    header = ["lengths", "curve", "slots", "plain (s)", *names[1:]]
    finish("draft_budget", arguments, results, grid(header, lines) + "".join(f"\n{line}" for line in wrong))
    if wrong:
        sys.exit("the gate: a budget lost")


if __name__ == "__main__":
    main()
