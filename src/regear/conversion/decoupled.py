"""A layer with decoupled RoPE: some components of its keys go on turning, the rest join the values in one latent.

Source: TransMLA (arXiv 2502.07864: RoRoPE, FreqFold, balanced joint factors), and CARE §3.4 after it. With
`factor=fisher` what turns and what the latent keeps are both chosen by the loss's curvature (`rope_curvature`), an
unturned component is read through the constant nearest to its rotation, and components of one frequency may be chosen
twice, of another not at all.

Shape letters: H query heads, G key/value heads, d head width, P pairs of a head, C = G P components, m turning ones,
n the rest, K keys' and V values' floats, Y = 2 n + V, r rank, D hidden width.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regear.conversion.calibrate import Statistics
from regear.conversion.export import Replacement, exact_config
from regear.conversion.factors import DAMP, FISHER_DAMP, reachable
from regear.conversion.stream import Source
from regear.core.files import digest
from regear.core.run import Progress
from regear.models.families import SourceSpec
from regear.models.mla.modeling_regear_mla import RegearMlaConfig, RegearMlaDecoupledAttention
from regear.models.store import write_shard
from regear.models.tensorfile import TensorFile
from regear.ops.lowrank import Basis, best_basis
from regear.ops.rope import Components, components, folded_grid, greedy_grid, greedy_pairs, real_rows


@dataclass(frozen=True)
class Turning:
    """How a layer's turning components are chosen: factorisation, floats that turn, frequencies folded into one
    (factors other than `fisher`), evenly spaced frequencies only, and queries whose norm is folded away."""

    factor: str
    dim: int
    fold: int = 1
    grid: bool = False
    linear_queries: bool = False


@dataclass(frozen=True)
class Split:
    """A layer's components and their part. Shapes: chosen, pair [m]; rest [n]; rho [H, C]."""

    basis: Components
    chosen: torch.Tensor
    pair: torch.Tensor
    rho: torch.Tensor

    @cached_property
    def rest(self) -> torch.Tensor:
        """Components that do not turn, [n]."""
        mask = torch.ones(len(self.basis.pair), dtype=torch.bool)
        mask[self.chosen] = False
        return mask.nonzero().squeeze(1)


