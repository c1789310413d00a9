"""Which languages pay for a smaller KV cache: a model against its MLA conversions, on parallel texts and questions.

Bits per byte and KL on Django's messages, the same ones in the same order in every language, in blocks that are
resampled together; the right option's log-probability and accuracy on aligned MMLU questions; tokens per language.
A run that was killed goes on where it was: conversions and scores are kept.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
from common import finish, parser

import regear
from regear.auditing.compare import compare, crossings, margins
from regear.auditing.intervals import simultaneous
from regear.auditing.models import score_models
from regear.auditing.premium import cost_premium
from regear.auditing.tables import Metric, joined
from regear.auditing.units import coded
from regear.core.files import digest, home, write_json, write_text
from regear.models.builtin import resolve
from regear.models.load import load_tokenizer
from regear.tasks.catalogues import aligned, django, read_locales

LANGUAGES = "en,de,es,fr,it,pl,tr,ru,el,he,ar,fa,zh_Hans,ja,ko,hi,th"
LOSS = "1%"  # of the mean before: the loss that still counts as none
BITS_PER_BLOCK = Metric("bits_per_block", "bits:lower", None, lower=True)


def parallel(catalogues: dict, languages: list[str], messages: int, blocks: int | None, place: Path) -> Path:
    """One JSONL row for every block of messages and language; blocks are clusters. Messages are shuffled once, the same
    way in every language, since catalogues stand in an order (names of languages, of months, …)."""
    texts = aligned(catalogues, languages)
    order = np.random.default_rng(0).permutation(len(texts[languages[0]]))
    texts = {language: [found[i] for i in order] for language, found in texts.items()}
    chosen = range(min(blocks or len(order), len(order) // messages))
    rows = [
        {
            "id": f"{language}/{block}",
            "cluster": f"block {block}",
            "language": language,
            "text": "\n".join(texts[language][block * messages : (block + 1) * messages]),
        }
        for block in chosen
        for language in languages
    ]
    write_text(place, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return place


def against_english(units, index: int, sign: int, *, seed: int) -> dict[str, dict]:
    """Effect in a language less the effect in English, on the same blocks or questions, all intervals at once."""
    table = units.slices(index, ("language",))
    names = [name["language"] for name in table.names]
    there = [i for i, name in enumerate(names) if table.units[i] and name != "unknown"]
    if "en" not in names:
        return {}
    sums = table.sums.copy()
    sums[..., 0::2] *= sign
    english = sums[:, [names.index("en")] * len(there)]
    kept = [i for i, place in enumerate(there) if names[place] != "en"]
    both = np.concatenate([sums[:, there], english], axis=-1)[:, kept]
    found = simultaneous(both, (1, -1, -1, 1), seed=seed)
    labels = [names[there[i]] for i in kept]
    return {
        name: {"effect": float(value), "ci": [float(low), float(high)]}
        for name, value, low, high in zip(labels, found.value, found.low, found.high, strict=True)
    }


def audited(before: pl.DataFrame, after: pl.DataFrame, metrics: list[Metric], given: dict, seed: int) -> dict:
    """Verdicts by language. The intervals of one metric hold at once over all languages, metric by metric, since the
    metrics are views of one loss."""
    found, allowed = [], {}
    for metric in metrics:
        both = joined(before.lazy(), after.lazy(), [metric], ["language"])
        with coded(both, [metric], ["language"], seed=seed) as units:
            margin = margins(units, {metric.name: given[metric.name]})
            verdicts = [verdict.as_dict() for verdict in compare(units, crossings(["language"], 1), margin, seed=seed)]
            english = against_english(units, 0, metric.sign, seed=seed)
        allowed |= margin
        found += [v | {"against_english": english.get(v["slice"].get("language"))} for v in verdicts if v["n"]]
    return {"margins": allowed, "verdicts": found}


def scored(arguments: argparse.Namespace, smaller: str, text: Path) -> dict:
    """Text and questions audited by themselves: their units differ."""
    print(f"{smaller}: scoring", file=sys.stderr)
    found = score_models(
        arguments.model,
        smaller,
        text=[text],
        tasks=["mmlu-languages"] if arguments.items else [],
        items=arguments.items or None,
        device="cpu",
        progress=lambda stage, step, steps: print(f"{stage}: {step} of {steps}", file=sys.stderr, flush=True),
    )
    metrics = {metric.name: metric for metric in found.metrics}
    parts = {"window": [metrics["bits_per_byte"], metrics["kl_per_byte"], BITS_PER_BLOCK]}
    given = {"bits_per_byte": LOSS, "kl_per_byte": found.margins["kl_per_byte"] / 2, "bits_per_block": LOSS}
    limits = {"window": given, "question": {"gold_logprob": LOSS, "accuracy": 0.02, "right_to_wrong": 0.05}}
    if arguments.items:
        parts["question"] = [metrics[name] for name in limits["question"]]
    result = {"chance": found.chance, "inputs": found.inputs, "not_measured": found.not_measured}
    for kind, chosen in parts.items():
        one, two = (frame.filter(unit=kind) for frame in (found.before, found.after))
        result[kind] = audited(one, two, chosen, limits[kind], arguments.seed)
    return result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--ratios", default="1/2,1/3")
    options.add_argument("--languages", default=LANGUAGES)
    options.add_argument("--messages", type=int, default=8, help="in a block")
    options.add_argument("--windows", type=int, default=40, help="blocks a language, of 58")
    options.add_argument("--items", type=int, default=57, help="questions a language, of 285; 0 for none")
    options.add_argument("--work", type=Path, help="conversions and texts (default: in the cache)")
    options.add_argument("--locales", type=Path, help="a folder laid out as Django's (default: the pinned wheel)")
    options.add_argument("--convert", default="", help="recipe words of the conversions, by commas")
    arguments = options.parse_args()
    work = arguments.work or home() / "audit-languages"
    languages = arguments.languages.split(",")

    catalogues = read_locales(arguments.locales, contrib=True) if arguments.locales else django(contrib=True)
    tokenizer = load_tokenizer(resolve(arguments.model))
    premium = cost_premium(tokenizer, catalogues, languages=languages, seed=arguments.seed)
    settings = digest([arguments.languages, arguments.messages, arguments.windows, str(arguments.locales)])[:8]
    place = work / f"messages-{settings}.jsonl"
    text = parallel(catalogues, languages, arguments.messages, arguments.windows, place)

    results: dict = {"premium": premium.to_dicts(), "blocks_of_messages": arguments.messages, "models": {}}
    for ratio in arguments.ratios.split(","):
        smaller = work / f"mla-{ratio.replace('/', '-')}"
        words = [word for word in arguments.convert.split(",") if word]
        regear.convert(arguments.model, smaller, f"convert.kv_ratio={ratio}", *words, to="mla")
        results["models"][ratio] = scored(arguments, str(smaller), text)
        write_json(work / "so_far.json", results)
    finish("audit_languages", arguments, results, table(results))


def table(results: dict) -> str:
    """A language a line: premium, and per ratio the loss in bits per byte and what it is beside English."""
    lines = []
    premiums = {row["language"]: row["premium"] for row in results["premium"]}
    for ratio, found in results["models"].items():
        for kind in ("window", "question"):
            for verdict in found.get(kind, {}).get("verdicts", []):
                name = verdict["slice"].get("language", "all")
                apart = verdict["differential"] or {}
                numbers = [verdict["before"], verdict["after"], verdict["effect"], *verdict["ci"]]
                shown = " ".join(f"{number:+.4f}" for number in numbers)
                cost = f"{premiums[name]:.2f}" if name in premiums else "-"
                rest = f"{apart['effect']:+.4f} [{apart['ci'][0]:+.4f}, {apart['ci'][1]:+.4f}]" if apart else "-"
                lines.append(f"{ratio} {verdict['metric']:15} {name:8} {cost:5} {shown} {verdict['verdict']:13} {rest}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
