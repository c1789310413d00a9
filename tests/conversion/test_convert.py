"""The driver: resumes after kill -9 to the same bytes, refuses bad input in one line, leaves nothing half-written."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import regear
from regear.core.errors import CheckpointError, DataError, IncompatibleModel, RecipeError
from tests.tiny import make_model, small

KILL_AT = """
import os, signal, sys, regear
model, out, stage, step, *changes = sys.argv[1:]
def progress(what, done, steps):
    if (what, str(done)) == (stage, step):
        os.kill(os.getpid(), signal.SIGKILL)
regear.convert(model, out, *changes, to="mla", progress=progress)
"""


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def run_killed(model, out, stage, step, changes, home):
    command = [sys.executable, "-c", KILL_AT, str(model), str(out), stage, str(step), *changes]
    environment = {**os.environ, "REGEAR_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(tiny, text, tmp_path_factory):
    """What conversions that nobody kills write, by tiny model."""
    place, changes = tmp_path_factory.mktemp("whole"), {"llama": small(text), "llama-tied": strict(text)}
    for name, words in changes.items():
        ended = run_killed(tiny(name), place / name / "out", "never", 0, words, place / f"home-{name}")
        assert ended.returncode == 0, ended.stderr
    return {name: contents(place / name / "out") for name in changes}


def strict(text):
    return [*small(text), "convert.format=deepseek_v3", "convert.kv_ratio=3/4"]


@pytest.mark.parametrize(
    ("stage", "step"), [("calibrate", 2), ("curvature", 1), ("factor", 2), ("write", 1), ("compare", 1)]
)
def test_killed_and_resumed_gives_the_same_bytes(stage, step, tiny, text, tmp_path, whole):
    changes = small(text)
    killed = run_killed(tiny("llama"), tmp_path / "b" / "out", stage, step, changes, tmp_path / "home2")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "b" / "out").exists()
    resumed = run_killed(tiny("llama"), tmp_path / "b" / "out", "never", 0, changes, tmp_path / "home2")
    assert resumed.returncode == 0, resumed.stderr
    assert whole["llama"] == contents(tmp_path / "b" / "out")


@pytest.mark.parametrize(("stage", "step"), [("curvature", 2), ("select", 1)])
def test_a_killed_strict_export_resumes_to_the_same_bytes(stage, step, tiny, text, tmp_path, whole):
    changes = strict(text)
    killed = run_killed(tiny("llama-tied"), tmp_path / "b" / "out", stage, step, changes, tmp_path / "home2")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "b" / "out").exists()
    resumed = run_killed(tiny("llama-tied"), tmp_path / "b" / "out", "never", 0, changes, tmp_path / "home2")
    assert resumed.returncode == 0, resumed.stderr
    assert whole["llama-tied"] == contents(tmp_path / "b" / "out")


def test_the_output_is_complete_and_names_no_place(tiny, text, tmp_path, cache):
    regear.convert(tiny("llama"), tmp_path / "out", *small(text), to="mla")
    names = set(contents(tmp_path / "out"))
    assert names >= {
        "config.json",
        "model.safetensors",
        "modeling_regear_mla.py",
        "tokenizer.json",
        "generation_config.json",
        "README.md",
        "regear.json",
        "LICENSE",
    }
    for name, raw in contents(tmp_path / "out").items():
        if not name.endswith(".safetensors"):
            assert str(tmp_path).encode() not in raw, name
            assert str(text.parent).encode() not in raw, name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card
    assert "base_model: llama\n" in card
    assert "should not use it" in card
    record = json.loads((tmp_path / "out" / "regear.json").read_text())
    assert record["measured"]["perplexity"]["ratio"] > 0
    run = tmp_path / "out.run"
    page = (run / "report.html").read_text()
    assert "<svg" in page
    assert "Decode step, measured" in page
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert (run / "metrics.jsonl").exists()


@pytest.mark.parametrize("family", ["qwen3", "olmo2", "qwen3-moe"])
def test_loads_without_regear_in_stock_transformers(family, tiny, text, tmp_path, cache):
    """In a process that cannot import regear, with remote code trusted: same logits, no missing or unexpected keys."""
    regear.convert(tiny(family), tmp_path / "out", *small(text), to="mla")
    script = """
