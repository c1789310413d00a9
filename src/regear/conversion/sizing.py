"""What a conversion takes, from headers alone: resident memory by stage, scratch and cached files.

The stages follow the code; the allowances for activations and for what torch and its libraries take are measured
(`benchmarks/any_size.py` compares the estimate with the peak).
"""

import math
from dataclasses import dataclass

from regear.conversion.calibrate import GRADIENT_STRIDE
from regear.conversion.head import BLOCK, CHUNK_BYTES, CHUNK_ENTRIES
from regear.conversion.layers import BATCH_TOKENS
from regear.models.families import SourceSpec
from regear.models.store import Store

# Python with torch, transformers and a tokenizer; and what the allocator keeps beyond what is in use.
BASE_BYTES = 512 << 20
SLACK = 1.1


@dataclass(frozen=True)
class Sizing:
    """Bytes: `memory` resident at the peak, `scratch` on disk while it runs, `cache` on disk for later ratios."""

    memory: int
    scratch: int
    cache: int


def sizing(
    store: Store, spec: SourceSpec, calibration: int, evaluation: int, *, gradients: bool, attended: bool = False
) -> Sizing:
    """The sizes of a conversion of attention's keys and values.

    Args:
        calibration: tokens to calibrate on.
        evaluation: tokens to compare on.
        gradients: whether there is a pass down the layers.
        attended: whether that pass keeps a layer's queries, keys, values and their gradients.
    """
    width, hidden, queries = spec.kv_width, spec.hidden, spec.heads * spec.head_dim
    layer = max(_layer_bytes(spec, index) for index in range(spec.layers))
    tensor = max(store.bytes_of([name]) for name in store.shapes if name.startswith("model.layers."))
    inner = spec.experts.per_token * spec.experts.intermediate if spec.experts else spec.intermediate
    square, states = 8 * width**2, 4 * calibration * hidden
    batch = 4 * BATCH_TOKENS * (3 * inner + 4 * hidden + 2 * queries)
    traced = 4 * BATCH_TOKENS * 6 * (inner + hidden + queries)
    head = 2 * CHUNK_BYTES + 4 * 8 * BLOCK * CHUNK_ENTRIES
    rows = 2 * 4 * width * calibration // GRADIENT_STRIDE
    rows += (
        attended * 4 * (2 * queries + 2 * width + (hidden + queries) * spec.qk_norm) * calibration // GRADIENT_STRIDE
    )
    up = layer + tensor + states + batch + 3 * square + 3 * 8 * BATCH_TOKENS * width
    down = layer + tensor + 2 * states // GRADIENT_STRIDE + rows + max(traced, rows + 6 * square)
    factor = 10 * square + 4 * 8 * width * hidden + 4 * hidden * queries
    compared = 3 * 4 * evaluation * hidden
    stages = [up, factor, layer + tensor + batch + compared, compared + head]
    stages += [down, 4 * states // GRADIENT_STRIDE + head] if gradients else []
    kept = 2 + (spec.layers + 4) // GRADIENT_STRIDE if gradients else 2
    return Sizing(
        int(SLACK * (BASE_BYTES + max(stages))), kept * states, spec.layers * square * (5 if gradients else 3)
    )


def _layer_bytes(spec: SourceSpec, index: int) -> int:
    return 4 * sum(map(math.prod, spec.layer_tensors(index).values()))
