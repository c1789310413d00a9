"""The law of whole texts is the model's, with guesses and without; and the checks of it see every defect put in."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from regear.engine import sampler, verify
from regear.engine.cache import Pass
from regear.engine.local import Limits, LocalEngine
from regear.engine.runner import AttentionRunner
from regear.engine.types import Request
from regear.ops import noise
from tests.engine.small import Knowing, half, minimal, model, requests, tokens

ALPHA = 1e-4
VOCABULARY, LENGTH, PROMPT = 5, 3, [1, 4, 2]
RULES = dict(temperature=0.8, top_p=0.95)
SAMPLES = 3000


class Unknowing:
    """Guesses that hang on the text alone, right by chance."""

    def propose(self, texts, most):
        return [
            np.array([(text.tokens[-1] * 2 + i) % VOCABULARY for i in range(count)], np.int32)
            for text, count in zip(texts, most, strict=True)
        ]

    def observe(self, outcomes):
        pass

    def finish(self, number, tokens, prompt, group):
        pass


def exact_law():
    """Probability of every text of three tokens, by the rules and the model's own scores, without the engine."""
    law = {}
    for text in itertools.product(range(VOCABULARY), repeat=LENGTH):
        law[text] = 1.0
        with torch.no_grad():
            scores = minimal(VOCABULARY)(torch.tensor([[*PROMPT, *text[:-1]]])).logits[0, len(PROMPT) - 1 :]
        for row, token in zip(scores / RULES["temperature"], text, strict=True):
            shares = row.softmax(0)
            order = shares.argsort(descending=True)
            before = shares[order].cumsum(0) - shares[order]
            kept = set(order[before < RULES["top_p"]].tolist())
            law[text] *= float(shares[token] / sum(shares[i] for i in kept)) if token in kept else 0.0
    assert sum(law.values()) == pytest.approx(1)
    return law


def law_holds(drafter):
    """Whether samples over seeds pass a chi-square test against the exact law; rare texts are pooled."""
    asked = [Request(PROMPT, LENGTH, seed=seed, **RULES) for seed in range(SAMPLES)]
    engine = LocalEngine(minimal(VOCABULARY), drafter=drafter, draft=2, limits=Limits(rows=512))
    texts = [tuple(completion.token_ids) for completion in engine.generate(asked)]
    law = exact_law()
    expected = SAMPLES * np.array(list(law.values()))
    drawn = np.array([texts.count(text) for text in law])
    if drawn[expected == 0].any():
        return False
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (drawn, expected)]
    if not pooled[1][-1]:
        pooled = [x[:-1] for x in pooled]
    return stats.chisquare(*pooled).pvalue > ALPHA


@pytest.mark.parametrize("drafter", [None, Unknowing()], ids=["plain", "guesses"])
def test_samples_have_the_exact_law(drafter):
    assert law_holds(drafter)


# What follows breaks the engine on purpose.


@pytest.fixture(scope="module")
def reference():
    asked = requests(24, seed=8)
    penalised = requests(24, seed=9, longest=6, repetition_penalty=1.5, frequency_penalty=0.7)
    return [(group, LocalEngine(model()).generate(group)) for group in (asked, penalised)]


def unchanged(reference):
    """Whether texts with guesses are what they were without."""
    return all(
        tokens(LocalEngine(model(), drafter=Knowing(asked, plain, half)).generate(asked)) == tokens(plain)
        for asked, plain in reference
    )


def resume_too_far(patch):
    whole = verify.kept
    patch.setattr(verify, "kept", lambda drawn, guessed, counts: np.minimum(whole(drawn, guessed, counts) + 1, counts))


def take_every_guess(patch):
    patch.setattr(verify, "kept", lambda drawn, guessed, counts: counts)


def emit_every_guess(patch):
    def kept(drawn, guessed, counts):
        places = np.arange(guessed.shape[1]) < counts[:, None]
        drawn[:, :-1][places] = guessed[places]
        return counts

    patch.setattr(verify, "kept", kept)


def read_the_row_before(patch):
    whole = AttentionRunner.read
    patch.setattr(AttentionRunner, "read", lambda self, *arguments: whole(self, *arguments).roll(1, 0))


def start_one_slot_late(patch):
    whole = AttentionRunner.read

    def read(self, first, tokens, counts, starts, wanted):
        return whole(self, first, tokens, counts, starts + (starts > 0), wanted)

    patch.setattr(AttentionRunner, "read", read)


def see_what_was_cut_back(patch):
    def mask(self):
        slots = torch.arange(self.total)
        return (slots <= self.positions_NQ.unsqueeze(2) + 1).unsqueeze(1)

    patch.setattr(Pass, "mask", mask)


def turn_by_a_wrong_position(patch):
    def shift(module, arguments, kwargs):
        found = kwargs.get("position_ids")
        if found is not None and found.shape[1] > 1:
            kwargs["position_ids"] = found + (found > 0)
        return arguments, kwargs

    network = model().get_decoder()
    handle = network.register_forward_pre_hook(shift, with_kwargs=True)
    patch.callback = handle.remove


def penalise_without_the_guess(patch):
    whole = LocalEngine._draw
    patch.setattr(
        LocalEngine, "_draw", lambda self, logits, rows, positions, *guess: whole(self, logits, rows, positions)
    )


def key_noise_by_step(patch):
    steps = itertools.count()
    patch.setattr(sampler, "keys", lambda seed, position: noise.keys(seed, np.full(len(position), next(steps))))


DEFECTS = [
    resume_too_far,
    take_every_guess,
    emit_every_guess,
    read_the_row_before,
    start_one_slot_late,
    see_what_was_cut_back,
    turn_by_a_wrong_position,
    penalise_without_the_guess,
    key_noise_by_step,
]


class Patch(pytest.MonkeyPatch):
    """Also takes back what is no attribute."""

    callback = staticmethod(lambda: None)

    def undo(self):
        self.callback()
        super().undo()


@pytest.fixture
def patch():
    found = Patch()
    found.setattr("regear.engine.local.runner_for", AttentionRunner)  # whose probe would see some defects first
    yield found
    found.undo()


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_seen_by_comparing_texts(defect, reference, patch):
    defect(patch)
    assert not unchanged(reference)


def test_without_a_defect_nothing_is_seen(reference):
    assert unchanged(reference)


def resume_from_the_plain_law(patch):
    """After a rejected guess a fresh sample: the guess comes out too often."""
    whole = LocalEngine._draw

    def draw(self, logits, rows, positions, guessed=None, offsets=None):
        drawn = whole(self, logits, rows, positions, guessed, offsets)
        if guessed is None or not guessed.shape[1]:
            return drawn
        self.table.seed += np.uint64(1 << 40)
        fresh = whole(self, logits, rows, positions, guessed, offsets)
        self.table.seed -= np.uint64(1 << 40)
        last = guessed.shape[1] - 1
        rejected = (offsets <= last) & (drawn != guessed[rows, np.minimum(offsets, last)])
        return np.where(rejected, fresh, drawn)

    patch.setattr(LocalEngine, "_draw", draw)


def one_noise_for_all_places(patch):
    patch.setattr(sampler, "keys", lambda seed, position: noise.keys(seed))


def forget_top_p(patch):
    patch.setattr(sampler, "top_p", lambda scores, mass: None)


@pytest.mark.parametrize(
    "defect", [resume_from_the_plain_law, one_noise_for_all_places, emit_every_guess, forget_top_p, read_the_row_before]
)
def test_a_defect_is_seen_by_the_law(defect, patch):
    defect(patch)
    assert not law_holds(Unknowing())
