"""The ledger: what was written stays as it was written, or the line that did not is named."""

import json
import multiprocessing
import os
from datetime import UTC, date, datetime

import pytest

from regear.auditing import ledger
from regear.auditing.gates import judge
from regear.auditing.requirements import Gates
from regear.cli.main import run
from regear.core.errors import DataError, RecipeError
from tests.auditing.results import languages

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def judged():
    result = languages()
    waiver = {"slice": {"language": "hi"}, "metric": "accuracy", "owner": "Ana", "role": "product"}
    waiver |= {"reason": "x", "expires": date(2027, 1, 1)}
    gates = Gates.model_validate(
        {"set_by": "Bo", "require": [{"slice": {"language": "*"}, "metric": "accuracy"}], "waivers": [waiver]}
    )
    return result | judge(result, gates, date(2026, 3, 1))


@pytest.fixture
def small(tmp_path):
    """Three short entries."""
    path = tmp_path / "ledger.jsonl"
    for number in range(3):
        ledger.append(path, "note", {"text": f"é{number}"}, now=NOW)
    return path


def line_named(error):
    return int(str(error.value).split(": line ")[1].split()[0])


def test_every_edited_byte_is_found_in_its_line(small):
    content = small.read_bytes()
    line = 1
    for place, byte in enumerate(content):
        for other in {byte ^ 1, 0x0A} - {byte}:
            small.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
            with pytest.raises(ledger.BrokenLedger) as error:
                ledger.verify(small)
            assert line_named(error) == line
        line += byte == 0x0A


def test_every_removed_or_doubled_byte_is_found(small):
    content = small.read_bytes()
    for place in range(len(content)):
        for changed in (content[:place] + content[place + 1 :], content[: place + 1] + content[place:]):
            small.write_bytes(changed)
            with pytest.raises(ledger.BrokenLedger):
                ledger.verify(small)


@pytest.mark.parametrize(
    ("order", "line", "words"),
    [
        ([1, 2], 1, "removed"),
        ([0, 2], 2, "removed"),
        ([1, 0, 2], 1, "removed"),
        ([0, 2, 1], 2, "removed"),
        ([0, 0, 1, 2], 2, "inserted"),
        ([0, 1, 2, 0], 4, "inserted"),
    ],
)
def test_lines_removed_moved_or_inserted_are_named(small, order, line, words):
    lines = small.read_bytes().splitlines(keepends=True)
    small.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(ledger.BrokenLedger) as error:
        ledger.verify(small)
    assert line_named(error) == line
    assert words in str(error.value)


def test_an_entry_remade_with_its_own_digest_breaks_the_next_line(small):
    lines = small.read_bytes().splitlines()
    entry = json.loads(lines[1]) | {"text": "forged"}
    entry["digest"] = ledger._digest(entry)
    lines[1] = ledger.canonical(entry)
    small.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ledger.BrokenLedger, match="line 3 does not follow"):
        ledger.verify(small)


def test_a_tail_cut_off_shows_against_the_head_only(small):
    head = ledger.verify(small)["head"]
    assert ledger.verify(small, head=head)["entries"] == 3
    small.write_bytes(b"".join(small.read_bytes().splitlines(keepends=True)[:2]))
    assert ledger.verify(small)["entries"] == 2
    with pytest.raises(ledger.BrokenLedger, match="at the end were removed"):
        ledger.verify(small, head=head)
    small.write_bytes(b"")
    with pytest.raises(ledger.BrokenLedger):
        ledger.verify(small, head=head)


def test_a_half_written_last_line_is_named_and_nothing_is_added_after_it(small):
    content = small.read_bytes()
    start = content.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(start + 1, len(content)):
        small.write_bytes(content[:end])
        with pytest.raises(ledger.BrokenLedger, match=rf"line 3 is half-written.*first {start} bytes"):
            ledger.append(small, "note", {})
        assert small.read_bytes() == content[:end]
    small.write_bytes(content[:start])
    ledger.append(small, "note", {})
    assert ledger.verify(small)["entries"] == 3


