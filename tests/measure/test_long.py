"""Long contexts: perplexity by position and planted facts against their definitions, with every cache kind."""

import math

import pytest
import torch

import regear
from regear.core.errors import DataError, RecipeError
from regear.measure.long import long_context
from regear.measure.needle import score_needles
from regear.measure.perplexity import score
from regear.measure.position import bin_edges, long_rows, score_positions
from regear.models.load import load_model, load_tokenizer
from regear.tasks.needle import NeedleItem, needles
from regear.tasks.text import Document, Window
from tests.tiny import byte_tokenizer, make_model, make_text

DOCUMENTS = [Document(make_text(5000), "k"), Document(make_text(4000, seed=1), "k")]


@pytest.fixture(scope="module")
def pair(tiny, tmp_path_factory):
    other = make_model("llama", tmp_path_factory.mktemp("pair") / "other", seed=1)
    return [load_model(tiny("llama")), load_model(other)]


def test_bins_cover_every_scored_position_once():
    assert bin_edges(512) == [1, 64, 128, 256, 512]
    assert bin_edges(700) == [1, 64, 128, 256, 512, 700]
    assert bin_edges(64) == [1, 64]


@torch.no_grad()
def test_positions_equal_one_plain_pass(pair):
    rows = long_rows(DOCUMENTS, byte_tokenizer(), 700)
    assert len(rows) == 9002 // 700
    found = score_positions(pair, rows[:2], (None, None))
    for w, row in enumerate(rows[:2]):
        p, q = (m(torch.tensor([row])).logits[0, :-1].double().log_softmax(-1) for m in pair)
        targets = torch.tensor(row[1:]).unsqueeze(1)
        kl = (q.exp() * (q - p)).sum(-1)  # KL(second ‖ first)
        for b, (start, end) in enumerate(zip(found.edges, found.edges[1:], strict=False)):
            place = slice(start - 1, end - 1)
            for m, logprobs in enumerate((p, q)):
                assert found.nll[m, w, b] == pytest.approx(
                    -float(logprobs[place].gather(1, targets[place]).sum()), rel=1e-4
                )
            assert found.kl[w, b] == pytest.approx(float(kl[place].sum()), rel=1e-3)
    summary = found.rows()
    assert sum(row["tokens"] for row in summary) == 2 * 699
    assert summary[-1]["ratio"] == pytest.approx(summary[-1]["perplexity"] / summary[-1]["against"])


def test_few_bits_read_the_same_cache_as_short_windows(pair, tiny):
    """By position and by window are two ways to sum the same losses."""
    text = make_text(300)
    tokenizer = load_tokenizer(tiny("llama"))
    row = [list(tokenizer(text)["input_ids"])]
    for kind in ("bf16", "int8", "int4"):
        by_window = score(pair[0], tokenizer, [Window(text, "k")], kind)
        assert score_positions(pair[:1], row, [kind]).nll.sum() == pytest.approx(by_window.nll[0], rel=1e-4)


def test_a_model_against_itself_loses_nothing_without_rounding_and_something_with(pair):
    rows = long_rows(DOCUMENTS, byte_tokenizer(), 512)[:2]
    same = score_positions([pair[0], pair[0]], rows, (None, None))
    assert abs(same.kl).max() < 1e-3
    few = score_positions([pair[0], pair[0]], rows, ("int4", None))
    assert few.kl[:, -1].min() > 10 * abs(same.kl).max()


class Copier:
    """Answers with the number that stands behind the place asked for: a model that retrieves perfectly."""

    def __init__(self, model, wrong=False):
        self.config, self.device, self.inner, self.wrong, self.seen = model.config, model.device, model, wrong, ""
        self.tokenizer = byte_tokenizer()

    def __call__(self, input_ids, past_key_values, **kwargs):
        length = past_key_values.get_seq_length()
        output = self.inner(input_ids=input_ids, past_key_values=past_key_values, **kwargs)
        self.seen = self.seen[:length] + "".join(chr(t) for t in map(self._plain, input_ids[0].tolist()))
        logits = torch.zeros(1, input_ids.shape[1], 260)
        for i in range(input_ids.shape[1]):
            text = self.seen[: length + i + 1]
            logits[0, i, self._next(text)] = 50.0
        output.logits = logits[:, -1:] if kwargs.get("logits_to_keep") == 1 else logits
        return output

    def _plain(self, token):
        return ord(self.tokenizer.decode([token]))

    def _next(self, text):
        before, _, question = text.rpartition("\n\n")
        head, found, _ = question.partition(" is")
        place = before.find(head + found) + len(question)
        if not before or not found or self.wrong:
            return 0
        return self.tokenizer(before[place])["input_ids"][0]


