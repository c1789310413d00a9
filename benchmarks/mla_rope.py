"""Decoupled RoPE at equal floats: regear's choice (free and evenly spaced frequencies) beside TransMLA's procedure.

Both choose the turning width (TransMLA's also its fold) by KL on the same selection windows. The cost of partial RoPE
alone is measured at the chosen width with nothing cut from the latent. Correctness gate: with every key turning, at
the full ratio, the original comes back (KL below 1e-6).
"""

import sys

from common import finish, parser

import regear
from regear.cli.convert import sweep_text
from regear.conversion.convert import build_recipe, calibration_place, open_source, read_texts, silent
from regear.conversion.stream import batches, losses
from regear.conversion.sweep import excess_quotient
from regear.core.provenance import model_digest
from regear.core.stats import perplexity_ratio

FORMS = ("decoupled", "decoupled-grid", "transmla")


def partial_rope(model: str, ratios: list[str], words: list[str], seed: int) -> list[dict]:
    """Perplexity ratio of each form with only its rotation changed: the latent holds all that it can."""
    rows, variants = [], []
    for form in FORMS:
        for ratio in ratios:
            recipe, _ = build_recipe("mla", None, [f"convert.preset={form}", f"convert.kv_ratio={ratio}", *words])
            directory, conversion = open_source(model, recipe, "mla")
            texts = read_texts(recipe, directory, conversion.spec.vocabulary)
            place = calibration_place(conversion, model_digest(directory), texts)
            chosen = conversion.prepare(texts, place, silent)
            conversion.widen()
            rows.append({"setting": form, "kv_ratio": ratio, **{k: chosen[k] for k in chosen if k != "latent_ranks"}})
            variants.append(conversion.variant())
    ids = texts.ids["evaluation"]
    original, *found = losses(conversion.source, batches(ids, [1.0] * len(ids)), [None, *variants])
    for row, score in zip(rows, found, strict=True):
        ratio = perplexity_ratio(score.nll, original.nll, original.tokens, seed=seed)
        row["partial_rope"] = {"ratio": ratio.value, "ratio_ci": [ratio.low, ratio.high], "kl": score.mean_kl}
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--windows", type=int, default=64)
    options.add_argument("--ratios", default="1/2,1/3")
    arguments = options.parse_args()
    ratios, words = arguments.ratios.split(","), [f"evaluation.tokens={540 * arguments.windows}"]

    gate = regear.sweep(arguments.model, None, "evaluation.tokens=1000", ratios=["1"], presets=["parity"])
    if gate["points"][0]["kl"] > 1e-6:
        sys.exit(f"with every key turning the model differs from the original: KL {gate['points'][0]['kl']}")
    result = regear.sweep(arguments.model, None, *words, ratios=ratios, presets=["best", *FORMS], seed=arguments.seed)
    points = result["points"]
    quotients = {
        form: {ratio: _interval(excess_quotient(points, form, "transmla", ratio, arguments.seed)) for ratio in ratios}
        for form in ("decoupled", "decoupled-grid")
    }
    apart = partial_rope(arguments.model, ratios, words, arguments.seed)
    results = {**result, "excess_over_transmla": quotients, "apart": apart, "parity_kl": gate["points"][0]["kl"]}
    lines = [
        f"{form} at {ratio}: {q['value']:.3f} (95 % {q['ci'][0]:.3f} to {q['ci'][1]:.3f})"
        for form, by_ratio in quotients.items()
        for ratio, q in by_ratio.items()
    ]
    text = f"{sweep_text(result)}\nexcess log-perplexity over TransMLA's: {'; '.join(lines)}\npartial RoPE alone:"
    for row in apart:
        text += f"\n  {row['setting']} at {row['kv_ratio']}: {row['rope_dim']} floats turn, {row['partial_rope']}"
    finish("mla_rope", arguments, results, text)


def _interval(found) -> dict:
    return {"value": found.value, "ci": [found.low, found.high]}


if __name__ == "__main__":
    main()
