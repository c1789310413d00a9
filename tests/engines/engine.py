"""Runs a script of this folder with vLLM's own Python, in a process that has no regear."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent


def python() -> Path:
    """The engine's interpreter; the test is skipped without one, and fails if the one named is not there."""
    named = os.environ.get("REGEAR_VLLM_PYTHON")
    path = Path(named) if named else HERE.parents[1] / ".venv-vllm/bin/python"
    if not named and not path.exists():
        pytest.skip("no vLLM here: `make engines` makes its environment (3.5 GB), or REGEAR_VLLM_PYTHON names one")
    return path.absolute()


def call(script: str, *words: object, **environment: str) -> dict:
    """The JSON object on the last line of the script's output.

    Raises AssertionError with the end of the engine's log if the script fails.
    """
    settings = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"} | environment
    settings.pop("PYTHONPATH", None)
    command = [str(python()), str(HERE / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def serve(model: Path, prompts: list[list[int]], tokens: int, *, mla: bool = True, **llm: object) -> dict:
    """vLLM's greedy `token_ids`, the `backends` that attended and the `kv_width` of every layer, in floats a token."""
    request = {"prompts": prompts, "max_tokens": tokens, "llm": {"max_model_len": 256, **llm}}
    if mla:
        # Left alone, vLLM takes a kernel for bfloat16 where the machine advertises AMX.
        request["llm"]["attention_backend"] = "CPU_MLA"
    path = model.with_name(f"{model.name}.request.json")
    path.write_text(json.dumps(request))
    return call("vllm_greedy.py", model, path, VLLM_MLA_DISABLE=str(int(not mla)))


def greedy(model: Path, prompts: list[list[int]], tokens: int, remote: bool = False) -> list[list[int]]:
    """The tokens of transformers' own `generate`."""
    network = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=remote, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers
