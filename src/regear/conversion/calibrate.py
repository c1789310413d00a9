"""Calibration: one pass up the layers, and where a collector wants gradients one pass down, each layer durable.

Statistics live in the cache under one digest of all that decides them (model, windows, versions, threads,
device, seed), a file a layer, so that a killed pass goes on where it was and every later ratio reuses them.
Going down, each layer is run again from its stored input, so memory stays at one layer.
"""

import fcntl
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from regear.conversion.collect import COLLECTORS, Attended, Collector, Seen
from regear.conversion.head import drawn_gradient
from regear.conversion.stream import Batch, Source
from regear.core.errors import RegearError
from regear.core.run import Progress
from regear.models.families import SourceSpec
from regear.models.store import write_shard
from regear.models.tensorfile import TensorFile, layout_of, whole, write_tensors

# Curvature is settled by half of the tokens that the moments need.
GRADIENT_STRIDE = 2


class Statistics(Sequence[dict[str, torch.Tensor]]):
    """What calibration found, by layer and name; a layer is read from the cache when it is asked for."""

    def __init__(self, place: Path, layers: int, parts: Sequence[str]) -> None:
        self.place, self.layers, self.parts = place, layers, parts

    def __len__(self) -> int:
        return self.layers

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.layers:
            raise IndexError(index)
        found: dict[str, torch.Tensor] = {}
        for part in self.parts:
            found |= TensorFile(_file(self.place, part, index)).all()
        return found


def calibrate(
    source: Source,
    data: Sequence[Batch],
    collectors: Sequence[str],
    place: Path,
    *,
    seed: int,
    progress: Progress,
) -> Statistics:
    """Every layer's statistics, from the cache at `place` or gathered into it.

    Args:
        data: windows; the pass down takes every `GRADIENT_STRIDE`-th batch.
        collectors: names of rows of `COLLECTORS`.
        seed: of the targets drawn from the model for the Fisher information.
        progress: told the pass, the layer done, and how many there are.
    """
    upward, downward = Pass([]), Pass([])
    for name in sorted(collectors):
        kind = COLLECTORS[name].load()
        (downward if kind.gradient else upward).rows.append((name, kind))
    work = place / "work"
    work.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process on the same text waits, then finds the statistics
        try:
            _gather(source, data, upward, downward, place, work, seed, progress)
        except RegearError:
            shutil.rmtree(work, ignore_errors=True)  # a mistake would be found again: nothing to go on from
            raise
        shutil.rmtree(work, ignore_errors=True)
    return Statistics(place, source.spec.layers, upward.names + downward.names)


@dataclass(frozen=True)
class Pass:
    """The collectors of one pass; what each finds in a layer is a file of its own."""

    rows: list[tuple[str, type[Collector]]]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.rows]

    def start(self, spec: SourceSpec) -> dict[str, Collector]:
        """Fresh collectors for one layer."""
        return {name: kind(spec) for name, kind in self.rows}

    def has(self, place: Path, index: int) -> bool:
        """Whether a layer is done."""
        return all(_file(place, name, index).exists() for name in self.names)

    def missing(self, place: Path, layers: int) -> "Pass":
        """The collectors that some layer lacks."""
        return Pass([row for row in self.rows if not all(_file(place, row[0], i).exists() for i in range(layers))])


def _save_layer(place: Path, index: int, collectors: dict[str, Collector]) -> None:
    for name, collector in collectors.items():
        write_shard(_file(place, name, index), collector.state())


def _gather(
    source: Source,
    data: Sequence[Batch],
    upward: Pass,
    downward: Pass,
    place: Path,
    work: Path,
    seed: int,
    progress: Progress,
) -> None:
    """Whatever the cache still lacks."""
    layers = source.spec.layers
    work.mkdir(parents=True, exist_ok=True)
    upward, downward = upward.missing(place, layers), downward.missing(place, layers)
    lacks_inputs = bool(downward.rows) and not _file(work, "input", layers).exists()
    if lacks_inputs or upward.rows:
        _climb(source, data, upward, bool(downward.rows), place, work, progress)
    if downward.rows:
        _descend(source, data[::GRADIENT_STRIDE], downward, place, work, seed, progress)


def _file(place: Path, what: str, index: int) -> Path:
    return place / f"{what}-{index:04d}.safetensors"