def test_numbers_that_are_one_token_are_scored(pair):
    item = NeedleItem(256, 0.0, (1, 2, 3), ((4,), (5,), (6,), (7,)), 2)
    logits = pair[0](torch.tensor([[1, 2, 3]])).logits[0, -1]
    best = int(logits[4:8].argmax()) == 2
    assert score_needles(pair[0], [item]).right == [int(best)]


def test_a_perfect_reader_finds_everything_and_a_blind_one_nothing(pair):
    items = needles([Document("A word. " * 200, "k")], byte_tokenizer(), 300, items=10)
    found = score_needles(Copier(pair[0]), items)
    assert (found.right, found.exact) == ([1] * 10, [1] * 10)
    blind = score_needles(Copier(pair[0], wrong=True), items)
    assert sum(blind.exact) == 0
    change = found.change_from(blind, 300)
    assert change["exact"].value == 1
    (row, *by_depth) = found.rows()
    assert (row["length"], row["depth"], row["items"], row["chance"], row["accuracy"]) == (300, None, 10, 0.25, 1)
    assert [r["depth"] for r in by_depth] == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("kind", [None, "int8"])
@torch.no_grad()
def test_options_are_scored_as_if_alone(pair, kind):
    prompt = tuple(byte_tokenizer()(make_text(150))["input_ids"])
    options = tuple(tuple(byte_tokenizer()(word)["input_ids"]) for word in (" 123", " 456", " 789", " 321"))
    found = score_needles(pair[0], [NeedleItem(160, 0.5, prompt, options, 0)], kind)
    sums = []
    for option in options:
        logprobs = pair[0](torch.tensor([prompt + option])).logits[0].log_softmax(-1)
        sums.append(sum(float(logprobs[len(prompt) - 1 + i, t]) for i, t in enumerate(option)))
    ranks = sorted(sums)
    if ranks[-1] - ranks[-2] > 0.2:
        assert found.right == [int(sums.index(ranks[-1]) == 0)]


def test_eval_reports_the_long_context(tiny, tmp_path, cache):
    text = tmp_path / "text.txt"
    text.write_text(make_text(9000))
    other = make_model("llama", tmp_path / "other", seed=1)
    result = regear.eval(
        other, against=tiny("llama"), kv="int8", text=[text], long=True, context=512, items=5, speed=False,
        report=tmp_path / "report",
    )  # fmt: skip
    found = result["long"]
    assert (found["context"], found["limit"], found["windows"]) == (512, 4096, 9000 // 512)
    assert [row["to"] for row in found["positions"]] == [64, 128, 256, 512]
    assert all(row["ratio_ci"][0] <= row["ratio"] <= row["ratio_ci"][1] for row in found["positions"])
    assert {row["length"] for row in found["needle"]} == {256, 512}
    assert found["needle"][0]["change"]["accuracy"][1] <= found["needle"][0]["change"]["accuracy"][2]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Perplexity by position" in page
    assert "Planted facts" in page


def test_contexts_that_cannot_be_are_refused(pair):
    tokenizer = byte_tokenizer()
    for wrong in (100, 5000):
        with pytest.raises(RecipeError, match="256 to 4096"):
            long_context(pair, tokenizer, DOCUMENTS, kinds=(None, None), context=wrong)
    with pytest.raises(DataError, match="give more text"):
        long_context(pair, tokenizer, [Document("Short. " * 20, "k")], kinds=(None, None), context=512)


def test_without_a_context_the_text_sets_it(pair):
    found = long_context(pair[:1], byte_tokenizer(), DOCUMENTS, kinds=(None,), items=1)
    assert (found["context"], found["windows"]) == (2048, 4)
    assert math.isfinite(found["positions"][-1]["perplexity"])
