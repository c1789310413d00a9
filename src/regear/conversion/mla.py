"""GQA → MLA with exact RoPE (CARE; metrics beyond it).

Source: CARE (arXiv 2603.17946): K = (X W_K^a) W_K^b and V = (X W_V^a) W_V^b, factors optimal for the activations,
ranks per layer. Here y = [k; v] = W x + b before any norm or rotation, the latent is c = E W x, and [k; v] is rebuilt
as U c + b: biases stay exact, QK-norm and RoPE act after the up-projection and stay exact too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from regear.conversion.base import Conversion, Plan, Progress, Texts
from regear.conversion.calibrate import GRADIENT_STRIDE, Statistics, calibrate
from regear.conversion.export import write_checkpoint
from regear.conversion.factors import FACTORS, LayerView, bases
from regear.conversion.latent import allocate, assemble
from regear.conversion.recipes import MlaConvertRecipe, MlaRecipe
from regear.conversion.stream import Edit, Source, batches, losses
from regear.core.errors import DataError
from regear.core.files import digest, read_json, write_json
from regear.core.recipe import validate
from regear.core.report import Plot, Section, Series
from regear.models.store import BYTES
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

    def plan(self) -> Plan:
        spec, recipe = self.spec, self.recipe.convert
        branches = 1 if recipe.branches == "joint" else 2
        # The rank of a uniform split stands for the plan; it also refuses a budget below one rank.
        rank = rules.uniform(spec.layers, self.budget // branches, step=recipe.align, high=self.high)[0] * branches
        old = 2 * spec.branch_width * spec.hidden * spec.layers
        new = rank * (spec.hidden + spec.branch_width * (2 if branches == 1 else 1)) * spec.layers
        before = sum(_count(shape) for shape in self.store.shapes.values())
        item = BYTES[self.store.dtypes["model.layers.0.self_attn.k_proj.weight"]]
        layer_bytes = 4 * sum(_count(shape) for shape in spec.layer_tensors().values())
        vocabulary_bytes = 4 * spec.vocabulary * spec.hidden
        windows = self.recipe.calibration.tokens * spec.hidden * 4
        return Plan(
            kv_floats_before=spec.kv_floats_per_token,
            kv_floats_after=rank * spec.layers if recipe.allocate == "uniform" else self._most_floats(branches),
            parameters_before=before,
            parameters_after=before - old + new,
            output_bytes=(before - old + new) * item,
            memory_bytes=max(
                max(layer_bytes * 2, vocabulary_bytes) + 3 * windows,  # calibration: one layer and the hidden states
                8 * spec.layers * (6 * spec.kv_width**2 + 2 * spec.kv_width * spec.hidden),  # factors of all layers
                8 * before + 8 * 600 * spec.vocabulary,  # comparison: both models in float32, and their logits
            ),
            scratch_bytes=windows * (2 + spec.layers // GRADIENT_STRIDE),
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
        self._factorise(weight or 1.0)
        self.sensitivity = self._sensitivity(texts, place) if recipe.allocate == "measured" else None
        self._choose(recipe)
        chosen: dict[str, Any] = {"latent_ranks": [f.ranks for f in self.factored]}
        if weight is not None:
            chosen["value_weight"] = weight
        if self.sensitivity is not None:
            chosen["sensitivity"] = self.sensitivity
        return chosen

    @property
    def kv_floats(self) -> int:
        """Cached floats per token, summed over layers, of the ranks that were chosen."""
        return sum(factored.ranks[0] for factored in self.factored)

    def at_ratio(self, ratio: float | str) -> list[Edit]:
        """After `prepare`: the same directions cut to another ratio, as edits of the source."""
        changed = validate(MlaRecipe, {**self.recipe.convert.model_dump(), "kv_ratio": ratio})
        self.recipe = self.recipe.model_copy(update={"convert": changed})
        self._choose(changed)
        return self.edits()

    def _calibrate(self, texts: Texts, place: Path, progress: Progress) -> Statistics:
        # Moments are always gathered: the report's errors and every other factor's sweep read them.
        names = sorted({"kv-moments", "query-energy", *FACTORS[self.recipe.convert.factor].collectors})
        weights = [window.weight for window in texts.windows["calibration"]]
        data = batches(texts.ids["calibration"], weights)
        return calibrate(self.source, data, names, place, seed=self.recipe.seed, progress=progress)

    def _view(self, index: int, value_weight: float) -> LayerView:
        prefix = f"model.layers.{index}.self_attn."
        read = self.source.tensor
        weight = torch.cat([read(f"{prefix}{x}_proj.weight") for x in "kv"]).double().cpu()
        norm = read(f"{prefix}k_norm.weight").cpu() if self.spec.qk_norm else None
        output = read(f"{prefix}o_proj.weight").cpu()
        return LayerView(self.spec, self.statistics[index], weight, output, norm, value_weight)

    def _factorise(self, value_weight: float) -> None:
        recipe = self.recipe.convert
        self.views = [self._view(index, value_weight) for index in range(self.spec.layers)]
        self.bases = [bases(view, recipe.factor, recipe.branches) for view in self.views]

    def _choose(self, recipe: MlaRecipe) -> None:
        spectra = [[basis.values.tolist() for basis in column] for column in zip(*self.bases, strict=True)]
        ranks = allocate(recipe, spectra, self.budget, self.high, self.sensitivity)
        self.factored = [
            assemble(found, view.weight, rank) for found, view, rank in zip(self.bases, self.views, ranks, strict=True)
        ]

    def _biases(self, index: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not self.spec.kv_bias:
            return None, None
        prefix = f"model.layers.{index}.self_attn."
        return self.source.tensor(f"{prefix}k_proj.bias"), self.source.tensor(f"{prefix}v_proj.bias")

    def edits(self) -> list[Edit]:
        """The converted model as dense weights for the source's layers; what it computes is the same."""
        return [factored.edit(*self._biases(index)) for index, factored in enumerate(self.factored)]

    def _value_weight(self, texts: Texts) -> float:
        """The given weight of the values, or the one with the least loss on selection text."""
        given = self.recipe.convert.value_weight
        if isinstance(given, float):
            return given
        variants = []
        for weight in VALUE_WEIGHTS:
            self._factorise(weight)
            # Ranks are chosen after the weight, so the weight is judged at equal ranks.
            self._choose(self.recipe.convert.model_copy(update={"allocate": "uniform"}))
            variants.append(self.edits())
        data = batches(texts.ids["selection"], [1.0] * len(texts.ids["selection"]))
        found = [result.log_perplexity for result in losses(self.source, data, [None, *variants])[1:]]
        return VALUE_WEIGHTS[found.index(min(found))]

    def _sensitivity(self, texts: Texts, place: Path) -> list[float]:
        """Rise in log-perplexity on selection text when one layer alone is cut to a quarter; cached for every ratio."""
        recipe = self.recipe.convert
        weights = [view.value_weight for view in self.views[:1]]
        what = {"factor": recipe.factor, "branches": recipe.branches, "weights": weights, "rank": self.high // 4}
        key = digest({**what, "ids": texts.ids["selection"], "windows": SENSITIVITY_WINDOWS})
        path = place / f"sensitivity-{key[:16]}.json"
        if path.exists():
            return list(read_json(path))
        variants: list[list[Edit | None]] = []
        for index in range(self.spec.layers):
            cut = assemble(self.bases[index], self.views[index].weight, [self.high // 4] * len(self.bases[index]))
            variant: list[Edit | None] = [None] * self.spec.layers
            variant[index] = cut.edit(*self._biases(index))
            variants.append(variant)
        rows = texts.ids["selection"][:: max(1, len(texts.ids["selection"]) // SENSITIVITY_WINDOWS)]
        base, *cuts = losses(self.source, batches(rows, [1.0] * len(rows)), [None, *variants])
        found = [max(result.log_perplexity - base.log_perplexity, 0.0) for result in cuts]
        write_json(path, found)
        return found

    def write(self, staging: Path, progress: Progress) -> None:
        write_checkpoint(self.store, self.spec, self.factored, staging, progress)

    def layer_errors(self) -> list[float]:
        """Share of each layer's output energy E‖y‖² that the bottleneck loses, on calibration text."""
        errors = []
        for view, factored, statistics in zip(self.views, self.factored, self.statistics, strict=True):
            gram = statistics["kv_gram"]
            rebuilt = factored.edit(None, None)
            dense = torch.cat([rebuilt.key, rebuilt.value])
            # ŷ = P y with P W = dense; solved in the least-squares sense on the range of W.
            project = dense @ torch.linalg.pinv(view.weight)
            rest = torch.eye(len(gram), dtype=torch.float64) - project
            errors.append(float((rest @ gram @ rest.T).trace() / gram.trace()))
        return errors

    def explain(self) -> tuple[list[Section], list[Plot]]:
        errors = self.layer_errors()
        ranks = [factored.ranks for factored in self.factored]
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
        return [table, self._costs(ranks)], plots

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


def _count(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())
