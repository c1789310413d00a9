"""How each known metric is told: in what people count, and with which words."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Scale:
    """How a metric is told. `more` and `fewer` follow an amount ("5 …").

    Kinds: `per_100`, a share of cases, told per 100; `percent`, told against its value before; `odds`, natural logs
    of a probability, told as how much less likely; `plain`, told as it is.
    """

    kind: Literal["per_100", "percent", "odds", "plain"]
    title: str
    more: str
    fewer: str
    counted: str = ""


def _scale(kind: Any, title: str, more: str, fewer: str, counted: str = "") -> Scale:
    return Scale(kind, title, more, fewer, counted)


SCALES = {
    "accuracy": _scale("per_100", "accuracy", "more right answers per 100", "fewer right answers per 100", "answers"),
    "hit": _scale(
        "per_100",
        "the share of people who get something useful",
        "more people per 100 who get something useful",
        "fewer people per 100 who get something useful",
        "people",
    ),
    "ndcg": _scale(
        "per_100",
        "how well lists match what people want (NDCG: 0 worst, 1 best)",
        "more points of 100 in how well lists match",
        "fewer points of 100 in how well lists match",
    ),
    "recall": _scale(
        "per_100",
        "the share of what people want that their lists hold",
        "more per 100 of the things people want are in their lists",
        "fewer per 100 of the things people want are in their lists",
    ),
    "visibility": _scale("per_100", "visibility", "more per 100 of all attention", "less per 100 of all attention"),
    "refusal": _scale("per_100", "the share of refusals", "more refusals per 100", "fewer refusals per 100", "answers"),
    "repetition": _scale("per_100", "repetition", "more of 100 repeated", "less of 100 repeated"),
    "flip": _scale("per_100", "the share of changed answers", "more changed answers per 100", "fewer per 100"),
    "gold_logprob": _scale(
        "odds", "the log-probability of the right answer", "more likely to give it", "less likely to give it"
    ),
    "bits_per_byte": _scale("percent", "bits per byte of text", "more bits for the same text", "fewer bits"),
    "perplexity": _scale("percent", "perplexity", "more perplexity", "less perplexity"),
    "right_to_wrong": _scale(
        "per_100",
        "the share of right answers that became wrong",
        "more right answers per 100 questions became wrong",
        "fewer per 100",
        "answers",
    ),
    "agreement": _scale(
        "per_100", "the share of the text before it differs", "more of 100 stays the same", "of 100 no longer agrees"
    ),
    "length_change": _scale("per_100", "the change in length", "more of 100 characters differ", "fewer of 100"),
    "kl_per_byte": _scale("plain", "how far the predictions moved (KL)", "further apart", "closer"),
    "tokens_per_byte": _scale("percent", "the number of tokens a byte", "more tokens for the same text", "fewer"),
    "prompt_tokens_per_byte": _scale(
        "percent", "the number of tokens a prompt takes", "more tokens for the same prompt", "fewer tokens"
    ),
    "seconds_per_token": _scale("percent", "the waiting time a token", "longer to wait", "less long to wait"),
    "latency": _scale("percent", "the waiting time", "longer to wait", "less long to wait"),
    "seconds": _scale("percent", "the waiting time", "longer to wait", "less long to wait"),
    "tokens": _scale("percent", "the number of tokens (what users pay for)", "more tokens", "fewer tokens"),
    "cost": _scale("percent", "the cost", "more to pay", "less to pay"),
    "length": _scale("percent", "the length of answers", "longer", "shorter"),
}
ALIASES = {
    "refused": "refusal",
    "flips": "flip",
    "correct": "accuracy",
    "bpb": "bits_per_byte",
    "repeated": "repetition",
}


def scale(metric: str) -> Scale:
    """How this metric is told; `ndcg@10` as `ndcg`; metrics nobody described in their own unit."""
    base = metric.partition("@")[0].lower()
    base = ALIASES.get(base, base)
    return SCALES.get(base) or _scale("plain", metric, f"more {metric}", f"less {metric}")
