"""Calibration: layer by layer equals the whole model; gradients equal autograd's; a killed pass goes on; pads are nothing."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from regear.conversion.calibrate import calibrate
from regear.conversion.collect import COLLECTORS, Collector
from regear.conversion.stream import Edit, Source, batches, losses
from regear.core.registry import Row
from regear.models.families import describe
from regear.models.store import Store

NAMES = ["kv-moments", "query-energy", "kv-fisher"]


def open_source(path):
    store = Store(path)
    return Source(store, describe(store.config))


def rows(count=6, length=20):
    torch.manual_seed(3)
    return [torch.randint(0, 256, (length - i,)).tolist() for i in range(count)]


def quiet(stage, step, steps):
    pass


class Keep(Collector):
    """Keeps everything it sees, for the tests below."""

    gradient = True

    def __init__(self, spec):
        super().__init__(spec)
        self.rows = []

    def add(self, seen):
        self.rows.append(seen)

    def state(self):
        return {
            "outputs": torch.cat([s.outputs for s in self.rows]),
            "gradients": torch.cat([s.gradients for s in self.rows]),
        }


def test_statistics_equal_the_whole_models(tiny, family, tmp_path):
    path = tiny(family)
    source = open_source(path)
    data = rows()
    found = calibrate(source, batches(data, [1.0] * 6), NAMES[:2], tmp_path, seed=0, progress=quiet)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    seen = {}
    for index, layer in enumerate(model.model.layers):
        for name in "qkv":
            module = getattr(layer.self_attn, f"{name}_proj")

            def hook(module, inputs, output, key=(index, name)):
                bias = 0 if module.bias is None or key[1] == "q" else module.bias
                seen.setdefault(key, []).append((output - bias)[0].detach().double())

            module.register_forward_hook(hook)
    with torch.no_grad():
        for row in data:
            model(torch.tensor([row]))
    for index, statistics in enumerate(found):
        keys, values, queries = (torch.cat(seen[index, name]) for name in "kvq")
        y = torch.cat([keys, values], 1)
        torch.testing.assert_close(statistics["kv_gram"], y.T @ y / len(y), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(statistics["kv_mean"], y.mean(0), atol=1e-4, rtol=1e-4)
        assert float(statistics["kv_count"]) == len(y)
        energy = queries.square().mean(0).view(source.spec.heads, -1)
        torch.testing.assert_close(statistics["query_energy"], energy, atol=1e-4, rtol=1e-4)


def test_streamed_gradients_equal_autograd(tiny, family, tmp_path, monkeypatch):
    monkeypatch.setitem(COLLECTORS.rows, "keep", Row("keep", None, f"{__name__}:Keep", ""))
    path, seed = tiny(family), 5
    source, data = open_source(path), rows(4)
    found = calibrate(source, batches(data, [1.0] * 4), ["keep"], tmp_path, seed=seed, progress=quiet)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    outputs = {}
    for index, layer in enumerate(model.model.layers):
        for name in "kv":
            module = getattr(layer.self_attn, f"{name}_proj")
            module.register_forward_hook(lambda m, i, o, key=(index, name): outputs.update({key: o}))
    uniform = torch.rand(sum(map(len, data)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gradients = {}
    for row, numbers in zip(data, uniform.split([len(row) for row in data]), strict=True):
        logits = model(torch.tensor([row])).logits[0]
        targets = (logits.detach().double().softmax(-1).cumsum(-1) <= numbers[:, None]).sum(1)
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        keys = list(outputs)
        for key, gradient in zip(keys, torch.autograd.grad(loss, [outputs[k] for k in keys]), strict=True):
            gradients.setdefault(key, []).append(gradient[0])
    for index, statistics in enumerate(found):
        want = torch.cat([torch.cat(gradients[index, "k"]), torch.cat(gradients[index, "v"])], 1)
        torch.testing.assert_close(statistics["gradients"], want, atol=1e-4, rtol=1e-3)


def test_pads_and_batching_do_not_matter(tiny, tmp_path):
    source, data = open_source(tiny("qwen2")), rows()
    together = calibrate(source, batches(data, [1.0] * 6, 3), NAMES[:2], tmp_path / "a", seed=0, progress=quiet)
    single = calibrate(source, batches(data, [1.0] * 6, 1), NAMES[:2], tmp_path / "b", seed=0, progress=quiet)
    for a, b in zip(together, single, strict=True):
        for name in a:
            torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-5)


def test_weights_count(tiny, tmp_path):
    source, data = open_source(tiny("llama")), rows(2)
    doubled = calibrate(
        source, batches([data[0]] * 2 + [data[1]], [1.0] * 3), NAMES[:1], tmp_path / "a", seed=0, progress=quiet
    )
    weighted = calibrate(source, batches(data, [2.0, 1.0]), NAMES[:1], tmp_path / "b", seed=0, progress=quiet)
    torch.testing.assert_close(doubled[2]["kv_gram"], weighted[2]["kv_gram"], atol=1e-5, rtol=1e-5)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stage", ["calibrate", "curvature"])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_stopped_pass_goes_on_to_the_same_bits(stage, layer, tiny, tmp_path):
    source, data = open_source(tiny("llama")), batches(rows(10), [1.0] * 10)
    whole = calibrate(source, data, NAMES, tmp_path / "whole", seed=0, progress=quiet)

    def stop(what, step, steps):
        if (what, step) == (stage, layer):
            raise Stop

    with pytest.raises(Stop):
        calibrate(source, data, NAMES, tmp_path / "cut", seed=0, progress=stop)
    resumed = calibrate(source, data, NAMES, tmp_path / "cut", seed=0, progress=quiet)
    for a, b in zip(whole, resumed, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (tmp_path / "cut" / "work").exists()


def test_a_stopped_pass_of_fewer_collectors_leaves_no_gap(tiny, tmp_path):
    source, data = open_source(tiny("llama")), batches(rows(4), [1.0] * 4)

    def stop(stage, step, steps):
        if step == 2:
            raise Stop

    with pytest.raises(Stop):
        calibrate(source, data, NAMES[:1], tmp_path, seed=0, progress=stop)
    found = calibrate(source, data, NAMES[:2], tmp_path, seed=0, progress=quiet)
    assert all("query_energy" in layer for layer in (found[0], found[1], found[2]))


def test_a_later_factor_reuses_the_moments(tiny, tmp_path):
    source, data = open_source(tiny("llama")), batches(rows(10), [1.0] * 10)
    steps = []
    calibrate(source, data, NAMES[:2], tmp_path, seed=0, progress=quiet)
    calibrate(source, data, NAMES[:2], tmp_path, seed=0, progress=lambda *a: steps.append(a))
    assert steps == []
    calibrate(source, data, NAMES, tmp_path, seed=0, progress=lambda *a: steps.append(a))
    assert ("curvature", 3, 3) in steps


def test_losses_of_edits_equal_an_edited_model(tiny):
    path = tiny("llama")
    source, data = open_source(path), rows(3)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    attention = model.model.layers[1].self_attn
    key, value = torch.randn_like(attention.k_proj.weight), torch.randn_like(attention.v_proj.weight)
    bias = torch.randn(len(key))
    base, changed = losses(
        source, batches(data, [1.0] * 3), [None, lambda i: Edit(key, value, bias, None) if i == 1 else None]
    )
    with torch.no_grad():
        for row, nll in zip(data, base.nll, strict=True):
            ids = torch.tensor([row])
            assert nll == pytest.approx(float(model(ids, labels=ids).loss) * (len(row) - 1), rel=1e-4)
        attention.k_proj.weight.copy_(key)
        attention.v_proj.weight.copy_(value)
        attention.k_proj.bias = torch.nn.Parameter(bias)
        for row, nll in zip(data, changed.nll, strict=True):
            ids = torch.tensor([row])
            assert nll == pytest.approx(float(model(ids, labels=ids).loss) * (len(row) - 1), rel=1e-4)
    assert all(kl > 0 for kl in changed.kl)
    assert base.kl == [0.0] * 3
