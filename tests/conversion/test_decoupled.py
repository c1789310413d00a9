"""Decoupled RoPE end to end on tiny models: what is exact, what is chosen, what is refused."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import regear
from regear.conversion.calibrate import Tap
from regear.conversion.rope_curvature import curvature, fit_rotations, terms
from regear.conversion.stream import Source, batches
from regear.core.errors import IncompatibleModel, RecipeError
from regear.models.families import describe
from regear.models.store import Store
from regear.ops.rope import components, score_gradient, turned
from tests.tiny import make_model, make_text, small

LINEAR = ["llama", "llama-tied", "llama-bias", "llama3-rope", "mistral", "qwen2"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(make_text())
    return path


def convert(model, out, text, *words):
    return regear.convert(model, out, *small(text), *words)


def chosen(out):
    return json.loads((out / "regear.json").read_text())["chosen"]


@pytest.mark.parametrize("family", LINEAR)
def test_with_every_key_turning_the_same_cache_holds_the_same_model(family, tmp_path, text):
    result = convert(make_model(family, tmp_path / "m"), tmp_path / "o", text, "convert.preset=parity")
    assert result["kl"] < 1e-9
    assert result["kv_floats_per_token"] == {"before": 144, "after": 144}
    assert chosen(tmp_path / "o")["rope_dim"] == 24


@pytest.mark.parametrize("format_", ["regear_mla", "deepseek_v3", "youtu"])
def test_one_key_head_is_exact_in_every_format(format_, tmp_path, text):
    source = make_model("llama", tmp_path / "m", num_key_value_heads=1)
    words = ["convert.preset=decoupled-grid", "convert.kv_ratio=1", f"convert.format={format_}"]
    assert convert(source, tmp_path / "o", text, *words)["kl"] < 1e-8


@pytest.mark.parametrize("words", [["convert.rope=decoupled"], ["convert.preset=transmla"], ["convert.format=youtu"]])
@pytest.mark.parametrize("ratio", ["3/4", "1/2"])
def test_the_budget_holds_latents_and_turning_keys(words, ratio, tmp_path, text):
    result = convert(make_model("llama", tmp_path / "m"), tmp_path / "o", text, *words, f"convert.kv_ratio={ratio}")
    floats = result["kv_floats_per_token"]
    assert 0 < floats["after"] <= eval(ratio) * floats["before"]
    assert floats["after"] > (eval(ratio) - 0.05) * floats["before"]


def test_the_width_with_the_least_kl_on_selection_text_is_taken(tmp_path, text):
    words = ["convert.rope=decoupled", "convert.kv_ratio=3/4"]
    convert(make_model("llama", tmp_path / "m"), tmp_path / "o", text, *words)
    found = chosen(tmp_path / "o")
    kl = {dim: kl for dim, _, kl in found["selection_kl"]}
    assert len(kl) > 2
    assert kl[found["rope_dim"]] == min(kl.values())


def test_chosen_keys_lose_less_than_those_of_most_energy(tmp_path, text):
    """On equal floats, with nothing else changed: what turns is chosen by loss or by energy."""
    source = make_model("llama", tmp_path / "m")
    words = ["convert.kv_ratio=1", "convert.rope_dim=12"]
    found = [
        convert(source, tmp_path / name, text, f"convert.preset={name}", *words)["kl"]
        for name in ("decoupled", "decoupled-grid", "transmla")
    ]
    assert found[0] < found[1] < found[2]


def test_a_strict_export_loads_and_generates_without_regear(tmp_path, text):
    source = make_model("llama-tied", tmp_path / "m")
    words = ["convert.kv_ratio=3/4", "convert.rope_dim=12"]
    convert(source, tmp_path / "strict", text, *words, "convert.format=deepseek_v3")
    convert(source, tmp_path / "own", text, *words, "convert.preset=decoupled-grid")
    ids = torch.arange(20).unsqueeze(0)
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "own").generate(
        ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids)
    )
    script = (
        "import json, sys, torch; from transformers import AutoModelForCausalLM\n"
        "model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False, "
        "output_loading_info=True)\n"
        "assert 'regear' not in sys.modules and not report['missing_keys'] and not report['unexpected_keys'], report\n"
        "ids = torch.arange(20).unsqueeze(0)\n"
        "out = model.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids), "
        "return_dict_in_generate=True)\n"
        "layer = out.past_key_values.layers[0]\n"
        "print(json.dumps([out.sequences.tolist(), list(layer.keys.shape[1::2]), list(layer.values.shape[1::2])]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "strict")]
    tokens, latent, rope = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert tokens == own.tolist()
    assert (latent, rope) == ([1, 24], [1, 12])


def test_normed_keys_are_predicted_not_dropped(tmp_path, text):
    """Without their norm the keys would be scaled at random: the prediction has to come close to them."""
    source = make_model("qwen3", tmp_path / "m")
    own = convert(source, tmp_path / "own", text, "convert.preset=parity")
    assert own["kl"] < 0.01
    strict = convert(source, tmp_path / "strict", text, "convert.kv_ratio=1", "convert.format=deepseek_v3")
    assert own["kl"] < strict["kl"] < 1.0
    with pytest.raises(IncompatibleModel, match="keys with a norm"):
        convert(source, tmp_path / "x", text, "convert.preset=transmla")


@pytest.mark.parametrize(
    ("family", "format_", "message"),
    [
        ("qwen2", "deepseek_v3", "bias on queries"),
        ("llama-bias", "youtu", "bias on the MLP"),
        ("olmo2", "regear_mla", "all heads at once; use convert.rope=exact"),
        ("olmo2", "deepseek_v3", "norms after attention"),
        ("qwen3-moe", "deepseek_v3", "softmax routing"),
    ],
)
def test_what_a_format_cannot_hold_is_named_before_converting(family, format_, message, tmp_path, text):
    words = ["convert.rope=decoupled", f"convert.format={format_}"]
    with pytest.raises(IncompatibleModel, match=message):
        regear.convert(make_model(family, tmp_path / "m"), tmp_path / "o", *small(text), *words, dry_run=True)


def test_biases_under_a_query_norm_are_refused(tmp_path, text):
    source = make_model("qwen3", tmp_path / "m", attention_bias=True)
    with pytest.raises(IncompatibleModel, match=r"biases under a QK-norm; use convert\.rope=exact"):
        regear.convert(source, tmp_path / "o", *small(text), "convert.rope=decoupled", dry_run=True)


def test_unequal_ranks_are_allowed_in_our_own_format(tmp_path, text):
    words = ["convert.rope=decoupled", "convert.allocate=curvature", "convert.rope_dim=6", "convert.kv_ratio=1/2"]
    convert(make_model("llama", tmp_path / "m"), tmp_path / "o", text, *words)
    ranks = [row[0] for row in chosen(tmp_path / "o")["latent_ranks"]]
    assert len(set(ranks)) > 1
    assert sum(ranks) <= 3 * (24 - 6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "o")
    assert [layer.self_attn.rank for layer in model.model.layers] == ranks


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert.rope_dim=12"], "rope_dim belongs to rope=decoupled"),
        (["convert.latent_pad=64"], "latent_pad=64; it belongs to convert.rope=decoupled"),
        (["convert.dtype=bfloat16"], "rope=exact keeps the source's dtypes"),
        (["convert.rope=decoupled", "convert.freqfold=2"], "freqfold belongs"),
        (["convert.rope=decoupled", "convert.rope_dim=7"], "even"),
        (["convert.rope=decoupled", "convert.branches=separate"], "one latent"),
        (["convert.rope=decoupled", "convert.factor=attention"], "factor=attention"),
        (["convert.rope=decoupled", "convert.allocate=measured"], "allocate=measured"),
        (["convert.format=deepseek_v3", "convert.rope_pairs=free"], "rope_pairs=free"),
        (["convert.format=deepseek_v3", "convert.allocate=curvature"], "one latent width"),
        (["convert.rope=decoupled", "convert.rope_dim=48"], "at most 24"),
        (["convert.format=youtu", "convert.rope_dim=10"], "divisor of 12"),
        (["convert.rope=decoupled", "convert.rope_dim=24", "convert.kv_ratio=1/2"], "no room"),
        (["convert.rope=decoupled", "convert.rope_dim=12", "convert.align=16"], "no room"),
        (["convert.rope=decoupled", "convert.rope_dim=12", "convert.latent_pad=4"], "wanted 12 or more"),
        (["convert.preset=transmla", "convert.rope_dim=6", "convert.freqfold=3"], "multiple of 2"),
    ],
)
def test_what_cannot_be_is_refused_before_any_weight_is_read(words, message, tmp_path, text):
    source = make_model("llama", tmp_path / "m")
    with pytest.raises(RecipeError, match=message):
        regear.convert(source, tmp_path / "o", *small(text), *words, dry_run=True)
    assert not (tmp_path / "o").exists()


def attended(tmp_path):
    """A few windows of one layer of a tiny model, as calibration sees them."""
    store = Store(make_model("llama", tmp_path / "m"))
    source = Source(store, describe(store.config))
    (batch,) = batches([list(range(9)), list(range(100, 106))], [1.0, 2.0])
    layer = source.layer(1)
    tap = Tap(layer)
    hidden = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    output = source.run(layer, hidden)
    flow = torch.randn_like(output) * batch.real[..., None]
    places = [tap.outputs["k_proj"], tap.outputs["v_proj"], tap.inputs["o_proj"]]
    *gradients, mixed = torch.autograd.grad(output, places, flow)
    seen = tap.seen(batch, gradients)
    return tap.windows(batch, seen, mixed, source.phases(9)), gradients, batch


def test_gradients_of_keys_and_values_are_autograds(tmp_path):
    from regear.conversion.rope_curvature import output_gradients

    windows, gradients, batch = attended(tmp_path)
    for row, window in enumerate(windows):
        for found, expected in zip(output_gradients(window), gradients, strict=True):
            real = expected[row][batch.real[row]]
            assert torch.allclose(found, real, atol=1e-5 * float(real.abs().max()))


def test_contributions_add_up_to_the_scores(tmp_path):
    windows, _, _ = attended(tmp_path)
    width = windows[0].keys.shape[1]
    random = torch.randn(width, width, dtype=torch.float64)
    basis = components(random @ random.T, None, 2)
    for window in windows:
        for head, (turning, still, _, found) in enumerate(terms(window, basis)):
            scores, _ = score_gradient(window, head)
            assert torch.equal(found, scores)
            key, query = window.key[window.group(head)], window.query[head]
            exact = (scores * (turned(query, window.phase) @ turned(key, window.phase).T)).sum(1)
            assert torch.allclose(turning.sum(1), exact, atol=1e-5)
            assert torch.allclose(still.real.sum(1), (scores * (query @ key.T)).sum(1), atol=1e-5)


def test_no_other_constant_reads_unturned_components_better(tmp_path):
    windows, _, _ = attended(tmp_path)
    random = torch.randn(24, 24, dtype=torch.float64)
    basis = components(random @ random.T, None, 2)
    rho = fit_rotations(windows, basis)
    best = curvature(windows, basis, rho)[0].diagonal()
    for other in (torch.ones_like(rho), torch.zeros_like(rho), rho * 1.2):
        # A little is given to shrinkage; a constant nobody fitted must not win by more.
        assert (curvature(windows, basis, other)[0].diagonal() >= best * 0.9).all()
    assert best.sum() < 0.9 * curvature(windows, basis, torch.ones_like(rho))[0].diagonal().sum()
