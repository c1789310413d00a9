"""The command line: JSON on standard output alone, one line and exit code 2 for mistakes, help without torch."""

import importlib.metadata
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regear.cli.main import run
from tests.tiny import small


def call(capsys, *words):
    code = run([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_is_quick_and_imports_no_torch():
    code = "import sys; from regear.cli.main import run; run(['--help']); sys.exit('torch' in sys.modules)"
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert time.perf_counter() - start < 5  # the benchmark is benchmarks/startup.py; this only catches a torch import
    for verb in (
        "fetch",
        "convert",
        "heal",
        "plan",
        "eval",
        "audit",
        "ledger",
        "generate",
        "run",
        "demo",
        "ls",
        "schema",
        "env",
        "doctor",
    ):
        assert f"\n  {verb}" in result.stdout


def test_version_is_the_installed_one(capsys):
    code, stdout, _ = call(capsys, "--version")
    assert (code, stdout) == (0, f"regear {importlib.metadata.version('regear')}\n")


def test_convert_eval_generate_chain(tiny, text, tmp_path, capsys, cache):
    out = tmp_path / "out"
    code, stdout, _ = call(capsys, "convert", tiny("llama"), *small(text, 9999), "-o", out, "--to", "mla", "--json")
    assert code == 0
    result = json.loads(stdout)
    assert {"output", "to", "format", "kv_floats_per_token", "seconds", "peak_rss_bytes"} <= set(result)
    code, stdout, _ = call(
        capsys,
        "eval",
        out,
        "--against",
        tiny("llama"),
        "--text",
        text.with_name("evaluation.txt"),
        "--json",
        "--no-speed",
    )
    assert code == 0
    assert json.loads(stdout)["against"]["ratio"] == pytest.approx(result["perplexity"]["ratio"], rel=1e-4)
    code, stdout, _ = call(capsys, "generate", out, "the fox", "--max-tokens", 4, "--json")
    assert code == 0
    assert {"text", "token_ids", "tokens", "finish_reason", "tokens_per_second", "acceptance_length"} <= set(
        json.loads(stdout)
    )
    code, stdout, _ = call(capsys, "convert", tiny("llama"), *small(text, 9999), "-o", out, "--to", "mla")
    assert code == 0
    assert "already there" in stdout


def test_int8_weights_against_the_model_itself(tiny, text, tmp_path, capsys, cache):
    words = ["eval", tiny("llama"), "--dtype", "int8", "--against", tiny("llama"), "--text", text, "--windows", 1]
    code, stdout, _ = call(capsys, *words, "--json", "--report", tmp_path / "report")
    assert code == 0
    result = json.loads(stdout)
    assert (result["dtype"], result["against"]["dtype"]) == ("int8", None)
    assert 0 < result["against"]["kl"] < 0.02
    assert result["against"]["ratio"] == pytest.approx(1, abs=0.02)
    assert "<td>int8</td>" in (tmp_path / "report" / "report.html").read_text()
    code, stdout, _ = call(capsys, *words, "--against-dtype", "int8", "--no-speed")
    assert code == 0
    assert "(int8): perplexity" in stdout
    assert "ratio               1.0000 (95 % 1.0000 to 1.0000), KL 0.0000" in stdout
    code, stdout, _ = call(capsys, "generate", tiny("llama"), "the fox", "--dtype", "int8", "--max-tokens", 4, "--json")
    assert code == 0
    assert json.loads(stdout)["dtype"] == "int8"


def test_tables_for_people(tiny, text, tmp_path, capsys, cache):
    code, stdout, _ = call(capsys, "eval", tiny("llama"), "--text", text)
    assert code == 0
    assert "bits per byte" in stdout
    code, stdout, _ = call(capsys, "convert", tiny("llama"), "--to", "mla", "--dry-run", "convert.kv_ratio=1/3")
    assert code == 0
    assert "144 → 48" in stdout
    words = ["convert", tiny("llama"), *small(text), "--to", "mla", "--sweep", "--ratios", "1/2,1/4"]
    code, stdout, _ = call(capsys, *words, "-o", tmp_path / "sweep")
    assert code == 0
    assert "knee: recipe at" in stdout
    assert (tmp_path / "sweep" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "nowhere/at/all"], "no model directory"),
        (["convert", "MODEL"], "no output given"),
        (["convert", "MODEL", "-o", "out", "convert.kv_ratoi=1"], "did you mean"),
        (["convert", "MODEL", "-o", "out", "--to", "mal"], "did you mean 'mla'"),
        (["convert", "MODEL", "-o", "out", "--tasks", "mmul"], "unknown task"),
        (["convert", "MODEL", "--to", "mla", "--sweep", "--ratios", "0.5,2"], "at most 1"),
        (["eval", "MODEL", "--text", "missing.txt"], "no text file missing.txt"),
        (["eval", "MODEL", "--windows", "0"], "at least 1"),
        (["eval", "MODEL", "--kv", "int5"], "did you mean 'int"),
        (["eval", "MODEL", "--against-kv", "int4"], "no other model"),
        (["eval", "MODEL", "--against-dtype", "int8"], "no other model"),
        (["eval", "MODEL", "--dtype", "int9"], "did you mean 'int8'"),
        (["eval", "MODEL", "--dtype", "int8", "--device", "meta"], "cannot be used here"),
        (["generate", "MODEL", "x", "--dtype", "fp8"], "known: float32, bfloat16, float16, int8"),
        (["eval", "MODEL", "--context", "512"], "without long"),
        (["generate", "MODEL", ""], "prompt is empty"),
        (["generate", "MODEL"], "Missing argument"),
        (["--nope"], "No such option"),
        (["frobnicate"], "No such command"),
        (["schema", "eval"], "no recipe for 'eval'"),
    ],
)
def test_mistakes_are_one_line_and_code_two(words, message, tiny, capsys, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = call(capsys, *(tiny("llama") if w == "MODEL" else w for w in words))
    assert code == 2
    assert stdout == ""
    assert message in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert not [p for p in tmp_path.iterdir() if p.name != "home"]


def test_an_internal_failure_is_one_line_and_code_three(capsys, monkeypatch):
    monkeypatch.setattr("regear.core.machine.describe", lambda: 1 / 0)
    code, _, stderr = call(capsys, "env")
    assert code == 3
    assert "ZeroDivisionError" in stderr
    assert len(stderr.strip().splitlines()) == 1
    trace = stderr.split("trace: ")[1].rstrip(")\n")
    assert "Traceback" in Path(trace).read_text()


def test_interrupting_is_code_130(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("regear.core.machine.describe", interrupt)
    assert call(capsys, "env")[0] == 130


def test_every_verb_prints_one_json_object(capsys, tiny, cache):
    for words in (["ls"], ["env"], ["doctor"], ["schema"], ["fetch", tiny("llama")]):
        code, stdout, _ = call(capsys, *words, "--json")
        assert code == 0, words
        assert isinstance(json.loads(stdout), dict)
    schema = json.loads(call(capsys, "schema", "--json")[1])
    assert "kv_ratio" in json.dumps(schema["mla"])
    assert "waivers" in json.loads(call(capsys, "schema", "gates", "--json")[1])["properties"]
    assert "steps" in json.loads(call(capsys, "schema", "run", "--json")[1])["properties"]
    assert "held_out_every" in json.loads(call(capsys, "schema", "heal", "--json")[1])["properties"]
