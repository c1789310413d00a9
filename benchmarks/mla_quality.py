"""Quality of the MLA conversion against cache size: weight-SVD, CARE and regear's default, on the same windows.

Correctness gate: at the full ratio the default must reproduce the original (KL below 1e-6), or nothing is measured.
"""

import sys

from common import finish, parser

import regear
from regear.cli.convert import sweep_text
from regear.conversion.sweep import excess_quotient


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--windows", type=int, default=64)
    options.add_argument("--ratios", default="3/4,1/2,1/3,1/4")
    options.add_argument("--presets", default="svd,care-uniform,best")
    arguments = options.parse_args()

    gate = regear.sweep(arguments.model, None, "evaluation.tokens=1000", ratios=["1"], presets=["best"])
    if gate["points"][0]["kl"] > 1e-6:
        sys.exit(f"the full-width conversion differs from the original: KL {gate['points'][0]['kl']}")

    result = regear.sweep(
        arguments.model,
        None,
        f"evaluation.tokens={540 * arguments.windows}",
        ratios=arguments.ratios.split(","),
        presets=arguments.presets.split(","),
        seed=arguments.seed,
    )
    points = result["points"]
    quotients = {}
    settings = arguments.presets.split(",")
    for ratio in arguments.ratios.split(",") if {"best", "care-uniform"} <= set(settings) else ():
        found = excess_quotient(points, "best", "care-uniform", ratio, arguments.seed)
        quotients[ratio] = {"value": found.value, "ci": [found.low, found.high]}
    worst = {p["kv_ratio"]: p["perplexity"] for p in points if p["setting"] == "svd"}
    best = {p["kv_ratio"]: p["perplexity"] for p in points if p["setting"] == "best"}
    results = {**result, "excess_over_care_uniform": quotients}
    if worst and best:
        largest = max(worst, key=lambda ratio: worst[ratio] / best[ratio])
        results["largest_svd_to_regear"] = {"kv_ratio": largest, "perplexity_ratio": worst[largest] / best[largest]}
    lines = [f"{r}: {q['value']:.3f} (95 % {q['ci'][0]:.3f} to {q['ci'][1]:.3f})" for r, q in quotients.items()]
    text = f"{sweep_text(result)}\nexcess log-perplexity over uniform CARE's: {'; '.join(lines)}\n"
    text += f"largest SVD-to-regear: {results.get('largest_svd_to_regear')}"
    finish("mla_quality", arguments, results, text)


if __name__ == "__main__":
    main()
