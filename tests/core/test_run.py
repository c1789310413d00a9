"""The directory of a run: what a process that was killed left there is never another model's, nor half a line."""

import json
import os
from pathlib import Path

import pytest

from regear.core.errors import CheckpointError
from regear.core.run import Run, is_done


def rows(run):
    return [json.loads(line)["event"] for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


def killed(out, fingerprint="one", durable=True):
    """A run as a process that was killed leaves it."""
    run = Run(out, fingerprint, {})
    run.__enter__()
    run.scratch.mkdir()
    (run.scratch / "model.safetensors").write_text(fingerprint)
    if durable:
        run.work.mkdir()
        (run.work / "step").write_text(fingerprint)
    run.log("begins")
    run.lock.close()
    return run


@pytest.mark.parametrize("fingerprint", ["one", "other"])
def test_scratch_of_a_killed_process_is_never_read_again(tmp_path, fingerprint):
    killed(tmp_path / "out")
    with Run(tmp_path / "out", fingerprint, {}) as run:
        assert not run.scratch.exists()
        assert run.work.exists() == (fingerprint == "one")


@pytest.mark.parametrize(("durable", "wanted"), [(True, ["begins", "goes on"]), (False, ["goes on"])])
def test_metrics_go_on_with_what_is_durable_and_begin_anew_without(tmp_path, durable, wanted):
    killed(tmp_path / "out", durable=durable)
    with Run(tmp_path / "out", "one", {}) as run:
        run.log("goes on")
    assert rows(run) == wanted


def test_trained_steps_of_other_words_are_dropped_only_when_told(tmp_path):
    run = killed(tmp_path / "out")
    (run.work / "training").mkdir()
    (run.work / "training" / "step").write_text("hours")
    before = (run.directory / "run.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"unfinished training .* --force"):
        is_done(tmp_path / "out", "other", force=False)
    assert (run.work / "training" / "step").read_text() == "hours"
    assert (run.directory / "run.json").read_bytes() == before
    assert not is_done(tmp_path / "out", "one", force=False)
    assert not is_done(tmp_path / "out", "other", force=True)
    with Run(tmp_path / "out", "other", {}) as other:
        assert not other.work.exists()


def test_metrics_of_another_run_are_gone_before_the_first_row(tmp_path):
    killed(tmp_path / "out")
    with Run(tmp_path / "out", "other", {}) as run:
        assert not (run.directory / "metrics.jsonl").exists()


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    run = killed(tmp_path / "out")
    path = run.directory / "metrics.jsonl"
    with open(path, "a") as file:
        file.write('{"event": "st')
    with Run(tmp_path / "out", "one", {}) as run:
        run.log("goes on")
    assert rows(run) == ["begins", "goes on"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    with Run(tmp_path / "out", "one", {}) as run:
        os.symlink("/dev/full", run.directory / "metrics.jsonl")
        with pytest.raises(CheckpointError, match="No space left on device; make room") as caught:
            run.log("begins")
    assert "\n" not in str(caught.value)
