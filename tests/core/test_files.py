"""Files appear whole or not at all; runs lock, resume and publish in one step."""

import json

import pytest

from regear.core.errors import CheckpointError, RegearError
from regear.core.files import digest, read_json, write_bytes, write_json
from regear.core.run import Run, existing_output, is_done


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1})
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match="no room to write"):
        write_bytes(path, b"new")
    assert json.loads(path.read_text()) == {"b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_digest_ignores_key_order_only():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_read_json_says_what_is_wrong(tmp_path):
    with pytest.raises(CheckpointError, match="no x\\.json"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_json(tmp_path / "x.json")


def test_run_publishes_in_one_step_and_clears_another_recipes_leftovers(tmp_path):
    out = tmp_path / "out"
    with Run(out, "one", {}) as run:
        (run.staging / "half").write_text("x")
    with Run(out, "one", {}) as run:
        assert (run.staging / "half").exists()
    with Run(out, "two", {"r": 1}) as run:
        assert not (run.staging / "half").exists()
        write_json(run.staging / "regear.json", {"fingerprint": "two"})
        run.log("done", figure=1.5)
        run.publish()
    assert existing_output(out) == "two"
    assert is_done(out, "two", force=False)
    assert not is_done(out, "three", force=True)
    with pytest.raises(CheckpointError):
        is_done(out, "three", force=False)
    lines = [json.loads(line) for line in (tmp_path / "out.run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["figure"] == 1.5


def test_a_users_mistake_in_a_fresh_run_leaves_no_directory(tmp_path):
    with pytest.raises(RegearError), Run(tmp_path / "out", "x", {}):
        raise RegearError("wrong")
    assert not list(tmp_path.iterdir())


def test_a_mistake_after_something_durable_keeps_it_and_half_written_files_do_not_count(tmp_path):
    def fail(place):
        with Run(tmp_path / "out", "x", {}) as run:
            write_json(run.directory / place, {})
            write_json(run.scratch / "0" / "config.json", {})
            raise RegearError("wrong")

    for place, kept in (("kept/training/.000-1.tmp/state.json", False), ("kept/training/000-1/state.json", True)):
        with pytest.raises(RegearError):
            fail(place)
        assert (tmp_path / "out.run" / place).exists() == kept
    assert not (tmp_path / "out.run/scratch").exists()


def test_metrics_start_anew_with_a_run_that_goes_on_from_nothing(tmp_path):
    def logged(fingerprint, step, keep):
        with Run(tmp_path / "out", fingerprint, {}) as run:
            run.log("step", step=step)
            if keep:
                write_json(run.work / "state.json", {})
        lines = (tmp_path / "out.run/metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]

    assert logged("one", 1, keep=False) == [1]
    assert logged("one", 2, keep=True) == [2]
    assert logged("one", 3, keep=True) == [2, 3]
    assert logged("two", 4, keep=False) == [4]


def test_an_output_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot make"), Run(tmp_path / "file" / "out", "x", {}):
        pass
