"""The CPU guard caps exactly the machines that would crash; importing costs no torch."""

import subprocess
import sys

import pytest

from regear.core import machine


@pytest.mark.parametrize(
    ("flags", "granted", "before", "after"),
    [
        ({"amx_tile"}, False, None, "AVX512_CORE_FP16"),
        ({"amx_tile"}, True, None, None),
        (set(), False, None, None),
        ({"amx_tile"}, False, "AVX2", "AVX2"),
    ],
)
def test_guard(flags, granted, before, after, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if before:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", before)
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    monkeypatch.setattr(machine, "amx_granted", lambda: granted)
    machine.guard_cpu()
    assert machine.os.environ.get("ONEDNN_MAX_CPU_ISA") == after


def test_importing_regear_imports_no_torch():
    code = "import regear, regear.cli.main, regear.conversion.table, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_describe_holds_what_a_bug_report_needs():
    found = machine.describe()
    assert found["versions"]["torch"] != "missing"
    assert found["machine"]["cores"] >= 1
    assert machine.peak_rss_bytes() > 1 << 20
