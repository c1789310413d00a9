"""`regear heal`: what it gives back, what it records, and what it refuses."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import regear
from regear.cli.main import run as cli
from regear.core.errors import CheckpointError, IncompatibleModel, RecipeError
from regear.healing import job
from regear.models.load import load_model
from regear.models.store import Store
from tests.tiny import make_adapter, make_model, make_text, small


def heal(patient, out, *changes, model=None, **more):
    return regear.heal(
        model or patient.mla, patient.source, out, *patient.words, *changes, text=[patient.training], **more
    )


@pytest.fixture(scope="module")
def healed(patient, tmp_path_factory):
    out = tmp_path_factory.mktemp("healed") / "out"
    return out, heal(patient, out)


def test_the_result_holds_what_scripts_rely_on(healed):
    out, result = healed
    assert result["output"] == str(out)
    assert result["tokens"] == 768
    assert result["seconds"] > 0
    assert result["perplexity"].keys() == {"teacher", "before", "after"}
    assert result["kl"]["after"] < result["kl"]["before"]
    json.dumps(result)


def test_the_output_is_an_ordinary_checkpoint_of_the_same_kind(patient, healed):
    out, _ = healed
    one, other = Store(patient.mla), Store(out)
    assert (one.shapes, one.dtypes) == (other.shapes, other.dtypes)
    assert (out / "config.json").read_bytes() == (patient.mla / "config.json").read_bytes()
    before, after = load_file(patient.mla / "model.safetensors"), load_file(out / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "self_attn" in name and "kv_a_layernorm" not in name}


def test_stock_transformers_loads_it(healed):
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A;"
        f"m = A.from_pretrained({str(healed[0])!r}, trust_remote_code=True, dtype=torch.float32);"
        "assert 'regear' not in sys.modules;"
        "print(m(torch.arange(20)[None]).logits.double().sum().item())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = load_model(healed[0])(torch.arange(20)[None]).logits.detach().double().sum()
    assert float(found.stdout.split()[-1]) == pytest.approx(float(expected), rel=1e-4, abs=1e-3)


def test_the_output_names_no_place_clock_or_host(patient, healed):
    import socket

    out, _ = healed
    for file in out.iterdir():
        if file.suffix in {".json", ".md"} and not file.name.startswith("tokenizer"):
            text = file.read_text()
            for word in (str(out.parent), str(patient.mla.parent), str(patient.source.parent), socket.gethostname()):
                assert word not in text, (file.name, word)
    record = json.loads((out / "regear.json").read_text())
    assert "seconds" not in json.dumps(record)
    assert record["measured"]["texts"]["evaluation"]["perplexity"].keys() == {"teacher", "before", "after"}


def test_nothing_is_done_twice_and_nothing_is_overwritten_unasked(patient, healed, capsys):
    out, first = healed
    again = heal(patient, out, "save_minutes=0")  # how often it saves is no part of the result
    assert again["already_done"]
    assert again["perplexity"] == first["perplexity"]
    words = [
        "heal",
        str(patient.mla),
        *patient.words,
        "--teacher",
        str(patient.source),
        "--text",
        str(patient.training),
    ]
    assert cli([*words, "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["already_done"]
    assert cli([*words, "train.lr=1e-3", "-o", str(out), "--json"]) == 2
    assert "--force" in capsys.readouterr().err


def test_another_recipe_never_goes_on_from_the_steps_of_the_first(patient, tmp_path, monkeypatch):
    from regear.train import loop

    def cut(stage, step, steps, *_):
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop.Stage, "_tell", cut)
        with pytest.raises(KeyboardInterrupt):
            heal(patient, tmp_path / "out", "save_minutes=0")
    assert list(tmp_path.glob("out.run/kept/training/steps/000-*"))
    for words in ({}, {"dry_run": True}):
        with pytest.raises(CheckpointError, match="unfinished training"):
            heal(patient, tmp_path / "out", "train.tokens=512", "train.lr=1e-3", **words)
    assert list(tmp_path.glob("out.run/kept/training/steps/000-*"))
    heal(patient, tmp_path / "out", "train.tokens=512", "train.lr=1e-3", force=True)
    heal(patient, tmp_path / "fresh", "train.tokens=512", "train.lr=1e-3")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "fresh"))
    assert one == other
    assert not (tmp_path / "out.run/kept").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.lrr=1"], r"train\.lrr.*did you mean '(train\.)?lr'"),
        (["train.train=*.self_atn.*"], r"self_atn.*did you mean 'self_attn'"),
        (["stages=[{tokens: 128}, {tokens: 128, freeze: '*'}]"], "nothing is left to train"),
        (["train.batch=3", "train.micro_batch=2"], "batch 3 is not a multiple of micro_batch 2"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_leaves_nothing(patient, tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message) as caught:
        heal(patient, tmp_path / "out", *changes)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_teacher_of_another_vocabulary_is_refused(patient, tmp_path):
    other = make_model("llama", tmp_path / "other", vocab_size=300)
    with pytest.raises(IncompatibleModel, match="predicts 260 tokens and the teacher 300"):
        regear.heal(patient.mla, other, tmp_path / "out", *patient.words, text=[patient.training])
    assert not (tmp_path / "out.run").exists()


def test_a_mixture_of_experts_comes_back_in_its_own_names(tiny, patient, tmp_path):
    mla, out = tmp_path / "mla", tmp_path / "out"
    regear.convert(tiny("qwen3-moe"), mla, *small(patient.training), "convert.kv_ratio=1/4", to="mla")
    words = [*patient.words, "train.train=['*.self_attn.*', '*.mlp.*']", "train.tokens=256"]
    regear.heal(mla, tiny("qwen3-moe"), out, *words, text=[patient.training])
    one, other = Store(mla), Store(out)
    assert (one.shapes, one.dtypes) == (other.shapes, other.dtypes)
    assert any(".experts.0.up_proj" in name for name in other.shapes)


def test_weights_that_could_not_be_written_back_are_refused_before_training(patient, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(patient.mla, odd)
    tensors = load_file(odd / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, odd / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="stored as F8_E4M3"):
        heal(patient, tmp_path / "out", model=odd)
    assert not (tmp_path / "out.run").exists()


def test_an_adapter_can_teach_and_text_that_also_judges_is_told(patient, tmp_path, capsys):
    adapter = make_adapter(patient.source, tmp_path / "adapter", ["q_proj", "v_proj"])
    judged = make_text(2500, seed=2)  # what evaluation.text holds
    (tmp_path / "training.txt").write_text(make_text(3000, seed=9) + judged)
    out = tmp_path / "out"
    regear.heal(patient.mla, adapter, out, *patient.words, "train.tokens=128", text=[tmp_path / "training.txt"])
    record = json.loads((out / "regear.json").read_text())
    assert "with the LoRA adapter adapter" in record["taught_by"]
    seen = record["measured"]["windows_seen_in_training"]
    assert seen > 0
    assert f"{seen} of" in capsys.readouterr().err


def test_the_command_line_says_what_is_missing(patient, tmp_path, capsys):
    assert cli(["heal", str(patient.mla), "-o", str(tmp_path / "out")]) == 2
    assert "--teacher" in capsys.readouterr().err
    assert cli(["heal", str(patient.mla), "--teacher", str(patient.source)]) == 2
    assert "-o DIR" in capsys.readouterr().err
    words = [*patient.words, "--teacher", str(patient.source), "-o", str(tmp_path / "out")]
    assert cli(["heal", str(patient.mla), *words, "--text", str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_strict_export_comes_back_as_it_was(patient, tmp_path, monkeypatch):
    strict, out = tmp_path / "strict", tmp_path / "out"
    words = ["convert.rope=decoupled", "convert.format=deepseek_v3", "convert.kv_ratio=1/2"]
    regear.convert(patient.source, strict, *small(patient.training), *words, to="mla")
    real, measured = job.measure, []
    monkeypatch.setattr(
        job, "measure", lambda model, *rest: measured.append(model.config.model_type) or real(model, *rest)
    )
    result = heal(patient, out, model=strict)
    assert measured == ["deepseek_v3", "deepseek_v3"]  # both sides as they are stored
    assert result["format"] == "deepseek_v3"
    assert (Store(strict).shapes, Store(strict).dtypes) == (Store(out).shapes, Store(out).dtypes)
    assert result["kl"]["after"] < result["kl"]["before"]
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False, dtype=torch.float32)
    assert type(model).__module__.startswith("transformers.models.deepseek_v3")
    ids = torch.tensor([list(make_text(60).encode())])
    assert torch.isfinite(model(ids).logits).all()
