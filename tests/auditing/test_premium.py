"""The cost premium against a naive count, and one figure known from real tokens."""

import base64
import random

import pytest

from regear.auditing.premium import cost_premium
from regear.core.errors import BackendError, DataError
from regear.tasks.choice import load
from tests.tiny import byte_tokenizer

CATALOGUES = {
    "en": {"a": "yes", "b": "no", "c": "perhaps", "d": "only here"},
    "de": {"a": "ja", "b": "nein", "c": "vielleicht"},
    "hi": {"a": "हाँ", "b": "नहीं", "c": "शायद"},
}


class Words:
    """One token a word, two for a long one."""

    def __call__(self, texts, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [[0] * sum(1 + (len(word) > 5) for word in text.split()) for text in texts]}


def test_it_is_the_naive_count():
    table = {row["language"]: row for row in cost_premium(Words(), CATALOGUES).to_dicts()}
    shared = set(CATALOGUES["en"]) & set(CATALOGUES["de"]) & set(CATALOGUES["hi"])
    for language, messages in CATALOGUES.items():
        sizes = {name: sum(len(found[key].encode()) for key in shared) for name, found in CATALOGUES.items()}
        tokens = {
            name: sum(1 + (len(word) > 5) for key in shared for word in found[key].split())
            for name, found in CATALOGUES.items()
        }
        row = table[language]
        assert (row["messages"], row["tokens"], row["bytes"]) == (3, tokens[language], sizes[language])
        assert row["premium"] == pytest.approx(tokens[language] / tokens["en"])
        assert row["bytes_premium"] == pytest.approx(sizes[language] / sizes["en"])
        assert row["low"] <= row["premium"] <= row["high"]
        assert messages
    assert (table["en"]["low"], table["en"]["high"]) == (1, 1)


def test_a_byte_tokenizer_pays_for_bytes():
    for row in cost_premium(byte_tokenizer(), CATALOGUES).to_dicts():
        assert row["premium"] == row["bytes_premium"]


def test_intervals_cover_the_truth():
    """Of many messages whose cost is drawn with mean 2 over the reference's, few intervals miss 2."""
    draw, misses = random.Random(0), 0
    for seed in range(60):
        names = [str(n) for n in range(80)]
        catalogues = {
            "en": dict.fromkeys(names, "w " * 4),
            "xx": {n: "w " * draw.choice([2, 6, 8, 16]) for n in names},
        }
        row = cost_premium(Words(), catalogues, seed=seed).filter(language="xx").to_dicts()[0]
        misses += not row["low"] <= 2 <= row["high"]
    assert misses <= 8


def test_mistakes_are_named():
    with pytest.raises(DataError, match="no catalogue in fr, the reference"):
        cost_premium(Words(), CATALOGUES, "fr")
    with pytest.raises(DataError, match="no catalogue in xx"):
        cost_premium(Words(), CATALOGUES, languages=["xx"])


def test_hindi_over_spanish_with_qwens_ranks():
    """2.81 tokens for one, and 2.16 bytes, on the aligned questions with their lettered options."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from regear.core.packages import fetched

    try:
        folder = fetched("dashscope==2.0.2")
    except BackendError as error:
        pytest.skip(str(error))
    lines = (folder / "dashscope" / "resources" / "qwen.tiktoken").read_text().split("\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    alphabet = _letters()
    spelled = {"".join(alphabet[byte] for byte in token): rank for token, rank in ranks.items()}
    # Any two tokens that make a third may merge, the lowest rank of the third first.
    splits = [(token[:i], token[i:]) for token in spelled for i in range(1, len(token))]
    merges = [pair for pair in splits if pair[0] in spelled and pair[1] in spelled]
    tokenizer = Tokenizer(models.BPE(vocab=spelled, merges=merges))
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = {}
    for item in load("mmlu-languages"):
        options = [f"{letter}. {option}" for letter, option in zip("ABCD", item.options, strict=True)]
        text = "\n".join([item.question, *options])
        texts.setdefault(item.attributes["language"], {})[item.cluster] = text
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    row = cost_premium(fast, texts, "es", languages=["hi"]).filter(language="hi").to_dicts()[0]
    assert row["premium"] == pytest.approx(2.81, abs=0.02)
    assert row["bytes_premium"] == pytest.approx(2.16, abs=0.02)


def _letters():
    """The letter that stands for each byte in byte-level BPE."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, spare = {byte: chr(byte) for byte in kept}, 256
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(spare)
            spare += 1
    return letters
