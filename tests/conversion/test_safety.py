"""Nothing of the user's is lost, no wrong result passes as right, and two processes do not trip each other."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import regear
from regear.cli.main import run
from regear.core.errors import CheckpointError, DataError, IncompatibleModel, RecipeError
from tests.conversion.test_convert import contents, run_killed
from tests.tiny import make_model, make_text, small


@pytest.mark.parametrize("where", ["model", "model/inside", "."])
def test_force_never_replaces_the_model_or_what_regear_did_not_make(where, tiny, text, tmp_path, cache):
    shutil.copytree(tiny("llama"), tmp_path / "precious" / "model")
    before = contents(tmp_path / "precious" / "model")
    with pytest.raises(CheckpointError, match="overlaps"):
        regear.convert(
            tmp_path / "precious" / "model", tmp_path / "precious" / where, *small(text), to="mla", force=True
        )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("x")
    with pytest.raises(CheckpointError, match="will not replace"):
        regear.convert(tiny("llama"), tmp_path / "mine", *small(text), to="mla", force=True)
    assert contents(tmp_path / "precious" / "model") == before
    assert (tmp_path / "mine" / "keep.txt").exists()


def test_a_dangling_link_is_not_an_output(tiny, text, tmp_path, cache):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="something else"):
        regear.convert(tiny("llama"), tmp_path / "out", *small(text), to="mla")


def test_a_killed_forward_pass_does_not_spoil_a_later_curvature(tiny, text, tmp_path):
    care = [*small(text), "convert.preset=care-uniform"]
    killed = run_killed(tiny("llama"), tmp_path / "a", "calibrate", 2, care, tmp_path / "home")
    assert killed.returncode != 0
    after = run_killed(tiny("llama"), tmp_path / "b", "never", 0, small(text), tmp_path / "home")
    assert after.returncode == 0, after.stderr
    fresh = run_killed(tiny("llama"), tmp_path / "c", "never", 0, small(text), tmp_path / "fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert contents(tmp_path / "b") == contents(tmp_path / "c")


def test_two_processes_share_one_calibration(tiny, text, tmp_path):
    environment = {**os.environ, "REGEAR_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "regear.cli.main", "convert", str(tiny("llama")), "--to", "mla", *small(text)]
    runs = [
        subprocess.Popen([*words, "-o", str(tmp_path / name)], env=environment, stderr=subprocess.PIPE) for name in "ab"
    ]
    assert [(process.wait(), process.stderr.read()) for process in runs] == [(0, b""), (0, b"")]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_sensitivities_are_not_shared_between_value_weights(tiny, text, tmp_path, cache, monkeypatch):
    words = [*small(text), "convert.factor=attention", "convert.allocate=measured"]
    regear.convert(tiny("llama"), tmp_path / "a", *words, "convert.value_weight=1.0", to="mla")
    regear.convert(tiny("llama"), tmp_path / "b", *words, "convert.value_weight=0.01", to="mla")
    monkeypatch.setenv("REGEAR_HOME", str(tmp_path / "fresh"))
    regear.convert(tiny("llama"), tmp_path / "c", *words, "convert.value_weight=0.01", to="mla")
    assert contents(tmp_path / "b") == contents(tmp_path / "c")


def test_text_used_twice_is_said_so(tiny, text, tmp_path, cache, capsys):
    regear.convert(tiny("llama"), tmp_path / "out", *small(text), f"evaluation.text=[{text}]", to="mla")
    assert "evaluation windows are also calibration" in capsys.readouterr().err
    assert "also calibration or selection text" in (tmp_path / "out" / "README.md").read_text()
    regear.convert(tiny("llama"), tmp_path / "out2", *small(text), to="mla")
    assert "used for nothing else" in (tmp_path / "out2" / "README.md").read_text()


@pytest.mark.parametrize(
    "row", ['{"text": "x", "weight": NaN}', '{"text": "x", "weight": Infinity}', '{"text": "\\ud800"}']
)
def test_rows_that_would_poison_are_refused(row, tiny, text, tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": make_text()}) + "\n" + row + "\n")
    with pytest.raises(DataError, match="line 2"):
        regear.convert(tiny("llama"), tmp_path / "out", *small(text), f"calibration.text=[{path}]", to="mla")


def test_short_rows_a_mark_and_odd_separators_are_read(tiny, text, tmp_path, cache):
    path = tmp_path / "rows.jsonl"
    rows = "\n".join(json.dumps({"text": "short\u2028row " * 20}, ensure_ascii=False) for _ in range(40))
    path.write_text("\ufeff" + rows)
    result = regear.convert(tiny("llama"), tmp_path / "out", *small(text), f"calibration.text=[{path}]", to="mla")
    assert result["kl"] > 0


def test_a_model_that_computes_nan_is_not_scored(tiny, text, tmp_path, cache):
    path = make_model("llama", tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="computes NaN"):
        regear.eval(path, text=[text], speed=False)


@pytest.mark.parametrize("family", ["llama", "qwen3-wide"])
@pytest.mark.parametrize("align", [1, 8, 16])
@pytest.mark.parametrize("ratio", ["1", "0.7", "1/3"])
def test_the_cache_never_exceeds_its_budget(family, align, ratio, tiny, text, tmp_path, cache):
    words = [*small(text, 2048), f"convert.align={align}", f"convert.kv_ratio={ratio}"]
    planned = regear.convert(tiny(family), None, *words, to="mla", dry_run=True)["kv_floats_per_token"]
    swept = regear.sweep(tiny(family), None, *words, ratios=[ratio])["points"][0]
    written = regear.convert(tiny(family), tmp_path / "out", *words, to="mla")["kv_floats_per_token"]
    assert written["after"] == swept["kv_floats_per_token"] <= planned["after"] <= planned["before"]
    ranks = json.loads((tmp_path / "out" / "config.json").read_text())["latent_ranks"]
    assert all(r[0] % align == 0 for r in ranks)


def test_missing_keys_mean_what_transformers_takes_them_to_mean(tiny, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(tiny("mistral"), path)
    config = json.loads((path / "config.json").read_text())
    del config["sliding_window"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleModel, match="sliding_window=4096"):
        regear.convert(path, None, to="mla", dry_run=True)


def test_a_tokenizer_of_another_vocabulary_is_refused(text, tmp_path, cache):
    path = make_model("llama", tmp_path / "m", vocab_size=40, eos_token_id=1, pad_token_id=1)
    with pytest.raises(CheckpointError, match="vocabulary of 40"):
        regear.convert(path, tmp_path / "out", *small(text), to="mla")


def test_quantised_weights_are_refused(tiny, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(tiny("llama"), path)
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match="stored as F8_E4M3"):
        regear.convert(path, None, to="mla", dry_run=True)


@pytest.mark.parametrize(
    "words",
    [
        ["--sweep", "--dry-run"],
        ["--sweep", "--force"],
        ["--ratios", "1/2"],
        ["--presets", "svd"],
        ["convert.preset=[a]"],
        ["seed=-1"],
        ["--device", "foo", "-o", "out"],
        ["--device", "meta", "-o", "out"],
        ["--device", "hpu", "-o", "out"],
        ["--seed", "-1"],
        ["-C", "."],
        ["-o", "MODEL", "--sweep"],
        ["calibration.text=[MODEL/config.json/x]", "-o", "out"],
    ],
)
def test_mistakes_are_code_two(words, tiny, text, tmp_path, cache, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = contents(tiny("llama"))
    model = str(tiny("llama"))
    words = [word.replace("MODEL", model) for word in words]
    assert run(["convert", model, "--to", "mla", *small(text), *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert contents(tiny("llama")) == before


def test_a_cache_that_cannot_be_made_is_code_two(tiny, text, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REGEAR_HOME", str(tmp_path / "file" / "home"))
    assert run(["convert", str(tiny("llama")), "--to", "mla", *small(text), "-o", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("out*"))


def test_greedy_ignores_a_repetition_penalty_nobody_asked_for(tiny, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(tiny("llama"), path)
    settings = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 5.0}))
    plain, penalised = (regear.generate(p, "the fox", max_tokens=12)["token_ids"] for p in (tiny("llama"), path))
    assert plain == penalised


def test_a_refused_recipe_of_a_sweep_is_found_before_any_work(tiny, text, cache):
    steps = []
    with pytest.raises(RecipeError, match="below one rank"):
        regear.sweep(tiny("llama"), None, *small(text), ratios=["1/2", "0.01"], progress=lambda *a: steps.append(a))
    assert steps == []
