"""Peak memory of converting a model that is larger than the memory it may take, and what kill -9 does to it.

A random checkpoint shaped like Llama 3.2 1B (bf16, sharded) is written piece by piece, converted in a child process
whose resident peak the kernel reports, and converted again with a SIGKILL at each of several points. Correctness gate:
the digests of both outputs are equal.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
from common import finish, parser
from transformers import LlamaConfig

import regear
from regear.core.files import home, sha256
from regear.models.builtin import resolve
from regear.models.families import describe
from regear.models.store import plan_shards, shard_names, write_index
from regear.models.tensorfile import write_tensors

SHAPES = {
    # layers, hidden, heads, key/value heads, head width, inner width, vocabulary, tied
    "tiny": (4, 256, 8, 2, 32, 1024, 49152, True),
    "0.4b": (12, 1024, 16, 4, 64, 4096, 64000, False),
    "llama-3.2-1b": (16, 2048, 32, 8, 64, 8192, 128256, True),
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TEXTS = {"calibration": "argparse.py", "selection": "ast.py", "evaluation": "tarfile.py"}
KILLS = (("calibrate", 3), ("curvature", 2), ("factor", 2), ("write", 1), ("compare", 1))


def make(name: str, place: Path, seed: int) -> Path:
    """Write the checkpoint; a tensor's pieces of 16 MiB are all that is held."""
    layers, hidden, heads, kv_heads, head_dim, inner, vocabulary, tied = SHAPES[name]
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=inner,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters=ROPE,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(place)
    for path in resolve("smollm2-135m-instruct").glob("*token*"):
        shutil.copyfile(path, place / path.name)
    shapes = describe(json.loads((place / "config.json").read_text())).tensors()
    sizes = {name: 2 * torch.Size(shape).numel() for name, shape in shapes.items()}
    shards = plan_shards(sizes)
    generator = torch.Generator().manual_seed(seed)

    def pieces(tensor: str):
        shape = shapes[tensor]
        if len(shape) == 1:
            yield torch.ones(shape)
            return
        for rows in torch.arange(shape[0]).split(max(1, (4 << 20) // shape[1])):
            yield torch.randn(len(rows), shape[1], generator=generator) * shape[1] ** -0.5

    names = shard_names(len(shards))
    for file, members in zip(names, shards, strict=True):
        write_tensors(place / file, {m: (torch.bfloat16, shapes[m]) for m in members}, pieces)
    write_index(place, dict(zip(names, shards, strict=True)), sum(sizes.values()))
    return place


def child(model: str, out: str, stage: str, step: str, words: list[str]) -> None:
    """Convert, or die on the way; print what the kernel says was resident at most."""

    def progress(what: str, done: int, steps: int) -> None:
        if (what, str(done)) == (stage, step):
            os.kill(os.getpid(), signal.SIGKILL)

    result = regear.convert(model, out, *words, max_memory=2.0, to="mla", progress=progress)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            result["resident_peak_bytes"] = int(line.split()[1]) * 1024
    print(json.dumps(result))


def convert(model: Path, out: Path, place: Path, words: list[str], kill: tuple[str, int] = ("never", 0)) -> dict | None:
    """One child process; None if it was killed, as it should have been."""
    command = [sys.executable, __file__, "--child", str(model), str(out), kill[0], str(kill[1]), *words]
    found = subprocess.run(command, env={**os.environ, "REGEAR_HOME": str(place)}, capture_output=True, text=True)
    if kill[0] != "never":
        if found.returncode != -signal.SIGKILL:
            sys.exit(f"the child was to be killed at {kill}, and ended with {found.returncode}: {found.stderr[-2000:]}")
        return None
    if found.returncode:
        sys.exit(found.stderr[-2000:])
    return json.loads(found.stdout)


def digests(directory: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(directory.iterdir())}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    options.add_argument("--tokens", type=int, default=2100, help="of calibration")
    options.add_argument("--no-kill", action="store_true", help="measure memory only")
    arguments = options.parse_args()
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home()) as folder:
        place = Path(folder)
        model = make(arguments.shape, place / "model", arguments.seed)
        words = [f"{use}.text=[{sysconfig.get_paths()['stdlib']}/{name}]" for use, name in TEXTS.items()]
        words += [f"calibration.tokens={arguments.tokens}", "selection.tokens=500", "evaluation.tokens=600"]
        plan = regear.convert(model, None, *words, to="mla", dry_run=True)
        start = time.monotonic()
        whole = convert(model, place / "a", place / "home-a", words)
        seconds = time.monotonic() - start
        results = {
            "shape": arguments.shape,
            "tokens": arguments.tokens,
            "source_bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
            "resident_peak_bytes": whole["resident_peak_bytes"],
            "estimated_bytes": plan["memory_bytes"],
            "estimated_scratch_bytes": plan["scratch_bytes"],
            "seconds": seconds,
            "perplexity": whole["perplexity"],
        }
        if not arguments.no_kill:
            for kill in KILLS:
                convert(model, place / "b", place / "home-b", words, kill)
            convert(model, place / "b", place / "home-b", words)
            results["kills"] = [list(kill) for kill in KILLS]
            results["same_bytes"] = digests(place / "a") == digests(place / "b")
            if not results["same_bytes"]:
                sys.exit("the killed and resumed conversion has other bytes")
    text = (
        f"{arguments.shape}: {results['source_bytes'] / 1e9:.2f} GB on disk, resident peak "
        f"{results['resident_peak_bytes'] / 1e9:.2f} GB (estimated {results['estimated_bytes'] / 1e9:.2f}), "
        f"{seconds:.0f} s"
    )
    finish("any_size", arguments, results, text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:6], sys.argv[6:])
    else:
        main()