import sys
sys.modules["regear"] = None
import torch
from transformers import AutoModelForCausalLM
model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
ids = torch.arange(30)[None]
torch.save(model.eval()(ids).logits, sys.argv[2])
print(model.generate(ids, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(ids))[0, 30:].tolist())
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", script, str(tmp_path / "out"), str(tmp_path / "logits.pt")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    from regear.models.load import load_model

    ours = load_model(tmp_path / "out")(torch.arange(30)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), ours, atol=1e-6, rtol=1e-6)


def test_a_finished_output_is_left_alone_and_another_is_not_replaced(tiny, text, tmp_path, cache):
    out = tmp_path / "out"
    regear.convert(tiny("llama"), out, *small(text), to="mla")
    before = contents(out)
    again = regear.convert(tiny("llama"), out, *small(text), to="mla")
    assert again["already_done"]
    with pytest.raises(CheckpointError, match="already holds a result of another"):
        regear.convert(tiny("llama"), out, *small(text), "convert.kv_ratio=0.25", to="mla")
    assert contents(out) == before
    changed = regear.convert(tiny("llama"), out, *small(text), "convert.kv_ratio=0.25", to="mla", force=True)
    assert changed["kv_floats_per_token"]["after"] == 36
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="something else"):
        regear.convert(tiny("llama"), tmp_path / "mine", *small(text), to="mla")


def test_two_processes_do_not_write_one_output(tiny, text, tmp_path, cache):
    from regear.core.run import Run

    with (
        Run(tmp_path / "out", "x", {}),
        pytest.raises(CheckpointError, match="another process"),
    ):
        regear.convert(tiny("llama"), tmp_path / "out", *small(text), to="mla")