class DecoupledDirections:
    """Every layer's split and bottleneck directions, one layer in memory at a time.

    Args:
        place: the calibration's folder, where bases are durable.
    """

    def __init__(self, source: Source, statistics: Statistics, turning: Turning, place: Path) -> None:
        self.source, self.statistics, self.turning, self.place = source, statistics, turning, place
        self.spec = source.spec
        self.key = digest({**turning.__dict__, "linear_queries": False})[:16]

    def split(self, index: int, found: dict[str, torch.Tensor]) -> Split:
        """Which components turn, by the layer's statistics."""
        turning, spec = self.turning, self.spec
        count, step = turning.dim // 2, spec.head_dim // turning.dim
        if turning.factor == "fisher":
            encode, decode, rho = (torch.view_as_complex(found[f"rope_{x}"]) for x in ("encode", "decode", "rho"))
            basis = Components(encode, decode, found["rope_pair"])
            residual = found["rope_residual"]
            chosen = greedy_grid(residual, basis.pair, step) if turning.grid else greedy_pairs(residual, count)
            return Split(basis, chosen, basis.pair[chosen], rho)
        width = spec.branch_width
        gram = found["kv_gram"][:width, :width]
        basis = components(gram, None, spec.kv_heads, fold=turning.fold, real=True)
        chosen, pair = folded_grid(spec.head_dim // 2, spec.kv_heads, step, turning.fold)
        return Split(basis, chosen, pair, torch.ones(spec.heads, len(basis.pair), dtype=torch.complex128))

    def weight(self, index: int, found: dict[str, torch.Tensor]) -> torch.Tensor:
        """The linear map of the layer's inputs to keys and values, [K + V, D], float64."""
        read, prefix = self.source.tensor, f"model.layers.{index}.self_attn."
        keys = found["key_map"] if self.spec.qk_norm else read(f"{prefix}k_proj.weight").double().cpu()
        return torch.cat([keys, read(f"{prefix}v_proj.weight").double().cpu()])

    def latent_rows(self, split: Split) -> torch.Tensor:
        """What the latent is to hold, as a map of keys and values: [Re z, Im z, v] of the rest, [Y, K + V]."""
        values = torch.eye(self.spec.branch_width, dtype=torch.float64)
        return torch.block_diag(real_rows(split.basis.encode[split.rest], self.spec.kv_heads), values)

    def basis(self, index: int) -> Basis:
        """The bottleneck directions of what does not turn; durable."""
        path = self.place / f"decoupled-{self.key}-{index:04d}.safetensors"
        if not path.exists():
            found = self.statistics[index]
            split = self.split(index, found)
            rows = self.latent_rows(split)
            gram, metric, damp = self._problem(split, rows, found)
            made = best_basis(reachable(gram, rows @ self.weight(index, found)), metric, damp)
            write_shard(path, {"values": made.values, "encode": made.encode, "decode": made.decode})
        stored = TensorFile(path).all()
        return Basis(stored["values"], stored["encode"], stored["decode"])

    def _problem(
        self, split: Split, rows: torch.Tensor, found: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None, float]:
        count = len(split.basis.pair)
        if self.turning.factor == "fisher":
            values = torch.arange(2 * count, 2 * count + self.spec.branch_width)
            kept = torch.cat([split.rest, count + split.rest, values])
            return found["rope_gram"][kept][:, kept], found["rope_metric"][kept][:, kept], FISHER_DAMP
        gram = rows @ found["kv_gram"] @ rows.T
        if self.turning.factor == "svd":
            return rows @ rows.T, None, 0.0
        if self.turning.factor == "care":
            return gram, None, 0.0
        keys, values = gram.diagonal().split([2 * len(split.rest), self.spec.branch_width])
        scales = [part.mean().clamp_min(1e-300).expand(len(part)) for part in (keys, values) if len(part)]
        return gram, torch.diag(1 / torch.cat(scales)), DAMP

    def spectra(self, progress: Progress) -> list[list[list[float]]]:
        """Eigenvalues, [1][layer][direction], descending; makes every basis durable."""
        rows = []
        for index in range(self.spec.layers):
            rows.append(self.basis(index).values.tolist())
            progress("factor", index + 1, self.spec.layers)
        return [rows]

    def pairs(self, index: int) -> list[int]:
        """The frequencies that the layer's shared key turns with."""
        return [int(p) for p in self.split(index, self.statistics[index]).pair]

    def tensors(self, index: int, rank: int) -> dict[str, torch.Tensor]:
        """The layer's attention in the `regear_mla` form, without the layer's prefix, float64."""
        found, spec = self.statistics[index], self.spec
        split, basis, weight = self.split(index, found), self.basis(index), self.weight(index, found)
        encode, decode = basis.encode[:rank], basis.decode[:, :rank]
        turning_rows = real_rows(split.basis.encode[split.chosen], spec.kv_heads)
        width = spec.branch_width
        down = torch.cat([encode @ (self.latent_rows(split) @ weight), turning_rows @ weight[:width]])
        tensors = {
            "kv_a_proj_with_mqa.weight": down,
            "kv_a_layernorm.weight": torch.full((rank,), RegearMlaConfig.latent_norm_eps**0.5),
            "kv_b_proj.weight": self._up(split, decode),
            **self._queries(index, split, found),
            **self._output(index),
        }
        if spec.kv_bias:
            bias = turning_rows @ self._read(index, "k_proj.bias")
            tensors["kv_a_proj_with_mqa.bias"] = torch.cat([torch.zeros(rank, dtype=bias.dtype), bias])
        return {f"self_attn.{name}": tensor for name, tensor in tensors.items()}

    def _read(self, index: int, name: str) -> torch.Tensor:
        return self.source.tensor(f"model.layers.{index}.self_attn.{name}").double().cpu()

    def _up(self, split: Split, decode: torch.Tensor) -> torch.Tensor:
        """Up-projections of every head, keys then values, [H * 2 d, r]."""
        spec, n, group = self.spec, len(split.rest), self.spec.heads // self.spec.kv_heads
        latent = torch.complex(decode[:n], decode[n : 2 * n])
        mixed = split.basis.decode[:, split.rest].unflatten(0, (spec.kv_heads, -1)).repeat_interleave(group, 0)
        keys = (mixed * split.rho[:, None, split.rest]) @ latent  # [H, P, r]
        values = decode[2 * n :].unflatten(0, (spec.kv_heads, -1)).repeat_interleave(group, 0)
        return torch.cat([keys.real, keys.imag, values], 1).flatten(0, 1)

    def _queries(self, index: int, split: Split, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each head's query as it is, and what of it reads the turning components."""
        spec, group = self.spec, self.spec.heads // self.spec.kv_heads
        reads = split.basis.decode[:, split.chosen].conj().unflatten(0, (spec.kv_heads, -1))
        rows = torch.stack([real_rows(read.T.resolve_conj(), 1) for read in reads]).repeat_interleave(group, 0)
        up = torch.cat([torch.eye(spec.head_dim, dtype=rows.dtype).expand(spec.heads, -1, -1), rows], 1)
        weight = self._read(index, "q_proj.weight")
        by_head = weight.unflatten(0, (spec.heads, -1))
        if spec.qk_norm and not self.turning.linear_queries:
            return {"q_proj.weight": weight, "q_norm_weight": self._read(index, "q_norm.weight"), "q_up": up}
        if spec.qk_norm:
            by_head = by_head * found["query_gain"][:, :, None]
        tensors = {"q_proj.weight": (up @ by_head).flatten(0, 1)}
        if spec.kv_bias:
            bias = self._read(index, "q_proj.bias").unflatten(0, (spec.heads, -1, 1))
            tensors["q_proj.bias"] = (up @ bias).flatten()
        return tensors

    def _output(self, index: int) -> dict[str, torch.Tensor]:
        """The output projection; a bias of the values passes through attention unchanged and joins its bias."""
        spec, weight = self.spec, self._read(index, "o_proj.weight")
        if not (spec.kv_bias or spec.o_bias):
            return {"o_proj.weight": weight}
        bias = self._read(index, "o_proj.bias") if spec.o_bias else torch.zeros(spec.hidden, dtype=weight.dtype)
        if spec.kv_bias:
            values = self._read(index, "v_proj.bias").unflatten(0, (spec.kv_heads, -1))
            bias = bias + weight @ values.repeat_interleave(spec.heads // spec.kv_heads, 0).flatten()
        return {"o_proj.weight": weight, "o_proj.bias": bias}

    def config(self, ranks: list[int], dtype: str) -> Any:
        """The output's config."""
        spec, qk_norm = self.spec, self.spec.qk_norm and not self.turning.linear_queries
        return exact_config(
            self.source.store,
            spec,
            [[rank] * 3 for rank in ranks],
            dtype,
            num_key_value_heads=spec.heads,
            qk_norm=qk_norm,
            o_bias=spec.o_bias or spec.kv_bias,
            rope_mode="decoupled",
            rope_dim=self.turning.dim,
            rope_pairs=[self.pairs(index) for index in range(spec.layers)],
            nope_dim=spec.head_dim,
            value_dim=spec.head_dim,
        )

    def change(self, index: int, ranks: list[int], config: Any) -> nn.Module:
        """The layer's attention as a module to run in the place of its own."""
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            module = RegearMlaDecoupledAttention(config, index)
        tensors = self.tensors(index, ranks[index])
        state = {
            name.removeprefix("self_attn."): t.to(self.source.device, torch.float32) for name, t in tensors.items()
        }
        module.load_state_dict(state, strict=True, assign=True)
        return module.eval().requires_grad_(False)

    def replacement(self, ranks: list[int]) -> Replacement:
        """What the output holds in the place of the source's attention."""
        spec = self.spec
        drops = tuple(name for name in spec.layer_tensors() if name.startswith("self_attn."))
        return Replacement(
            drops,
            lambda index: decoupled_shapes(spec, self.turning, ranks[index]),
            lambda index: self.tensors(index, ranks[index]),
            lambda dtype: self.config(ranks, dtype),
        )


def decoupled_shapes(spec: SourceSpec, turning: Turning, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's attention at a rank, as `DecoupledDirections.tensors` makes them."""
    heads, width, both = spec.heads, spec.head_dim, spec.head_dim + turning.dim
    normed = spec.qk_norm and not turning.linear_queries
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (heads * (width if normed else both), spec.hidden),
        "kv_a_proj_with_mqa.weight": (rank + turning.dim, spec.hidden),
        "kv_a_layernorm.weight": (rank,),
        "kv_b_proj.weight": (heads * 2 * width, rank),
        "o_proj.weight": (spec.hidden, heads * width),
    }
    if normed:
        shapes |= {"q_norm_weight": (width,), "q_up": (heads, both, width)}
    if spec.kv_bias:
        shapes |= {"q_proj.bias": (heads * both,), "kv_a_proj_with_mqa.bias": (rank + turning.dim,)}
    if spec.kv_bias or spec.o_bias:
        shapes["o_proj.bias"] = (spec.hidden,)
    return {f"self_attn.{name}": shape for name, shape in shapes.items()}
