"""A journal gives back what was written, whatever happened to its last record."""

import errno
import os

import pytest

from regear.core.errors import DataError
from regear.core.journal import HEAD, MAGIC, Journal

RECORDS = [b"first", b"", bytes(range(9, 15)), b"last one"]


def written(path, records=RECORDS):
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()
    return path.read_bytes()


def test_records_come_back_in_order(tmp_path):
    written(tmp_path / "a" / "j")
    journal = Journal(tmp_path / "a" / "j")
    assert list(journal.records()) == RECORDS
    journal.append(b"more")
    assert list(journal.records()) == [*RECORDS, b"more"]


def test_whatever_byte_the_process_is_killed_at_whole_records_stay_and_more_can_follow(tmp_path):
    path = tmp_path / "j"
    whole = written(path)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        journal = Journal(path)
        found = list(journal.records())
        ends = [len(MAGIC) + sum(HEAD + len(one) for one in RECORDS[: k + 1]) for k in range(len(RECORDS))]
        assert found == [one for one, end in zip(RECORDS, ends, strict=True) if end <= cut]
        journal.append(b"next")
        journal.close()
        reopened = Journal(path)
        assert list(reopened.records()) == [*found, b"next"]
        reopened.close()


@pytest.mark.parametrize("zeros", [1, HEAD, 100])
def test_room_that_was_never_written_to_is_dropped(tmp_path, zeros):
    path = tmp_path / "j"
    path.write_bytes(written(path) + bytes(zeros))
    assert list(Journal(path).records()) == RECORDS


def test_a_changed_byte_before_the_last_record_is_refused_and_the_file_left_alone(tmp_path):
    path = tmp_path / "j"
    whole = written(path)
    for at in [*range(len(MAGIC)), len(MAGIC) + HEAD, len(MAGIC) + HEAD - 1]:
        changed = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"damaged at byte|begins with"):
            Journal(path)
        assert path.read_bytes() == changed


def test_only_one_holds_it(tmp_path):
    journal = Journal(tmp_path / "j")
    with pytest.raises(DataError, match="held open"):
        Journal(tmp_path / "j")
    journal.close()
    Journal(tmp_path / "j")


def test_replaced_records_are_there_alone_and_the_lock_goes_on(tmp_path):
    path = tmp_path / "j"
    written(path)
    (tmp_path / ".j.1.tmp").write_bytes(b"left by one that was killed")
    journal = Journal(path)
    journal.replace([b"new"])
    journal.append(b"after")
    with pytest.raises(DataError, match="held open"):
        Journal(path)
    journal.close()
    assert list(Journal(path).records()) == [b"new", b"after"]
    assert os.listdir(tmp_path) == ["j"]


def test_a_full_disk_loses_that_record_alone(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append(b"before")
    real = journal.handle

    class Full:
        def write(self, content):
            real.write(bytes(content)[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(real, name)

    journal.handle = Full()
    with pytest.raises(DataError, match="No space left"):
        journal.append(b"too much")
    journal.handle = real
    journal.append(b"after")
    assert list(journal.records()) == [b"before", b"after"]


def test_a_failed_write_to_disk_ends_it(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j")

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(DataError, match="Input/output"):
            journal.sync()
    with pytest.raises(DataError, match="before"):
        journal.append(b"more")