def damaged(tiny, tmp_path, how):
    path = tmp_path / "model"
    shutil.copytree(tiny("llama"), path)
    weights = path / "model.safetensors"
    config = json.loads((path / "config.json").read_text())
    match how:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "nan":
            tensors = load_file(weights)
            tensors["model.layers.1.self_attn.v_proj.weight"][3, 4] = float("nan")
            save_file(tensors, weights, metadata={"format": "pt"})
        case "pickle":
            torch.save({}, path / "pytorch_model.bin")
            weights.unlink()
        case "missing tensor":
            tensors = load_file(weights)
            del tensors["model.layers.2.mlp.up_proj.weight"]
            save_file(tensors, weights, metadata={"format": "pt"})
        case "extra tensor":
            save_file({**load_file(weights), "model.layers.0.extra.weight": torch.ones(2)}, weights)
        case "shape":
            config["intermediate_size"] += 1
        case "family":
            config["model_type"] = "gemma3"
        case "sliding":
            config |= {"model_type": "mistral", "sliding_window": 64}
        case "rope":
            config["rope_parameters"] = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
        case "no config":
            (path / "config.json").unlink()
            return path
        case "bad config":
            (path / "config.json").write_text("{")
            return path
        case "missing shard":
            index = {"weight_map": dict.fromkeys(load_file(weights), "model-00001-of-00002.safetensors")}
            (path / "model.safetensors.index.json").write_text(json.dumps(index))
            weights.unlink()
        case "no weights":
            weights.unlink()
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("truncated", CheckpointError, "damaged or truncated"),
        ("nan", CheckpointError, "layers.1.self_attn.v_proj.weight holds NaN"),
        ("pickle", CheckpointError, "pickle weights"),
        ("missing tensor", CheckpointError, "layers.2.mlp.up_proj.weight is missing"),
        ("extra tensor", CheckpointError, "layers.0.extra.weight"),
        ("shape", CheckpointError, "config.json wants"),
        ("family", IncompatibleModel, "'gemma3' is not supported"),
        ("sliding", IncompatibleModel, "sliding-window"),
        ("rope", IncompatibleModel, "'yarn' is not supported"),
        ("no config", CheckpointError, "no config.json"),
        ("bad config", CheckpointError, "not JSON"),
        ("missing shard", CheckpointError, "shard model-00001-of-00002.safetensors is missing"),
        ("no weights", CheckpointError, "no model.safetensors"),
    ],
)
def test_bad_models_are_refused_in_one_line_and_leave_nothing(how, error, message, tiny, text, tmp_path, cache):
    path = damaged(tiny, tmp_path, how)
    with pytest.raises(error, match=message) as caught:
        regear.convert(path, tmp_path / "out", *small(text), to="mla")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["convert.kv_ratio=1.5"], "at most 1"),
        (["convert.kv_ratio=0"], "above 0"),
        (["convert.kv_ratio=x"], "a number or a fraction"),
        (["convert.kv_ratio=0.01"], "below one rank"),
        (["convert.kv_raito=0.5"], "did you mean 'convert.kv_ratio'"),
        (["conver.kv_ratio=0.5"], "unknown recipe key 'conver'"),
        (["convert.factor=cares"], "did you mean 'care'"),
        (["convert.preset=carre"], "did you mean 'care'"),
        (["convert.value_weight=0.1"], "value_weight belongs to factor=attention"),
        (["convert.allocate=curvature", "convert.factor=care"], "needs factor=fisher"),
        (["convert.rope=half"], "convert.rope"),
        (["kv_ratio"], "wanted key=value"),
        (["convert.align=0"], "convert.align"),
    ],
)
def test_bad_recipes_are_refused(changes, message, tiny, text, tmp_path, cache):
    with pytest.raises(RecipeError, match=message):
        regear.convert(tiny("llama"), tmp_path / "out", *small(text), *changes, to="mla")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no text file"),
        (b"", "empty"),
        (b"short", "no document fills one window of 2048"),
        (b"\xff\xfe" * 4000, "not UTF-8"),
        (b"x" * 2048, None),
    ],
)
def test_bad_texts_are_refused(content, message, tiny, text, tmp_path, cache):
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    changes = [*small(text), f"calibration.text=[{path}]"]
    if message is None:
        assert regear.convert(tiny("llama"), tmp_path / "out", *changes, to="mla")["kl"] > 0
        return
    with pytest.raises(DataError, match=message):
        regear.convert(tiny("llama"), tmp_path / "out", *changes, to="mla")
    assert not list(tmp_path.glob("out*"))


def test_too_few_calibration_tokens_are_refused_and_few_warned_of(text, tmp_path, cache, capsys):
    # 4 heads of 300 make keys and values 2,400 wide; one window of this tokenizer is 2,048 tokens.
    wide = make_model("llama", tmp_path / "wide", head_dim=300, num_key_value_heads=4)
    with pytest.raises(DataError, match="twice the width"):
        regear.convert(wide, tmp_path / "out", *small(text, 2048), to="mla")
    narrow = make_model("llama", tmp_path / "narrow", head_dim=200, num_key_value_heads=2)
    regear.convert(narrow, tmp_path / "out2", *small(text, 2048), to="mla")
    assert "only 2048 calibration tokens" in capsys.readouterr().err


