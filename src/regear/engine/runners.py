"""Which runner a model gets: the fastest that finds the model's own scores on a probe."""

from typing import Any

import numpy as np
import torch

from regear.core.errors import IncompatibleModel
from regear.engine.own_runner import OwnCacheRunner, tolerance
from regear.engine.runner import AttentionRunner, Runner
from regear.ops.int8 import exact
from regear.ops.linear import adopt, pack

PASSES = (((7, 4), (7, 4)), ((3, 4), (2, 1)), ((1, 1), (1, 1)), ((1, 1), (1, 1)))  # what two rows read, and keep of it


def runner_for(model: Any, *, packed: bool = True) -> Runner:
    """Rows of one cache where every layer attends to everything; otherwise a cache a text.

    Raises:
        IncompatibleModel: the model does not go on from a cache as it reads a whole text.
    """
    with exact(model):
        return _proven(model, packed)


def _proven(model: Any, packed: bool) -> Runner:
    try:
        runner = AttentionRunner(model, packed=packed)
        if error(runner, model) <= tolerance(model):
            return runner
    except IncompatibleModel:
        pass
    if packed:
        adopt(model)
        pack(model)
    own = OwnCacheRunner(model)
    found = error(own, model)
    if not found <= tolerance(model) ** 0.5:
        name = type(model).__name__
        raise IncompatibleModel(f"{name} does not go on from a cache as it reads a whole text: off by {found:.2g}")
    return own


@torch.no_grad()
def error(runner: Runner, model: Any) -> float:
    """How far the runner's scores are from the model's own, over their size: two texts in turns, in parts, cut back.

    The median over places: where scores decide between experts, rounding alone can decide otherwise.
    """
    size = len(model.get_input_embeddings().weight)
    texts = np.stack([(np.arange(12) * step + 1) % size for step in (1, 3)])
    whole = model(input_ids=torch.from_numpy(texts).to(model.device), use_cache=False).logits
    runner.reserve(2, 64, 0)
    starts, errors = np.zeros(2, np.int64), []
    for counts, kept in np.array(PASSES):
        places = np.arange(counts.max())
        stand = places < kept[:, None]
        rows, at = np.nonzero(stand)
        tokens = np.zeros(stand.shape, np.int64)
        tokens[stand] = texts[rows, starts[rows] + at]
        scores = runner.read(0, tokens, counts, starts, stand)
        runner.keep(0, kept)
        errors.append((scores - whole[rows, starts[rows] + at]).abs().amax(-1))
        starts = starts + kept
    begun, later = errors[0], torch.cat(errors[1:])
    scale = whole.abs().max().clamp(min=torch.finfo(whole.dtype).tiny)  # all scores may be 0
    return float(torch.maximum(begun.median(), later.median()) / scale)
