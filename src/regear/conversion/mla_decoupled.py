"""GQA → MLA with decoupled RoPE: how many floats turn, which, and the rest in one latent that heads absorb.

See `decoupled` for a layer. Widths (and for components by energy the fold) are chosen by KL on selection text; the
budget counts latents and turning floats alike.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from regear.conversion.base import Plan, Texts
from regear.conversion.decoupled import DecoupledDirections, Turning, decoupled_shapes
from regear.conversion.export import Replaced
from regear.conversion.formats.facts import server_facts
from regear.conversion.latent import allocate
from regear.conversion.mla import MlaConversion
from regear.conversion.recipes import MlaConvertRecipe, MlaRecipe
from regear.conversion.stream import Source, Variant, batches, losses
from regear.core.errors import IncompatibleModel, RecipeError
from regear.core.files import digest, read_json, write_json
from regear.core.recipe import validate
from regear.core.report import Plot, Section, Series
from regear.core.run import Progress
from regear.models.families import SourceSpec
from regear.models.formats.write import in_format, output_dtype, write
from regear.models.store import Store
from regear.models.strict import APPROXIMATED, decoupled_obstacles, strict_obstacles
from regear.models.tensorfile import DTYPES

# Turning floats to try, as shares of a head, for components chosen freely and for evenly spaced ones.
FREE_SHARES = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 3 / 2, 2)
GRID_SHARES = (1 / 4, 1 / 2, 1)
FOLDS = (1, 2, 4)
SELECTION_WINDOWS = 4


class DecoupledConversion(MlaConversion):
    """See the module's docstring."""

    def plan(self) -> Plan:
        plan, spec = super().plan(), self.spec
        turning = self.candidates()[-1]
        rank = min(self._mean - turning.dim, self._high(turning))
        new = sum(math.prod(shape) for shape in decoupled_shapes(spec, turning, rank).values())
        old = sum(math.prod(shape) for name, shape in spec.layer_tensors().items() if name.startswith("self_attn."))
        after = plan.parameters_before + spec.layers * (new - old)
        if self.format != "regear_mla" and spec.tied:
            after += spec.vocabulary * spec.hidden
        item = plan.output_bytes // plan.parameters_after
        return Plan(
            **{
                **asdict(plan),
                "kv_floats_after": min(self.budget, spec.layers * (turning.dim + self._high(turning))),
                "parameters_after": after,
                "output_bytes": after * item,
                "facts": {**plan.facts, "rope_dims": sorted({t.dim for t in self.candidates()})},
            }
        )

    @property
    def _mean(self) -> int:
        """Floats a layer, of the budget."""
        return self.budget // self.spec.layers

    def _high(self, turning: Turning) -> int:
        """Ranks beyond this are of no use."""
        return min(self.spec.kv_width - turning.dim, self.spec.hidden)

    def refuse(self) -> None:
        spec, recipe = self.spec, self.recipe.convert
        found = decoupled_obstacles(spec)
        if recipe.format != "regear_mla":
            found = [words for words in strict_obstacles(spec) if words != APPROXIMATED]
        if found:
            other = "rope=exact" if decoupled_obstacles(spec) else "format=regear_mla"
            raise IncompatibleModel(f"{recipe.format} has no place for {', '.join(found)}; use convert.{other}")
        if spec.qk_norm and recipe.factor != "fisher":
            raise IncompatibleModel(
                f"keys with a norm are not linear in their inputs, which factor={recipe.factor} takes them to be; "
                "use factor=fisher, or rope=exact"
            )

    def candidates(self) -> list[Turning]:
        """The widths (and folds) to choose from.

        Raises:
            RecipeError: none fits the budget.
        """
        recipe, spec = self.recipe.convert, self.spec
        width, linear = spec.head_dim, spec.qk_norm and recipe.format != "regear_mla"
        shares = GRID_SHARES if recipe.grid else FREE_SHARES
        dims = sorted({2 * round(share * width / 2) for share in shares})
        most = spec.head_dim if recipe.grid else spec.branch_width
        if recipe.rope_dim == "auto":
            if not recipe.grid and not spec.qk_norm and self._mean >= spec.kv_width:
                return [Turning(recipe.factor, spec.branch_width)]  # every key turns and every value is held: no loss
            dims = [
                dim
                for dim in dims
                if 2 <= dim <= min(most, self._mean // 2, self._mean - recipe.align)
                and (not recipe.grid or width % dim == 0)
            ]
        else:
            dims = [recipe.rope_dim]
            if recipe.rope_dim > most or (recipe.grid and width % recipe.rope_dim):
                wanted = f"a divisor of {width}" if recipe.grid else f"at most {most}"
                raise RecipeError(f"found convert.rope_dim={recipe.rope_dim}; wanted {wanted}")
            if recipe.rope_dim > self._mean - recipe.align:
                dims = []
        found = [
            Turning(recipe.factor, dim, fold, recipe.grid, linear) for dim in dims for fold in self._folds(width // dim)
        ]
        if not found:
            raise RecipeError(
                f"{self._mean} floats a token and layer leave no room for turning keys beside the latent; raise "
                "convert.kv_ratio or lower convert.rope_dim or convert.align"
            )
        return self._padded(found)

    def _padded(self, found: Sequence[Turning]) -> list[Turning]:
        """Those whose latents are no wider than they are to be padded to; unequal ones are held to their mean."""
        align, pad = self.recipe.convert.align, self.recipe.convert.latent_pad
        ranks = [min((self._mean - t.dim) // align * align, self._high(t)) for t in found]
        if pad is None:
            return list(found)
        if pad < min(ranks):
            raise RecipeError(
                f"found convert.latent_pad={pad}; wanted {min(ranks)} or more, or a lower convert.kv_ratio"
            )
        return [t for t, rank in zip(found, ranks, strict=True) if rank <= pad]

    def _folds(self, step: int) -> list[int]:
        """Folds that the chosen frequencies fit into."""
        recipe, pairs = self.recipe.convert, self.spec.head_dim // 2
        if recipe.factor == "fisher":
            return [1]
        if isinstance(recipe.freqfold, int):
            if recipe.freqfold % step or pairs % recipe.freqfold:
                raise RecipeError(
                    f"found convert.freqfold={recipe.freqfold}; wanted a multiple of {step} that divides {pairs}"
                )
            return [recipe.freqfold]
        return [step * fold for fold in FOLDS if pairs % (step * fold) == 0]

    def prepare(self, texts: Texts, place: Path, progress: Progress) -> dict[str, Any]:
        self.source = Source(self.store, self.spec, self.device)
        self.texts, self.place, self.progress = texts, place, progress
        self.statistics = self._calibrate(texts, place, progress)
        return self._choose()

    def _collectors(self) -> list[str]:
        return ["kv-moments", *(["rope-curvature"] if self.recipe.convert.factor == "fisher" else [])]

    def _choose(self) -> dict[str, Any]:
        """Widths and ranks for the recipe's ratio."""
        candidates = self.candidates()
        self.tried = self._tried(candidates) if len(candidates) > 1 else []
        best = min(range(len(candidates)), key=lambda i: self.tried[i] if self.tried else 0.0)
        self._take(candidates[best])
        return {
            "rope_dim": self.parts.turning.dim,
            **({"freqfold": self.parts.turning.fold} if self.recipe.convert.factor != "fisher" else {}),
            "latent_ranks": [[rank] * 3 for rank in self.widths],
            "selection_kl": [[t.dim, t.fold, kl] for t, kl in zip(candidates, self.tried, strict=False)],
        }

    def _take(self, turning: Turning) -> None:
        self.parts = DecoupledDirections(self.source, self.statistics, turning, self.place)
        left = self.budget - self.spec.layers * turning.dim
        spectra = self.parts.spectra(self.progress)
        rows = allocate(self.recipe.convert, spectra, left, self._high(turning), None)
        self.widths = [row[0] for row in rows]

    def widen(self) -> None:
        """Give every latent all that it can hold, whatever the budget: what is left is the cost of partial RoPE."""
        self.widths = [self._high(self.parts.turning)] * self.spec.layers

    def variant(self) -> Variant:
        """The converted model as a variant of the source."""
        directions, ranks = self.parts, list(self.widths)
        config = directions.config(ranks, "float32")
        return lambda index: directions.change(index, ranks, config)

    def _tried(self, candidates: Sequence[Turning]) -> list[float]:
        """KL of every candidate on selection text; durable."""
        recipe, rows = self.recipe.convert, self.texts.ids["selection"]
        rows = rows[:: max(1, len(rows) // SELECTION_WINDOWS)]
        what = {"tried": [asdict(t) for t in candidates], "floats": self.budget}
        what |= {"allocate": recipe.allocate, "align": recipe.align}
        path = self.place / f"rope-{digest({**what, 'ids': rows})[:16]}.json"
        if not path.exists():
            variants = []
            for turning in candidates:
                self._take(turning)
                variants.append(self.variant())
            self.progress("select", 0, 1)
            found = losses(self.source, batches(rows, [1.0] * len(rows)), [None, *variants])[1:]
            write_json(path, [result.mean_kl for result in found])
            self.progress("select", 1, 1)
        return list(read_json(path))

    @property
    def kv_floats(self) -> int:
        return sum(self.widths) + self.spec.layers * self.parts.turning.dim

    def at_ratio(self, ratio: float | str) -> Variant:
        changed = validate(MlaRecipe, {**self.recipe.convert.model_dump(), "kv_ratio": ratio})
        self.recipe = self.recipe.model_copy(update={"convert": changed})
        self._choose()
        return self.variant()

    def write(self, staging: Path, progress: Progress) -> None:
        recipe = self.recipe.convert
        made = Replaced(self.store, self.spec, self.parts.replacement(self.widths))
        stored = DTYPES[self.store.dtypes["model.layers.0.self_attn.k_proj.weight"]]
        wanted = None if recipe.dtype == "source" else getattr(torch, recipe.dtype)
        dtype = output_dtype(stored, recipe.format, wanted)
        found = in_format(made, recipe.format, recipe.latent_pad)
        write(found, staging, dtype, progress)
        self.written = found.config

    def explain(self) -> tuple[list[Section], list[Plot]]:
        layers = list(range(self.spec.layers))
        turning = self.parts.turning
        table = Section(
            "Ranks",
            ["layer", "latent floats", "turning floats", "frequencies that turn (index: times)"],
            [[str(i), self.widths[i], turning.dim, _times(self.parts.pairs(i))] for i in layers],
        )
        tried = Section(
            "Turning floats tried on selection text",
            ["floats that turn", "frequencies folded", "KL from the original"],
            [[t.dim, t.fold, kl] for t, kl in zip(self.candidates(), self.tried, strict=False)],
        )
        plot = Plot("Latent floats by layer", [Series("latent", layers, self.widths)], "layer", "floats a token")
        sections = [table, *([tried] if self.tried else []), self._absorbed_costs(), server_facts(self.written)]
        return sections, [plot]

    def _absorbed_costs(self) -> Section:
        """Arithmetic of one decoded token against the context, and the cache it reads."""
        spec, dim = self.spec, self.parts.turning.dim
        rows = []
        for context in (512, 2048, 8192, 32768):
            before = 4 * context * spec.heads * spec.head_dim * spec.layers
            heads = 2 * spec.heads
            after = sum(heads * (context * (2 * rank + dim) + rank * 2 * spec.head_dim) for rank in self.widths)
            cached = [context * floats for floats in (spec.kv_floats_per_token, self.kv_floats)]
            rows.append([str(context), before / 1e6, after / 1e6, *(floats / 1e6 for floats in cached)])
        note = (
            "Keys and values are absorbed: a step reads the latents themselves, once for all heads. It computes more "
            "than the original and reads less; where memory is the limit, as on accelerators, reading decides."
        )
        header = ["context", "attention MFLOP before", "after", "cache Mfloats before", "after"]
        return Section("Cost of decoding one token", header, rows, note)


def open_mla(store: Store, spec: SourceSpec, recipe: MlaConvertRecipe, device: str = "auto") -> MlaConversion:
    """The conversion that the recipe's `rope` asks for."""
    kind = DecoupledConversion if recipe.convert.rope == "decoupled" else MlaConversion
    return kind(store, spec, recipe, device)


def _times(pairs: Sequence[int]) -> str:
    """`[0, 0, 2]` → `0: 2, 2: 1`; evenly spaced ones in short."""
    step = pairs[1] - pairs[0] if len(pairs) > 1 else 1
    if step > 0 and list(pairs) == [step * i for i in range(len(pairs))]:
        return "all" if step == 1 else f"every {step}th"
    return ", ".join(f"{pair}: {pairs.count(pair)}" for pair in sorted(set(pairs)))
