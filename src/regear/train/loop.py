"""The training loop: one stage of one model, resumable to the same bytes.

    for each step:  draw micro-batches → sum what they score over all processes → forward, backward each →
                    clip → AdamW at this step's rate → log, measure, save

A loss is a sum over what is scored divided by the count of the whole step, so that neither the split into
micro-batches nor the number of processes changes it.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from regear.core.errors import BackendError
from regear.core.run import Progress
from regear.models.head import decoder
from regear.train import checkpoint
from regear.train.batch import Batch
from regear.train.objectives import Objective
from regear.train.optim import adamw, rate, settle
from regear.train.parallel import World, parallelize, sync_gradients
from regear.train.recipes import StageRecipe

TIMED_STEPS = 8  # a limit in minutes becomes a number of steps once so many have been timed
UNKNOWN = 1 << 30  # steps, until then


class Source(Protocol):
    """Endless training data with a place that can be kept."""

    def __next__(self) -> Batch:
        """This process's rows of the next step."""
        ...

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Stand there again."""
        ...


class Trained(nn.Module):
    """Student, teacher and loss under one root, so that one call does all that a step needs of their parameters."""

    def __init__(self, student: nn.Module, teacher: Any, objective: Objective) -> None:
        super().__init__()
        self.student, self.teacher, self.objective = student, teacher, objective

    def forward(self, batch: Batch, share: float = 1.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The summed loss of a batch, and its parts; `share`: the learning rate as a share of its highest."""
        loss = self.objective(self.student, self.teacher, batch, share)
        return loss.total, loss.logged


@dataclass
class Hooks:
    """What happens around steps: rows of metrics, progress, measurements while training, and their distances."""

    log: Callable[..., None]
    progress: Progress
    measure: Callable[[], dict[str, Any]] | None = None
    measure_every: int = 0
    save_seconds: float = 300.0


