"""GQA → MLA with exact RoPE (CARE; metrics beyond it).

Source: CARE (arXiv 2603.17946): K = (X W_K^a) W_K^b and V = (X W_V^a) W_V^b, factors optimal for the activations,
ranks per layer. Here y = [k; v] = W x + b before any norm or rotation, the latent is c = E W x, and [k; v] is rebuilt
as U c + b: biases stay exact, QK-norm and RoPE act after the up-projection and stay exact too.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regear.conversion.base import Conversion, Plan, Texts
from regear.conversion.calibrate import Statistics, calibrate
from regear.conversion.directions import Directions
from regear.conversion.export import DROPS, Replacement, exact_config, exact_shapes, exact_tensors, write_checkpoint
from regear.conversion.factors import FACTORS
from regear.conversion.formats.facts import server_facts
from regear.conversion.latent import allocate, latent_ranks
from regear.conversion.recipes import MlaConvertRecipe, MlaRecipe
from regear.conversion.sizing import sizing
from regear.conversion.stream import Source, Variant, batches, losses
from regear.core.errors import DataError, RecipeError
from regear.core.files import digest, read_json, write_json
from regear.core.recipe import validate
from regear.core.report import Plot, Section, Series
from regear.core.run import Progress
from regear.models.tensorfile import BYTES
from regear.ops import ranks as rules

VALUE_WEIGHTS = (1.0, 0.3, 0.1, 0.03, 0.01)
SENSITIVITY_WINDOWS = 4


class MlaConversion(Conversion[MlaConvertRecipe]):
    """See the module's docstring."""

    sensitivity: list[float] | None = None

    @property
    def format(self) -> str:
        return self.recipe.convert.format

    @property
    def budget(self) -> int:
        """Latent floats per token, summed over layers: at most this many."""
        return int(self.recipe.convert.ratio * self.spec.kv_floats_per_token)

    @property
    def high(self) -> int:
        """Ranks beyond this are of no use to one branch."""
        width = self.spec.kv_width if self.recipe.convert.branches == "joint" else self.spec.branch_width
        return min(width, self.spec.hidden)

    def refuse(self) -> None:
        """Refuse settings or a source that this form cannot hold.

        Raises:
            RecipeError, IncompatibleModel: with what to change.
        """
        recipe = self.recipe.convert
        if recipe.latent_pad is not None:
            raise RecipeError(f"found convert.latent_pad={recipe.latent_pad}; it belongs to convert.rope=decoupled")
        if recipe.dtype != "source":
            raise RecipeError(f"convert.rope=exact keeps the source's dtypes; found convert.dtype={recipe.dtype}")

    def plan(self) -> Plan:
        self.refuse()
        spec, recipe = self.spec, self.recipe.convert
        branches = 1 if recipe.branches == "joint" else 2
        # The rank of a uniform split stands for the plan; it also refuses a budget below one rank.
        rank = rules.uniform(spec.layers, self.budget // branches, step=recipe.align, high=self.high)[0] * branches
        old = 2 * spec.branch_width * spec.hidden * spec.layers
        new = rank * (spec.hidden + spec.branch_width * (2 if branches == 1 else 1)) * spec.layers
        before = sum(map(math.prod, self.store.shapes.values()))
        item = BYTES[self.store.dtypes["model.layers.0.self_attn.k_proj.weight"]]
        attended = "rope-curvature" in self._collectors()
        gradients = attended or "kv-fisher" in self._collectors()
        tokens = (self.recipe.calibration.tokens, self.recipe.evaluation.tokens)
        sizes = sizing(self.store, spec, *tokens, gradients=gradients, attended=attended)
        return Plan(
            kv_floats_before=spec.kv_floats_per_token,
            kv_floats_after=rank * spec.layers if recipe.allocate == "uniform" else self._most_floats(branches),
            parameters_before=before,
            parameters_after=before - old + new,
            output_bytes=(before - old + new) * item,
            memory_bytes=sizes.memory,
            scratch_bytes=sizes.scratch,
            cache_bytes=sizes.cache,
            facts={"mean_rank": self.budget / spec.layers, "width": spec.kv_width, "layers": spec.layers},
        )

    def _most_floats(self, branches: int) -> int:
        """What a greedy allocation can spend: the budget, or every branch at the most it can use."""
        return min(self.budget, self.high * branches * self.spec.layers)

    def check_texts(self, texts: Texts, warn: Callable[[str], None]) -> None:
        tokens, width = texts.tokens("calibration"), self.spec.kv_width
        if tokens < 2 * width:
            raise DataError(
                f"the calibration text holds {tokens} tokens; wanted at least {2 * width}, twice the width of keys and "
                "values: give more text, or raise calibration.tokens"
            )
        if tokens < 4 * width:
            warn(f"only {tokens} calibration tokens for a width of {width}; {4 * width} or more give steadier factors")

    def prepare(self, texts: Texts, place: Path, progress: Progress) -> dict[str, Any]:
        self.source = Source(self.store, self.spec, self.device)
        recipe = self.recipe.convert
        self.statistics = self._calibrate(texts, place, progress)
        weight = self._value_weight(texts) if recipe.factor == "attention" else None
        self.directions = self._directions(weight or 1.0, place)
        self.spectra = self.directions.spectra(progress)
        self.sensitivity = self._sensitivity(texts, place) if recipe.allocate == "measured" else None
        self.ranks = self._allocate(recipe)
        chosen: dict[str, Any] = {"latent_ranks": [latent_ranks(row) for row in self.ranks]}
        if weight is not None:
            chosen["value_weight"] = weight
        if self.sensitivity is not None:
            chosen["sensitivity"] = self.sensitivity
        return chosen

    @property
    def kv_floats(self) -> int:
        """Cached floats per token, summed over layers, of the ranks that were chosen."""
        return sum(map(sum, self.ranks))

    def at_ratio(self, ratio: float | str) -> Variant:
        """After `prepare`: the same directions cut to another ratio, as a variant of the source."""
        changed = validate(MlaRecipe, {**self.recipe.convert.model_dump(), "kv_ratio": ratio})
        self.recipe = self.recipe.model_copy(update={"convert": changed})
        self.ranks = self._allocate(changed)
        return _cut(self.directions, self.ranks)

    def _calibrate(self, texts: Texts, place: Path, progress: Progress) -> Statistics:
        # Moments are always gathered: the report's errors and every other factor's sweep read them.
        weights = [window.weight for window in texts.windows["calibration"]]
        data = batches(texts.ids["calibration"], weights)
        return calibrate(self.source, data, self._collectors(), place, seed=self.recipe.seed, progress=progress)

    def _collectors(self) -> list[str]:
        return sorted({"kv-moments", "query-energy", *FACTORS[self.recipe.convert.factor].collectors})

    def _directions(self, value_weight: float, place: Path | None) -> Directions:
        recipe = self.recipe.convert
        return Directions(self.source, self.statistics, recipe.factor, recipe.branches, value_weight, place)

    def _allocate(self, recipe: MlaRecipe) -> list[list[int]]:
        return allocate(recipe, self.spectra, self.budget, self.high, self.sensitivity)

    def _value_weight(self, texts: Texts) -> float:
        """The given weight of the values, or the one with the least loss on selection text."""
        given = self.recipe.convert.value_weight
        if isinstance(given, float):
            return given
        # Ranks are chosen after the weight, so the weight is judged at equal ranks.
        branches = 1 if self.recipe.convert.branches == "joint" else 2
        rank = rules.uniform(self.spec.layers, self.budget // branches, step=self.recipe.convert.align, high=self.high)[
            0
        ]
        ranks = [[rank] * branches] * self.spec.layers
        variants = [_cut(self._directions(weight, None), ranks) for weight in VALUE_WEIGHTS]
        data = batches(texts.ids["selection"], [1.0] * len(texts.ids["selection"]))
        found = [result.log_perplexity for result in losses(self.source, data, [None, *variants])[1:]]
        return VALUE_WEIGHTS[found.index(min(found))]

    def _sensitivity(self, texts: Texts, place: Path) -> list[float]:
        """Rise in log-perplexity on selection text when one layer alone is cut to a quarter; cached for every ratio."""
        recipe, rank = self.recipe.convert, self.high // 4
        what = {"factor": recipe.factor, "branches": recipe.branches, "weights": [self.directions.value_weight]}
        key = digest({**what, "rank": rank, "ids": texts.ids["selection"], "windows": SENSITIVITY_WINDOWS})
        path = place / f"sensitivity-{key[:16]}.json"
        if path.exists():
            return list(read_json(path))
        cuts = _cut(self.directions, [[rank] * len(self.spectra)] * self.spec.layers)
        variants = [_only(cuts, index) for index in range(self.spec.layers)]
        rows = texts.ids["selection"][:: max(1, len(texts.ids["selection"]) // SENSITIVITY_WINDOWS)]
        base, *rest = losses(self.source, batches(rows, [1.0] * len(rows)), [None, *variants])
        found = [max(result.log_perplexity - base.log_perplexity, 0.0) for result in rest]
        write_json(path, found)
        return found

    def write(self, staging: Path, progress: Progress) -> None:
        directions, ranks = self.directions, self.ranks
        full = [latent_ranks(row) for row in ranks]
        replacement = Replacement(
            DROPS,
            lambda index: exact_shapes(self.spec, full[index]),
            lambda index: exact_tensors(directions.factored(index, ranks[index]), directions.biases(index)),
            lambda dtype: exact_config(self.store, self.spec, full, dtype),
        )
        write_checkpoint(self.store, self.spec, replacement, staging, progress)

    def explain(self) -> tuple[list[Section], list[Plot]]:
        errors = [self.directions.energy_lost(index, row) for index, row in enumerate(self.ranks)]
        ranks = [latent_ranks(row) for row in self.ranks]
        layers = list(range(self.spec.layers))
        table = Section(
            "Ranks",
            ["layer", "latent floats", "for keys", "for values", "output energy lost"],
            [[str(i), *ranks[i], errors[i]] for i in layers],
        )
        plots = [
            Plot(
                "Latent floats by layer", [Series("latent", layers, [r[0] for r in ranks])], "layer", "floats a token"
            ),
            Plot("Output energy lost by layer", [Series("lost", layers, errors)], "layer", "share of E‖y‖²"),
        ]
        config = exact_config(self.store, self.spec, ranks, "float32").to_dict()
        return [table, self._costs(ranks), server_facts(config)], plots

    def _costs(self, ranks: Sequence[Sequence[int]]) -> Section:
        """Arithmetic of one decoded token against the context: what keys that cannot be absorbed cost."""
        spec = self.spec
        rows = []
        for context in (512, 2048, 8192, 32768):
            before = 4 * context * spec.heads * spec.head_dim * spec.layers
            after = sum(
                2 * context * (r_k * spec.branch_width + spec.heads * (spec.head_dim + r_v)) for _, r_k, r_v in ranks
            )
            cached = [context * floats for floats in (spec.kv_floats_per_token, sum(r for r, _, _ in ranks))]
            rows.append([str(context), before / 1e6, after / 1e6, *(floats / 1e6 for floats in cached)])
        note = (
            "With exact RoPE the keys are rebuilt from the latents and rotated at every step (2·T·r_k·G·d operations a "
            "layer); values are absorbed. The cache is smaller, the step is not cheaper: choose this form to fit more "
            "context or more requests into memory, not to decode faster at long context. Those who need faster "
            "long-context decoding should not use it. Times measured beside the original on the machine that converted "
            "are in the run's report.html: a checkpoint holds no clock."
        )
        header = ["context", "attention MFLOP before", "after", "cache Mfloats before", "after"]
        return Section("Cost of decoding one token", header, rows, note)


def _cut(directions: Directions, ranks: Sequence[Sequence[int]]) -> Variant:
    """Every layer cut to its ranks."""
    return lambda index: directions.edit(index, ranks[index])


def _only(variant: Variant, layer: int) -> Variant:
    """One layer of a variant, the others as they are."""
    return lambda index: variant(index) if index == layer else None