def test_nothing_is_added_to_a_broken_ledger(small):
    content = small.read_bytes().replace("é1".encode(), b"x1")
    small.write_bytes(content)
    with pytest.raises(ledger.BrokenLedger, match="line 2"):
        ledger.append(small, "note", {})
    assert small.read_bytes() == content


def _append_many(path):
    for number in range(10):
        ledger.append(path, "note", {"number": number, "by": os.getpid()})


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path,)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert ledger.verify(path)["entries"] == 30


def test_an_audit_is_recorded_with_what_it_read_and_how_it_was_judged(tmp_path):
    path, result = tmp_path / "new" / "ledger.jsonl", judged()
    head = ledger.append_audit(path, result, now=NOW)
    (entry,) = ledger.read(path, head=head)
    assert entry["inputs"] == result["inputs"]
    assert (entry["seed"], entry["versions"], entry["gate"]) == (0, result["versions"], result["gate"])
    assert entry["verdict_counts"] == {"harm": 1, "no_harm": 4, "undetermined": 1}
    assert entry["set_by"] == "Bo"
    assert entry["waivers"][0]["owner"] == "Ana"
    assert entry["gates"][0]["outcome"] == "undetermined"
    assert entry["time"] == "2026-03-01T12:00:00+00:00"
    assert [r["n"] for r in entry["verdicts"] if r["slice"] == {"language": "sw"}] == [None]


def test_history_is_one_row_an_audit(tmp_path):
    path, result = tmp_path / "ledger.jsonl", judged()
    for _ in range(2):
        ledger.append_audit(path, result, now=NOW)
        ledger.sign(path, name="Ana", role="product", decision="approve")
    rows = ledger.history(path, "accuracy", {"language": "en"})
    verdict = next(v for v in result["verdicts"] if v["slice"] == {"language": "en"})
    assert [row["entry"] for row in rows] == [1, 3]
    assert [rows[0][key] for key in ("effect", "low", "high")] == [verdict["effect"], *verdict["ci"]]
    assert ledger.history(path, "accuracy", {"language": "xx"}) == []


def test_a_number_that_is_none_is_written_as_null(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, "note", {"x": float("nan"), "y": (1, 2)})
    assert ledger.read(path)[0]["x"] is None


def test_what_a_signature_needs(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(DataError, match="no ledger"):
        ledger.sign(path, name="a", role="b", decision="approve")
    ledger.append(path, "note", {})
    with pytest.raises(RecipeError, match="no audit"):
        ledger.sign(path, name="a", role="b", decision="approve")
    ledger.append_audit(path, judged())
    for wrong in ({"decision": "maybe"}, {"name": " "}, {"role": ""}, {"decision": "waive"}):
        with pytest.raises(RecipeError):
            ledger.sign(path, **({"name": "a", "role": "b", "decision": "approve"} | wrong))


def test_a_full_disk_leaves_the_ledger_as_it_was(small, monkeypatch):
    before = small.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger.os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        ledger.append(small, "note", {})
    assert small.read_bytes() == before


def test_the_verbs(tmp_path, capsys):
    path = str(tmp_path / "ledger.jsonl")
    assert run(["ledger", "verify", path]) == 2
    ledger.append_audit(path, judged())
    words = ["--name", "Ana", "--role", "product", "--decision", "approve", "--comment", "known"]
    assert run(["ledger", "sign", path, *words, "--json"]) == 0
    head = json.loads(capsys.readouterr().out)["head"]
    assert run(["ledger", "verify", path, "--head", head, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "valid": True, "entries": 2, "head": head, "audits": 1, "decisions": 1, "head_checked": True,
    }  # fmt: skip
    assert run(["ledger", "show", path]) == 0
    assert "approve of entry 1 by Ana (product) known" in capsys.readouterr().out
    assert run(["ledger", "sign", path, *words[:-4], "--decision", "perhaps"]) == 2
    with open(path, "r+b") as handle:
        handle.seek(40)
        handle.write(b"~")
    capsys.readouterr()
    assert run(["ledger", "verify", path, "--json"]) == 1
    found = capsys.readouterr()
    assert json.loads(found.out)["valid"] is False
    assert found.err.count("\n") == 1
    assert "line 1" in found.err
    assert run(["ledger", "verify", "--help"]) == 0
    assert "--head" in capsys.readouterr().out