@dataclass
class Stage:
    """One stage in motion: its recipe, number, model, data, and where its steps are kept."""

    recipe: StageRecipe
    number: int
    trained: Trained
    source: Source
    place: Path
    world: World
    hooks: Hooks
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def run(self) -> dict[str, Any]:
        """Train to the end; a stage that was cut off goes on where its last durable step stands.

        Returns the steps, tokens (places in rows, padding and prompts too), predicted tokens and seconds of the stage
        (seconds of this process only).

        Raises:
            BackendError: the loss is NaN or infinite.
        """
        trained, recipe = self.trained, self.recipe
        trained.student.train()
        if self.world.size > 1:
            layers = [layer for model in (trained.student, trained.teacher) for layer in layers_of(model)]
            parallelize(trained, layers, self.world)
        optimiser = adamw(trained, recipe)
        step, steps, tokens, predicted = self._resume(optimiser)
        started, saved, durations = time.monotonic(), time.monotonic(), []
        while steps is None or step < steps:
            began = time.monotonic()
            row = self._step(optimiser, step, steps or recipe.steps() or UNKNOWN)
            step, tokens = step + 1, tokens + recipe.batch * recipe.sequence
            predicted += int(row.pop("predicted"))
            durations.append(time.monotonic() - began)
            fixed = steps is not None
            steps = steps if fixed else self._limit(step, durations)
            self._tell(step, steps, tokens, row, durations)
            if steps is not None and (not fixed or step == steps or self._due(saved)):
                self._save(optimiser, step, steps, {"tokens": tokens, "predicted": predicted})
                saved = time.monotonic()
        seconds = round(time.monotonic() - started, 3)
        return {"steps": step, "tokens": tokens, "predicted": predicted, "seconds": seconds}

    def _step(self, optimiser: torch.optim.Optimizer, step: int, steps: int) -> dict[str, float]:
        """One update; its loss, parts, gradient norm, rate, and predictions that counted."""
        recipe, world = self.recipe, self.world
        torch.manual_seed(
            ((self.seed * 1_000_003 + self.number) * 1_000_003 + step * world.size + world.rank) % (1 << 64)
        )
        batches = next(self.source).split(recipe.micro_batch)
        counts = [[self._count(batch), batch.count] for batch in batches]
        count, predicted = world.sums(torch.tensor(counts, dtype=torch.float64, device=world.device).sum(0)).tolist()
        scale, share = world.size / max(count, 1), rate(step, steps, recipe)
        parts: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches, 1):
            sync_gradients(self.trained, number == len(batches))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.half(self.device.type)):
                total, logged = self.trained(batch.to(self.device), share)
            (total * scale).backward()
            for name, value in {"loss": total.detach(), **logged}.items():
                parts[name] = parts.get(name, 0.0) + value.double()
        weights = [p for group in optimiser.param_groups for p in group["params"]]
        norm: Any = nn.utils.clip_grad_norm_(weights, recipe.clip)
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr * share * group["scale"]
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        # Read at once, at the end: a GPU is waited for once a step.
        *sums, norm = torch.stack([*world.sums(torch.stack(list(parts.values()))), norm.double()]).tolist()
        found = {name: value / max(count, 1) for name, value in zip(parts, sums, strict=True)}
        if not (math.isfinite(norm) and math.isfinite(found["loss"])):
            raise BackendError(
                f"the loss is {found['loss']:.3g} and its gradient {norm:.3g} at step {step + 1}; lower train.lr or "
                "raise train.warmup, which begins anew; for the same command the last durable step is kept"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return {**found, "gradient_norm": norm, "lr": recipe.lr * share, "predicted": predicted}

    def _count(self, batch: Batch) -> int:
        """What a batch's loss is a sum over: pairs, or predictions."""
        return len(batch.tokens_BL) // 2 if self.recipe.objective.pairs else batch.count

    def _resume(self, optimiser: torch.optim.AdamW) -> tuple[int, int | None, int, int]:
        """Step, number of steps (None until timed), tokens and predictions so far, from the last durable step."""
        steps = self.recipe.steps() if self.recipe.minutes is None else None
        found = checkpoint.latest(self.place)
        if found is None or (state := checkpoint.state_of(found))["stage"] != self.number:
            return 0, steps, 0, 0
        checkpoint.load(found, self.trained, optimiser, self.world)
        settle(optimiser)
        self.source.restore(state["data"])
        return state["step"], state["steps"], state["tokens"], state["predicted"]

    def _limit(self, step: int, durations: list[float]) -> int | None:
        """The number of steps that minutes allow by the time a step takes, once it is known; at most that of tokens."""
        wanted = self.recipe.steps() or UNKNOWN
        if self.recipe.minutes is None or step >= wanted:
            return wanted
        if step < TIMED_STEPS:
            return None
        left = 60 * self.recipe.minutes - sum(durations)
        possible = step + max(0, int(left / statistics.median(durations[2:])))
        return min(wanted, int(self.world.sum(possible if self.world.leads else 0)))

    def _due(self, saved: float) -> bool:
        """Whether it is time to save; the leading process decides for all."""
        mine = time.monotonic() - saved >= self.hooks.save_seconds if self.world.leads else False
        return self.world.sum(float(mine)) > 0

    def _save(self, optimiser: torch.optim.Optimizer, step: int, steps: int, read: dict[str, int]) -> None:
        state = {"stage": self.number, "step": step, "steps": steps, **read, "data": self.source.state()}
        place = self.place / f"{self.number:03d}-{step:09d}"
        if not place.exists():
            checkpoint.save(place, self.trained, optimiser, state, self.world)

    def _tell(self, step: int, steps: int | None, tokens: int, row: dict[str, float], durations: list[float]) -> None:
        """One row of metrics, and a measurement where one is due."""
        hooks = self.hooks
        measured: dict[str, Any] = {}
        if hooks.measure and hooks.measure_every and (step % hooks.measure_every == 0 or step == steps):
            self.trained.student.eval()
            measured = hooks.measure()
            self.trained.student.train()
        if self.world.leads:
            speed = self.recipe.batch * self.recipe.sequence / durations[-1]
            left = None if steps is None else round((steps - step) * statistics.median(durations[-20:]), 1)
            timing = {"tokens_per_second": round(speed, 1), "seconds_left": left}
            hooks.log("step", stage=self.number, step=step, steps=steps, tokens=tokens, **row, **timing, **measured)
            hooks.progress(f"train {self.number + 1}", step, steps or step + 1)


def layers_of(model: Any) -> list[nn.Module]:
    """The decoder layers of a causal language model; none of what is no module."""
    return list(decoder(model).layers) if isinstance(model, nn.Module) else []
