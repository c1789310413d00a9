"""What a model writes is compared token by token, also where it stops at once or has little to say."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from transformers import AutoModelForCausalLM

from regear.measure.generation import NEW_TOKENS, PROMPT_TOKENS, Written, repeated, write
from regear.tasks.text import Window, cut, read_documents
from tests.tiny import byte_tokenizer

TOKENS = st.lists(st.integers(0, 3), max_size=12)


@pytest.mark.parametrize(
    ("mine", "theirs", "share"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 1.0),
        ([1, 2, 9, 4], [1, 2, 3, 4], 0.5),
        ([9, 2, 3, 4], [1, 2, 3, 4], 0.0),
        ([1, 2], [1, 2, 3, 4], 0.5),  # stopped too early
        ([1, 2, 3, 4], [1, 2], 0.5),  # did not stop
        ([], [1, 2], 0.0),
        ([], [], 1.0),  # both stopped at once
    ],
)
def test_agreement_counts_what_is_the_same_up_to_the_first_difference(mine, theirs, share):
    assert Written([mine]).agreement(Written([theirs])) == share
    assert Written([mine, theirs]).agreement(Written([theirs, theirs])) == (share + 1) / 2


@given(TOKENS, TOKENS)
def test_agreement_is_symmetric_and_whole_only_for_the_same_text(one, two):
    share = Written([one]).agreement(Written([two]))
    assert share == Written([two]).agreement(Written([one]))
    assert (share == 1) == (one == two)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ([], 0.0),
        ([1, 2, 3], 0.0),  # shorter than what is counted
        (list(range(20)), 0.0),
        ([7] * 13, 0.9),  # ten 4-grams, all the same
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),  # the fifth of five 4-grams was there
    ],
)
def test_repetition_is_the_share_of_grams_written_before(tokens, share):
    assert repeated(tokens) == pytest.approx(share)


def windows_of(text, count):
    (document,) = read_documents([text], "evaluation")
    return cut(document)[:count]


def test_a_model_agrees_with_itself_and_less_with_another(tiny, text):
    model = AutoModelForCausalLM.from_pretrained(tiny("llama")).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    windows = windows_of(text, 2)
    mine, again, theirs = (write(x, byte_tokenizer(), windows, prompts=2) for x in (model, model, other))
    assert mine.summary(again)["agreement"] == 1
    assert theirs.summary(mine)["agreement"] < 1
    greedy = model(torch.tensor([byte_tokenizer()(windows[0].text)["input_ids"][:PROMPT_TOKENS]])).logits[0, -1]
    assert mine.tokens[0][0] == int(greedy.argmax())
    assert mine.summary(mine)["prompts"] == 2


def test_a_model_that_ends_at_once_writes_one_token_and_repeats_nothing(tiny, text):
    model = AutoModelForCausalLM.from_pretrained(tiny("llama")).eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens are as likely: the first, 0, is taken
    windows = windows_of(text, 2)
    model.generation_config.eos_token_id = 0
    found = write(model, byte_tokenizer(), windows, prompts=2).summary(Written([[0], [0]]))
    assert found == {"prompts": 2, "agreement": 1.0, "repetition": 0.0, "length": 1.0}
    model.generation_config.eos_token_id = None
    endless = write(model, byte_tokenizer(), windows, prompts=2).summary(Written([[0], [0]]))
    assert endless["length"] == NEW_TOKENS
    assert endless["repetition"] > 0.9


def test_a_text_shorter_than_a_prompt_is_gone_on_from(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny("llama")).eval()
    found = write(model, byte_tokenizer(), [Window("rain", "short")])
    assert len(found.tokens) == 1
    assert 1 <= len(found.tokens[0]) <= NEW_TOKENS
