"""Every layer's bottleneck directions, one layer in memory at a time: spectra are kept, bases lie on disk."""

from collections.abc import Sequence
from pathlib import Path

import torch

from regear.conversion.calibrate import Statistics
from regear.conversion.factors import LayerView, bases
from regear.conversion.latent import Factored, assemble
from regear.conversion.stream import Edit, Source
from regear.core.files import digest
from regear.core.run import Progress
from regear.models.store import write_shard
from regear.models.tensorfile import TensorFile
from regear.ops.lowrank import Basis


class Directions:
    """The bases of one factorisation of every layer.

    Args:
        place: the calibration's folder; a basis is durable there under all that decides it beside the calibration.
            None keeps nothing, for a factorisation that is only tried.
    """

    def __init__(
        self,
        source: Source,
        statistics: Statistics,
        factor: str,
        branches: str,
        value_weight: float,
        place: Path | None,
    ) -> None:
        self.source, self.statistics, self.place = source, statistics, place
        self.factor, self.branches, self.value_weight = factor, branches, value_weight
        self.key = digest({"factor": factor, "branches": branches, "value_weight": value_weight})[:16]

    def view(self, index: int) -> LayerView:
        """What a factorisation sees of one layer."""
        prefix, spec = f"model.layers.{index}.self_attn.", self.source.spec
        read = self.source.tensor
        weight = torch.cat([read(f"{prefix}{x}_proj.weight") for x in "kv"]).double().cpu()
        norm = read(f"{prefix}k_norm.weight").cpu() if spec.qk_norm else None
        output = read(f"{prefix}o_proj.weight").cpu()
        return LayerView(spec, self.statistics[index], weight, output, norm, self.value_weight)

    def bases(self, index: int) -> tuple[Basis, ...]:
        """One basis for [k; v], or one each for keys and values."""
        if self.place is None:
            return bases(self.view(index), self.factor, self.branches)
        path = self.place / f"basis-{self.key}-{index:04d}.safetensors"
        if not path.exists():
            found = bases(self.view(index), self.factor, self.branches)
            parts = ("values", "encode", "decode")
            write_shard(path, {f"{i}.{part}": getattr(b, part) for i, b in enumerate(found) for part in parts})
        stored = TensorFile(path).all()
        count = len(stored) // 3
        return tuple(Basis(stored[f"{i}.values"], stored[f"{i}.encode"], stored[f"{i}.decode"]) for i in range(count))

    def spectra(self, progress: Progress) -> list[list[list[float]]]:
        """Eigenvalues, [branch][layer][direction], descending; makes every basis durable."""
        layers, rows = self.source.spec.layers, []
        for index in range(layers):
            rows.append([basis.values.tolist() for basis in self.bases(index)])
            progress("factor", index + 1, layers)
        return [list(column) for column in zip(*rows, strict=True)]

    def factored(self, index: int, ranks: Sequence[int]) -> Factored:
        """The layer cut to a rank a branch."""
        prefix = f"model.layers.{index}.self_attn."
        weight = torch.cat([self.source.tensor(f"{prefix}{x}_proj.weight") for x in "kv"]).double().cpu()
        return assemble(self.bases(index), weight, ranks)

    def biases(self, index: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Of the key and value projections; None where the model has none."""
        if not self.source.spec.kv_bias:
            return None, None
        prefix = f"model.layers.{index}.self_attn."
        return self.source.tensor(f"{prefix}k_proj.bias"), self.source.tensor(f"{prefix}v_proj.bias")

    def edit(self, index: int, ranks: Sequence[int]) -> Edit:
        """The cut layer as dense weights for the source's layer; what it computes is the same."""
        return self.factored(index, ranks).edit(*self.biases(index))

    def energy_lost(self, index: int, ranks: Sequence[int]) -> float:
        """Share of the layer's output energy E‖y‖² that the cut loses, on calibration text."""
        gram = self.statistics[index]["kv_gram"]
        kept = torch.block_diag(*(basis.projector(r) for basis, r in zip(self.bases(index), ranks, strict=True)))
        rest = torch.eye(len(gram), dtype=torch.float64) - kept
        return float((rest @ gram @ rest.T).trace() / gram.trace())
