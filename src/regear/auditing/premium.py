"""What the same words cost in each language: tokens on parallel texts, over those of a reference language.

    premium(language) = Σ_message tokens(message, language) / Σ_message tokens(message, reference)

Messages that say the same are compared, not bytes: a token premium is paid per meaning (Petrov et al. 2023).
"""

from collections.abc import Sequence
from typing import Any

import polars as pl

from regear.core.errors import DataError
from regear.core.stats import Interval, paired_bootstrap
from regear.tasks.catalogues import Catalogues, aligned

RESAMPLES = 2000


def cost_premium(
    tokenizer: Any,
    catalogues: Catalogues,
    reference: str = "en",
    *,
    languages: Sequence[str] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """Tokens and bytes of every language over those of the reference, on the messages that all of them have.

    Args:
        tokenizer: called with a list of texts, it returns `input_ids`; special tokens are not counted.
        catalogues: language → message id → text.
        reference: the language the others are compared with.
        languages: which to compare (all by default).
        level: of each interval by itself; the bootstrap's unit is the message.
        seed: of its draws.

    Returns one row a language, dearest first: `language, messages, tokens, bytes, bytes_per_token, premium, low, high,
    bytes_premium, bytes_low, bytes_high`.

    Raises:
        DataError: an unknown language, or no message in common.
    """
    if reference not in catalogues:
        raise DataError(f"no catalogue in {reference}, the reference; there are: {', '.join(sorted(catalogues))}")
    chosen = list(dict.fromkeys([reference, *(languages if languages is not None else catalogues)]))
    texts = aligned(catalogues, chosen)
    tokens = {name: _lengths(tokenizer, found) for name, found in texts.items()}
    sizes = {name: [len(text.encode()) for text in found] for name, found in texts.items()}
    rows = []
    for name in chosen:
        ratio, bytes_ratio = (
            paired_bootstrap(count[name], count[reference], resamples=RESAMPLES, level=level, seed=seed)
            for count in (tokens, sizes)
        )
        rows.append(_row(name, tokens[name], sizes[name], ratio, bytes_ratio))
    return pl.DataFrame(rows).sort("premium", "language", descending=[True, False])


def _lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _row(name: str, tokens: list[int], sizes: list[int], ratio: Interval, bytes_ratio: Interval) -> dict[str, Any]:
    return {
        "language": name,
        "messages": len(tokens),
        "tokens": sum(tokens),
        "bytes": sum(sizes),
        "bytes_per_token": sum(sizes) / sum(tokens),
        "premium": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "bytes_premium": bytes_ratio.value,
        "bytes_low": bytes_ratio.low,
        "bytes_high": bytes_ratio.high,
    }
