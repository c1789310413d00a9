"""A two-layer model, batches whose rows predict different numbers of tokens, and stages made of both."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from regear.core.run import silent
from regear.train.batch import Batch
from regear.train.loop import Hooks, Stage, Trained
from regear.train.objectives import objective
from regear.train.optim import select
from regear.train.parallel import World
from regear.train.recipes import StageRecipe

LENGTH = 12


def make(seed=0, dtype=torch.float32, **changes):
    """Random weights; what others draw afterwards does not depend on it."""
    shape = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    shape |= dict(num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(shape | changes))).to(dtype).eval()


class Rows:
    """Endless batches fixed by the step; process `rank` takes its share of the rows."""

    def __init__(self, rows=4, world=None, end=None):
        self.rows, self.world, self.step, self.end = rows, world or World(), 0, end

    def __next__(self):
        if self.step == self.end:
            raise KeyboardInterrupt
        noise = torch.Generator().manual_seed(self.step)
        self.step += 1
        tokens = torch.randint(40, (self.rows, LENGTH), generator=noise)
        counts = torch.randint(1, LENGTH, (self.rows, 1), generator=noise)
        positions = torch.arange(LENGTH).expand(self.rows, LENGTH)
        mine = torch.arange(self.rows).chunk(self.world.size)[self.world.rank]
        return Batch(tokens[mine], positions[mine], (positions < counts)[mine])

    def state(self):
        return {"step": self.step}

    def restore(self, state):
        self.step = state["step"]


def recipe_of(steps=3, **values):
    base = {"batch": 4, "sequence": LENGTH, "lr": 1e-2, "warmup": 1, "train": "*", "freeze": []}
    length = {} if steps is None else {"tokens": steps * 4 * LENGTH}
    return StageRecipe.model_validate(base | length | values)


def stage_of(place: Path, recipe, student=None, *, rows=None, world=None, dtype=torch.float32, seed=0, save=0.0):
    """A stage and the list that its metrics go to."""
    world = world or World()
    student = student if student is not None else make(dtype=dtype)
    select(student, recipe.train, recipe.freeze)
    teacher = make(1, dtype).requires_grad_(False)
    trained = Trained(student, teacher, objective(recipe.objective))
    metrics = []
    hooks = Hooks(lambda event, **row: metrics.append(row), silent, save_seconds=save)
    rows = rows or Rows(recipe.batch, world)
    return Stage(recipe, 0, trained, rows, place, world, hooks, seed), metrics


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