def _save(path: Path, states: Sequence[torch.Tensor]) -> None:
    """Scratch that a killed process may need again; it need not survive the machine, so it is not synced."""
    tensors = {str(i): state for i, state in enumerate(states)}
    write_tensors(path, layout_of(tensors), whole(tensors), durable=False)


def _restore(path: Path, source: Source) -> list[torch.Tensor]:
    found = TensorFile(path).all()
    return [found[str(i)].to(source.device) for i in range(len(found))]


class Tap:
    """Catches what the attention projections of one layer put out, and what goes into RoPE and into the output."""

    def __init__(self, layer: Any) -> None:
        self.attention = layer.self_attn
        self.outputs: dict[str, torch.Tensor] = {}
        self.inputs: dict[str, torch.Tensor] = {}
        for name in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "o_proj"):
            module = getattr(self.attention, name, None)
            if module is not None:
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def catch(module: Any, arguments: Any, output: torch.Tensor) -> None:
            self.inputs[name], self.outputs[name] = arguments[0], output

        return catch

    def seen(self, batch: Batch, gradients: Sequence[torch.Tensor] | None = None) -> Seen:
        """The last run's projections at real tokens, without the biases of keys and values."""
        real = batch.real
        flat = {name: self._rows(self.outputs[f"{name}_proj"], real) for name in "qkv"}
        for name in "kv":
            bias = getattr(self.attention, f"{name}_proj").bias
            flat[name] = flat[name] if bias is None else flat[name] - bias.detach().cpu()
        found = None if gradients is None else torch.cat([self._rows(g, real) for g in gradients], -1)
        return Seen(flat["q"], torch.cat([flat["k"], flat["v"]], -1), batch.weight[real], found)

    def windows(self, batch: Batch, seen: Seen, gradient: torch.Tensor, rotary: torch.Tensor) -> list[Attended]:
        """The last run's attention, window by window.

        Args:
            seen: of the same run.
            gradient: in the mixed values, [B, T, H * d].
            rotary: e^{iωt}, [T, d / 2].
        """
        normed = hasattr(self.attention, "q_norm")
        names = ("q_norm", "k_norm", "v_proj") if normed else ("q_proj", "k_proj", "v_proj")
        query, key, value = (self._rows(self.outputs[name].flatten(2), batch.real) for name in names)
        mixed, inputs = (self._rows(x, batch.real) for x in (gradient, self.inputs["k_proj"]))
        lengths = batch.real.sum(-1).tolist()
        flat = (query, key, value, mixed, seen.outputs, seen.weight, inputs, seen.queries)
        width = self.attention.head_dim
        found = []
        for q, k, v, g, out, weight, x, raw in zip(*(part.split(lengths) for part in flat), strict=True):
            heads = [part.unflatten(-1, (-1, width)).transpose(0, 1) for part in (q, k, v, g, raw)]
            keys, values = out.chunk(2, -1)
            before = (x, heads[4]) if normed else None
            scale = float(self.attention.scaling)
            found.append(
                Attended(heads[0], heads[1], heads[2], heads[3], rotary[: len(q)], scale, keys, values, weight, before)
            )
        return found

    @staticmethod
    def _rows(table: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return table.detach()[real.to(table.device)].cpu()


@torch.no_grad()
def _climb(
    source: Source,
    data: Sequence[Batch],
    kinds: Pass,
    keep_inputs: bool,
    place: Path,
    work: Path,
    progress: Progress,
) -> None:
    """Up the layers. The newest hidden states are kept, so that a killed pass can go on; with `keep_inputs`, so are
    every layer's inputs that the pass down will need."""
    layers = source.spec.layers
    start, hidden = _resume(source, layers, kinds, place, work, keep_inputs)
    if start == 0:
        hidden = [source.embed(batch.ids) for batch in data]
    for index in range(start, layers):
        if keep_inputs:
            _save(_file(work, "input", index), hidden[::GRADIENT_STRIDE])
        _save_layer(place, index, _layer_up(source, index, data, kinds, hidden))
        _save(_file(work, "after", index), hidden)
        _file(work, "after", index - 1).unlink(missing_ok=True)
        progress("calibrate", index + 1, layers)
    if keep_inputs:
        _save(_file(work, "input", layers), hidden[::GRADIENT_STRIDE])
    _file(work, "after", layers - 1).unlink(missing_ok=True)


def _layer_up(
    source: Source, index: int, data: Sequence[Batch], kinds: Pass, hidden: list[torch.Tensor]
) -> dict[str, Collector]:
    """Run one layer, which moves `hidden` on; its statistics. The layer's weights are gone when this returns."""
    layer = source.layer(index)
    tap = Tap(layer)
    collectors = kinds.start(source.spec)
    for number, batch in enumerate(data):
        hidden[number] = source.run(layer, hidden[number])
        seen = tap.seen(batch)
        for collector in collectors.values():
            collector.add(seen)
    return collectors


def _resume(
    source: Source, layers: int, kinds: Pass, place: Path, work: Path, keep_inputs: bool
) -> tuple[int, list[torch.Tensor]]:
    """The first layer still to do, and its input; (0, []) when there is nothing to go on from.

    A pass goes on only from one that kept inputs, if it does, and that had its collectors in every layer below.
    """
    for index in reversed(range(layers)):
        path, below = _file(work, "after", index), range(index + 1)
        kept = not keep_inputs or all(_file(work, "input", i).exists() for i in below)
        if path.exists() and kept and all(kinds.has(place, i) for i in below):
            return index + 1, _restore(path, source)
    return 0, []


def _descend(
    source: Source,
    data: Sequence[Batch],
    kinds: Pass,
    place: Path,
    work: Path,
    seed: int,
    progress: Progress,
) -> None:
    """Down the layers, from the gradient of the loss with targets drawn from the model itself."""
    layers = source.spec.layers
    done = [i for i in range(layers) if kinds.has(place, i) and _file(work, "gradient", i).exists()]
    if done:
        top, flow = min(done), _restore(_file(work, "gradient", min(done)), source)
    else:
        top, flow = layers, _head_gradient(source, data, _restore(_file(work, "input", layers), source), seed)
    for index in reversed(range(top)):
        inputs = _restore(_file(work, "input", index), source)
        found = _layer_down(source, index, data, kinds, inputs, flow)
        if index:
            _save(_file(work, "gradient", index), flow)
        _save_layer(place, index, found)
        _file(work, "gradient", index + 1).unlink(missing_ok=True)
        progress("curvature", layers - index, layers)


def _layer_down(
    source: Source,
    index: int,
    data: Sequence[Batch],
    kinds: Pass,
    inputs: list[torch.Tensor],
    flow: list[torch.Tensor],
) -> dict[str, Collector]:
    """Run one layer again from its inputs and move `flow`, the gradient in its output, down to its input."""
    layer = source.layer(index)
    tap = Tap(layer)
    collectors = kinds.start(source.spec)
    for number, batch in enumerate(data):
        with torch.enable_grad():
            entry = inputs[number].requires_grad_()
            output = source.run(layer, entry)
        places = [entry, tap.outputs["k_proj"], tap.outputs["v_proj"], tap.inputs["o_proj"]]
        flow[number], *gradients, mixed = torch.autograd.grad(output, places, flow[number])
        seen = tap.seen(batch, gradients)
        if any(collector.attended for collector in collectors.values()):
            seen = replace(seen, windows=tap.windows(batch, seen, mixed, source.phases(batch.ids.shape[1])))
        for collector in collectors.values():
            collector.add(seen)
    return collectors


def _head_gradient(
    source: Source, data: Sequence[Batch], hidden: Sequence[torch.Tensor], seed: int
) -> list[torch.Tensor]:
    """Gradient in the last layer's output of the loss whose targets the model draws itself, batch by batch."""
    head = source.head()
    real = [batch.real.to(source.device) for batch in data]
    with torch.no_grad():
        normed = torch.cat([head.norm(state[mask]) for state, mask in zip(hidden, real, strict=True)])
    uniform = torch.rand(len(normed), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = drawn_gradient(head, normed, uniform).split([int(mask.sum()) for mask in real])
    flow = []
    for state, mask, gradient in zip(hidden, real, drawn, strict=True):
        with torch.enable_grad():
            entry = state[mask].requires_grad_()
            output = head.norm(entry)
        flow.append(torch.zeros_like(state))
        flow[-1][mask] = torch.autograd.grad(output, entry, gradient)[0]
    return flow
