"""The demo's path on a tiny model: compares, writes, reloads, generates, reports; runs again over an older demo."""

import json

import regear
from regear.tasks.text import Document


def test_demo(tiny, text, tmp_path, cache, monkeypatch):
    monkeypatch.setattr("regear.pipeline.demo.MODEL", str(tiny("llama")))
    monkeypatch.setattr(
        "regear.tasks.text.builtin_documents", lambda split: [Document(text.read_text() + split, "essay")]
    )
    result = regear.demo(tmp_path / "demo")
    assert [p["setting"] for p in result["sweep"]["points"]] == ["svd"] * 3 + ["care-uniform"] * 3 + ["best"] * 3
    assert result["convert"]["kv_floats_per_token"]["after"] == 72
    assert set(result["generate"]) == {"before", "after"}
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "care-uniform" in page
    assert "<svg" in page
    record = tmp_path / "demo" / "mla-half" / "regear.json"
    record.write_text(json.dumps({"fingerprint": "of an older version"}))
    regear.demo(tmp_path / "demo")
    assert json.loads(record.read_text())["fingerprint"] != "of an older version"
