"""The decoder in few operations: used where it proves equal to transformers' own, and only there."""

import numpy as np
import pytest
import torch

from regear.engine import compiled, lean
from regear.engine.compiled import CompiledDecoder
from regear.engine.local import LocalEngine
from regear.engine.runner import AttentionRunner
from regear.engine.types import Request
from regear.models.load import load_model
from tests.tiny import FAMILIES

LEAN = [family for family in FAMILIES if family != "qwen3-moe"]
REQUESTS = [Request([7, 8, 9], 12), Request(list(range(40)), 9), Request([3], 15)]


def stock(model, request):
    ids = torch.tensor([list(request.prompt)])
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_tokens, do_sample=False, eos_token_id=None
    )
    return found[0, len(request.prompt) :].tolist()


@pytest.mark.parametrize("decoder", [CompiledDecoder, lean.LeanDecoder])
@pytest.mark.parametrize("family", LEAN)
def test_every_dense_family_is_proven_and_writes_the_same_text(family, decoder, tiny, monkeypatch):
    if decoder is lean.LeanDecoder:
        monkeypatch.setattr(compiled, "native", None)
    model = load_model(tiny(family))
    wanted = [stock(model, request) for request in REQUESTS]
    engine = LocalEngine(model)
    assert type(engine.runner.lean) is decoder
    assert [completion.token_ids for completion in engine.generate(REQUESTS)] == wanted


def test_experts_keep_the_models_own_decoder(tiny):
    assert AttentionRunner(load_model(tiny("qwen3-moe"))).lean is None


DEFECTS = {
    "scale": lambda few: setattr(few, "scaling", 2 * few.scaling),
    "eps": lambda few: setattr(few, "eps", 0.1),
    "gain": lambda few: setattr(few.layers[1], "before", few.layers[0].before),
    "map": lambda few: setattr(few.layers[0], "output", few.layers[1].output),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_decoder_that_differs_is_not_used(defect, tiny, monkeypatch):
    made = lean.LeanDecoder.__init__

    def broken(self, model, *, packed):
        made(self, model, packed=packed)
        DEFECTS[defect](self)

    model = load_model(tiny("qwen3"))
    wanted = stock(model, REQUESTS[1])
    monkeypatch.setattr(lean.LeanDecoder, "__init__", broken)
    engine = LocalEngine(model)
    assert engine.runner.lean is None
    assert engine.generate([REQUESTS[1]])[0].token_ids == wanted


@pytest.mark.parametrize("name", ["attend", "gate", "add_norm", "begin"])
def test_compiled_code_that_differs_is_not_used(name, tiny, monkeypatch):
    real = compiled.native.Layers32

    class Broken(real):
        pass

    def broken(self, *arguments):
        if name == "begin":
            arguments = list(arguments)
            arguments[1] = arguments[1] - (arguments[1] > 0)  # rows read from one slot before their end
            real.begin(self, *arguments)

    setattr(Broken, name, broken)
    monkeypatch.setattr(compiled, "native", type("Native", (), {"Layers32": Broken}))
    assert type(AttentionRunner(load_model(tiny("qwen3"))).lean) is lean.LeanDecoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", LEAN)
def test_both_decoders_find_the_same_scores(family, dtype, tiny, monkeypatch):
    model = load_model(tiny(family)).to(dtype)
    runners = [AttentionRunner(model)]
    with monkeypatch.context() as without:
        without.setattr(compiled, "native", None)
        runners.append(AttentionRunner(model))
    generator, starts = np.random.default_rng(0), np.zeros(3, np.int64)
    for runner in runners:
        runner.reserve(4, 64, 0)
    for counts in ([9, 0, 30], [1, 1, 1], [4, 2, 1], [1, 20, 3]):
        counts = np.array(counts)
        wanted = np.arange(counts.max()) < counts[:, None]
        tokens = generator.integers(0, 200, wanted.shape)
        ours, theirs = (runner.read(0, tokens, counts, starts, wanted) for runner in runners)
        bound = 30 * torch.finfo(dtype).eps * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, atol=bound, rtol=0)
        starts = starts + counts


def test_weights_trained_since_are_read(tiny):
    model = load_model(tiny("llama"))
    engine = LocalEngine(model)
    before = engine.generate([REQUESTS[0]])[0].token_ids
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.01)
    assert LocalEngine(model).generate([REQUESTS[0]])[0].token_ids == stock(model, REQUESTS[0]) != before


def scores(runner, pieces, row=0, beside=()):
    """Scores after every token of a text that is read in pieces, each beside others in the rows around it."""
    rows = row + 1 + len(beside)
    runner.reserve(rows, 64, 0)
    found, at = [], 0
    for piece in pieces:
        width = max(len(piece), *map(len, beside)) if beside else len(piece)
        texts = [[5]] * row + [piece, *beside]
        padded = np.zeros((rows, width), np.int32)
        for i, text in enumerate(texts):
            padded[i, : len(text)] = text
        counts = np.array([len(text) for text in texts])
        starts = np.full(rows, at)
        logits = runner.read(0, padded, counts, starts, np.arange(width) < counts[:, None])
        found.append(logits[row : row + len(piece)])
        runner.keep(0, counts)
        at += len(piece)
    return torch.cat(found)


@pytest.mark.parametrize(("family", "dtype"), [*((family, torch.float32) for family in LEAN), ("llama", torch.float64)])
def test_scores_are_the_same_to_the_bit_whatever_is_read_beside(family, dtype, tiny):
    runner = AttentionRunner(load_model(tiny(family)).to(dtype))
    assert isinstance(runner.lean, CompiledDecoder)
    text = torch.randint(60, (37,), generator=torch.Generator().manual_seed(1)).tolist()
    wanted = scores(runner, [text])
    assert torch.equal(scores(runner, [[token] for token in text]), wanted)
    assert torch.equal(scores(runner, [text[:5], text[5:6], text[6:30], text[30:]]), wanted)
    assert torch.equal(scores(runner, [text[:20], text[20:]], row=2, beside=[[3] * 9, [4]]), wanted)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(scores(runner, [text]), wanted)
    finally:
        torch.set_num_threads(before)
