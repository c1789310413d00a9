"""Small random models in float64, requests of every kind, and drafters that guess well, badly and out of bounds."""

import random
from functools import cache

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.types import Request
from tests.canonical import canonical_model
from tests.models.test_mla import OVERLAP, SEPARATE, build
from tests.tiny import CONFIGS, SHAPE, randomise

NAMES = ["llama", "qwen3", "olmo2", "mla", "mla-decoupled"]
RANKS = (SEPARATE, OVERLAP)
TEMPERATURES = (0.0, 0.7, 1.0)
TOP_P = (1.0, 0.8)


@cache
def model(name="llama"):
    """A random model in float64, made once."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        if name == "mla":
            return build(RANKS)
        if name == "mla-decoupled":
            return canonical_model(num_hidden_layers=2).double()
        config = CONFIGS[name]()
        config.vocab_size, config.num_hidden_layers = 61, 2
        config.eos_token_id = config.pad_token_id = 60
        return randomise(AutoModelForCausalLM.from_config(config)).double().eval()
    finally:
        torch.set_rng_state(state)


@cache
def minimal(vocabulary=6, layers=1, scale=1.5):
    """A model so small that thousands of texts take seconds."""
    state = torch.get_rng_state()
    torch.manual_seed(3)
    shape = SHAPE | dict(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    try:
        return randomise(AutoModelForCausalLM.from_config(LlamaConfig(**shape, head_dim=4)), scale).double().eval()
    finally:
        torch.set_rng_state(state)


def requests(count, *, seed=0, vocabulary=60, longest=40, most=12, **settings):
    """Ragged requests: every temperature with every top-p, prompts of 1 to `longest` tokens, different limits."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        period = [draw.randrange(vocabulary) for _ in range(draw.randint(1, longest))]
        prompt = (period * 3)[: draw.randint(1, longest)]  # some repeat themselves, as n-grams like it
        found.append(
            Request(
                prompt,
                max_tokens=draw.randint(1, most),
                temperature=TEMPERATURES[number % 3],
                top_p=TOP_P[number // 3 % 2],
                seed=draw.randrange(2**64),
                stop_tokens=(draw.randrange(vocabulary), draw.randrange(vocabulary)),
                **settings,
            )
        )
    return found


def tokens(completions):
    """What can be compared with ==."""
    return [(completion.token_ids, completion.finish_reason) for completion in completions]


class Knowing:
    """A drafter that knows the whole texts, by their prompt and seed, and spoils what it guesses.

    `spoil(guess, text, most)` returns the guess to make. `faults` says what the engine did wrong; an engine may take
    an exception for a fault of the drafter's.
    """

    def __init__(self, asked, answers, spoil):
        self.answers = {
            (tuple(request.prompt), request.seed): [*request.prompt, *answer.token_ids]
            for request, answer in zip(asked, answers, strict=True)
        }
        self.spoil, self.kept, self.guessed = spoil, 0, 0
        self.finished, self.emitted, self.faults = set(), {}, []

    def propose(self, texts, most):
        guesses = []
        for text, count in zip(texts, most, strict=True):
            whole = self.answers[tuple(text.tokens[: text.prompt].tolist()), text.request.seed]
            known = len(text.tokens)
            if whole[:known] != text.tokens.tolist():
                self.faults.append(f"text {text.number} is not what it is without guesses")
            guesses.append(np.array(self.spoil(whole[known : known + count], text, int(count)), np.int32))
        return guesses

    def observe(self, outcomes):
        for outcome in outcomes:
            if outcome.number in self.finished:
                self.faults.append(f"text {outcome.number} is spoken of after its end")
            self.guessed, self.kept = self.guessed + outcome.guessed, self.kept + outcome.kept
            self.emitted.setdefault(outcome.number, []).extend(outcome.emitted.tolist())

    def finish(self, number, tokens, prompt, group):
        self.finished.add(number)


def right(guess, text, most):
    return guess


def half(guess, text, most):
    """Each token wrong half of the time."""
    draw = random.Random(text.request.seed + len(text.tokens))
    return [token if draw.random() < 0.5 else (token + 1) % 60 for token in guess]


def adversarial(guess, text, most):
    """Wrong, none, past the end of the text, a stop token right at the start, one token again and again, the prompt again."""
    known = text.tokens.tolist()
    return [
        [(token + 1) % 60 for token in guess],
        [],
        [*guess, *[7] * 9][:most],
        [*guess[:1], *[60] * 3][:most],
        [known[-1]] * most,
        known[: text.prompt][:most],
        guess[:-1],
    ][(text.request.seed + len(known)) % 7]


DRAFTERS = {
    "ngram": lambda asked, answers: NgramDrafter(longest=3, shortest=1),
    "right": lambda asked, answers: Knowing(asked, answers, right),
    "half": lambda asked, answers: Knowing(asked, answers, half),
    "adversarial": lambda asked, answers: Knowing(asked, answers, adversarial),
}