FULL_DISK = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from regear.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("limit", [2_000, 60_000, 150_000])
def test_a_full_disk_is_one_line_and_nothing_half_written(limit, tiny, text, tmp_path):
    """A limit on file size stands for the disk: it strikes in the statistics, in the scratch, or in the weights."""
    environment = {**os.environ, "REGEAR_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    words = ["convert", str(tiny("llama")), "-o", str(tmp_path / "out"), "--to", "mla", *small(text)]
    command = [sys.executable, "-c", FULL_DISK, str(limit), *words]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "no room to write" in result.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    command[3] = str(resource.RLIM_INFINITY)
    again = subprocess.run(
        [sys.executable, "-m", "regear.cli.main", *words], capture_output=True, text=True, env=environment
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "regear.json").exists()


def test_dry_run_reads_no_weight(tiny, tmp_path, cache, monkeypatch):
    from regear.models.store import Store

    def refuse(self, *arguments):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Store, "rows", refuse)
    plan = regear.convert(tiny("llama"), None, "convert.kv_ratio=1/3", to="mla", dry_run=True)
    assert plan["kv_floats_per_token"] == {"before": 144, "after": 48}
    assert plan["parameters_after"] < plan["parameters_before"]
    assert plan["output_bytes"] == plan["parameters_after"] * 4


def test_the_plan_predicts_what_is_written(tiny, text, tmp_path, cache):
    changes = [*small(text), "convert.allocate=uniform"]
    plan = regear.convert(tiny("llama"), None, *changes, to="mla", dry_run=True)
    regear.convert(tiny("llama"), tmp_path / "out", *changes, to="mla")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(t.numel() for t in written.values()) == plan["parameters_after"]


def test_source_dtype_and_shards_are_kept(text, tmp_path, cache, monkeypatch):
    from regear.conversion import export

    path = make_model("llama", tmp_path / "half")
    tensors = {k: v.bfloat16() for k, v in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(export, "plan_shards", lambda sizes: [[name] for name in sizes])
    regear.convert(path, tmp_path / "out", *small(text), to="mla")
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 10
    assert all(t.dtype == torch.bfloat16 for shard in shards for t in load_file(shard).values())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_sweep_draws_every_point_from_one_calibration(tiny, text, tmp_path, cache):
    stages = []
    result = regear.sweep(
        tiny("llama"),
        tmp_path / "sweep",
        *small(text),
        ratios=["3/4", "1/2", "1/4"],
        presets=["svd", "best"],
        progress=lambda stage, step, steps: stages.append((stage, step)),
    )
    assert [p["setting"] for p in result["points"]] == ["svd"] * 3 + ["best"] * 3
    assert stages.count(("calibrate", 3)) == 1
    assert set(result["knee"]) == {"svd", "best"}
    assert (tmp_path / "sweep" / "report.html").read_text().count("<svg") == 1
    best = [p["kl"] for p in result["points"] if p["setting"] == "best"]
    assert best == sorted(best)


def test_a_swept_point_equals_the_written_checkpoint(tiny, text, tmp_path, cache):
    swept = regear.sweep(tiny("qwen2"), None, *small(text), ratios=["1/2"])
    written = regear.convert(tiny("qwen2"), tmp_path / "out", *small(text), to="mla")
    assert swept["points"][0]["ratio"] == pytest.approx(written["perplexity"]["ratio"], rel=1e-4)
    assert swept["points"][0]["kl"] == pytest.approx(written["kl"], rel=1e-3)


def test_the_card_sets_fewer_bits_beside_the_smaller_architecture(tiny, text, tmp_path, cache):
    regear.convert(tiny("llama"), tmp_path / "o", *small(text))
    rows = json.loads((tmp_path / "o" / "regear.json").read_text())["measured"]["caches"]
    assert [row["bytes"] for row in rows] == sorted((row["bytes"] for row in rows), reverse=True)
    by_name = {(row["model"], row["kv"]): row for row in rows}
    assert len(by_name) == 6
    assert by_name["original", "bf16"]["bytes"] == 2 * 144
    assert by_name["converted", "bf16"]["bytes"] == 2 * 72
    assert by_name["converted", "int4"]["bytes"] < by_name["original", "int4"]["bytes"] < 144
    # A cache in 16 bits is as good as none; one in 4 bits is not, on a model whose keys matter.
    assert abs(by_name["original", "bf16"]["ratio"] - 1) < 0.01
    assert "Fewer bits instead" in (tmp_path / "o" / "README.md").read_text()
