"""A healing that was killed ends with the bytes of one that was not; two processes heal what one heals."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest

import regear
from regear.core.errors import BackendError, RegearError
from tests.healing.conftest import STAGES
from tests.processes import free_port, start


def arguments(patient):
    words = [*patient.words, STAGES, "save_minutes=0", "held_out_every=1000", "held_out_windows=1"]
    return [str(patient.mla), str(patient.source)], words, [str(patient.training)]


def digests(out):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.iterdir())}


def heal(out, models, words, text, kill=None):
    """Heal; `kill` names a function and the call of it before which the process is killed."""
    if kill:
        place, name, call = kill
        owner = import_module(place)
        real, left = getattr(owner, name), call

        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, wrapped)
    try:
        regear.heal(*models, out, *words, text=text)
    except RegearError as error:
        print(error, file=sys.stderr)
        return error.exit_code


@pytest.fixture(scope="module")
def whole(patient, tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    codes, said = start(place, heal, place / "out", *arguments(patient))
    assert codes == [0], "\n".join(said)
    return place / "out"


KILLS = {
    "while the third step is written": ("regear.train.checkpoint", "write_json", 3),
    "between the stages": ("regear.train.lora", "inject", 1),
    "before the record of a stage": ("regear.train.stages", "write_json", 2),
    "while the weights are written": ("regear.models.tensorfile", "publish", 3),
    "before the output appears": ("regear.healing.job", "write_report", 1),
}


@pytest.mark.parametrize("point", KILLS)
def test_killed_and_started_again_it_ends_with_the_same_bytes(tmp_path, patient, whole, point):
    codes, said = start(tmp_path, heal, tmp_path / "out", *arguments(patient), KILLS[point])
    assert codes == [-signal.SIGKILL], "\n".join(said)
    assert not (tmp_path / "out").exists()
    codes, said = start(tmp_path, heal, tmp_path / "out", *arguments(patient))
    assert codes == [0], "\n".join(said)
    assert digests(tmp_path / "out") == digests(whole)


def test_the_command_killed_after_a_durable_step_goes_on(tmp_path, patient, whole):
    models, words, text = arguments(patient)
    command = [sys.executable, "-m", "regear.cli.main", "heal", models[0], *words, "--teacher", models[1]]
    command += ["--text", text[0], "-o", str(tmp_path / "out"), "--json", "-q"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE)
    while first.poll() is None and not list(tmp_path.glob("out.run/kept/training/steps/000-*/state.json")):
        time.sleep(0.002)
    first.kill()
    assert first.wait() == -signal.SIGKILL, first.stderr.read()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["tokens"] == 896
    assert digests(tmp_path / "out") == digests(whole)


def test_a_failed_step_keeps_the_durable_ones_and_the_next_run_goes_on(tmp_path, patient, whole, monkeypatch):
    from regear.train import loop

    real = loop.Stage._step

    def diverges(stage, optimiser, step, steps):
        if step == 2:
            raise BackendError("the loss is nan")
        return real(stage, optimiser, step, steps)

    models, words, text = arguments(patient)
    with monkeypatch.context() as patched:
        patched.setattr(loop.Stage, "_step", diverges)
        with pytest.raises(BackendError, match="nan"):
            regear.heal(*models, tmp_path / "out", *words, text=text)
    assert list(tmp_path.glob("out.run/kept/training/steps/000-*2/state.json"))
    steps = []
    with monkeypatch.context() as patched:
        patched.setattr(loop.Stage, "_step", lambda *a: steps.append(a[2]) or real(*a))
        regear.heal(*models, tmp_path / "out", *words, text=text)
    assert steps[0] == 2
    assert digests(tmp_path / "out") == digests(whole)
    assert not (tmp_path / "out.run/kept").exists()


def losses(out):
    rows = [json.loads(line) for line in (out.parent / f"{out.name}.run/metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "step"]


def test_torchrun_heals_what_one_process_heals(tmp_path, patient, whole):
    models, words, text = arguments(patient)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=static"]
    command += [f"--master-port={free_port()}", "-m", "regear.cli.main", "heal", models[0], *words]
    command += ["--teacher", models[1], "--text", text[0], "-o", str(tmp_path / "out"), "--json", "-q"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("held_out_every measures on one process only") == 1
    result = json.loads(ran.stdout)
    assert result["output"] == str(tmp_path / "out")
    assert losses(tmp_path / "out") == pytest.approx(losses(whole), rel=1e-3)
    kept = [json.loads((place / "regear.json").read_text()) for place in (whole, tmp_path / "out")]
    assert kept[0]["fingerprint"] == kept[1]["fingerprint"]
    assert kept[0]["stages"] == kept[1]["stages"]
    kls = [record["measured"]["texts"]["evaluation"]["kl"]["after"] for record in kept]
    assert kls[0] == pytest.approx(kls[1], rel=1e-2)


def test_killed_on_two_processes_it_goes_on_alone(tmp_path, patient, whole):
    kill = ("regear.train.lora", "inject", 1)
    codes, _ = start(tmp_path, heal, tmp_path / "out", *arguments(patient), kill, size=2)
    assert codes == [-signal.SIGKILL] * 2
    codes, said = start(tmp_path, heal, tmp_path / "out", *arguments(patient))
    assert codes == [0], "\n".join(said)
    assert len(losses(tmp_path / "out")) == len(losses(whole))
    assert losses(tmp_path / "out") == pytest.approx(losses(whole), rel=1e-3)


def test_rows_that_two_processes_cannot_share_are_refused_in_one_line(tmp_path, patient):
    models, words, text = arguments(patient)
    codes, said = start(tmp_path, heal, tmp_path / "out", models, [*words, "train.batch=3"], text, size=2)
    assert codes == [2, 2]
    assert "".join(said).count("\n") == 1
    assert "cannot be shared by 2 processes" in "".join(said)
    assert not (tmp_path / "out.run").exists()
