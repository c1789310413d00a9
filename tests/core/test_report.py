"""Reports: one file, nothing loaded from elsewhere, the same bytes for the same figures; cards keep the licence."""

import re

import yaml

from regear.core import card
from regear.core.report import Plot, Report, Section, Series, number


def make():
    plot = Plot(
        "Curve", [Series("a", [1, 2, 3], [3, 2, 1], [2.5, 1.5, 0.5], [3.5, 2.5, 1.5])], "x", "y", True, [(2, 2, "knee")]
    )
    return Report(
        "A <title>", [Section("T", ["k", "v"], [["a<b", 1.5], ["c", None]], "note")], [plot, Plot.bars("B", ["x"], [1])]
    )


def test_one_file_with_nothing_from_elsewhere():
    page = make().html()
    assert "A &lt;title&gt;" in page
    assert "a&lt;b" in page
    assert page.count("<svg") == 2
    assert not re.search(r"<(script|link|img|iframe)", page)
    assert not re.search(r"(src|href)=['\"](?!#)", page)
    addresses = set(re.findall(r"https?://[^\"'\s<>]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_same_figures_same_bytes():
    assert make().html() == make().html()


def test_numbers():
    assert [number(x) for x in (1234567, 0.12345, 123.456, 1e-9, None, "s", True)] == [
        "1,234,567",
        "0.123",
        "123.5",
        "1.00e-09",
        "–",
        "s",
        "True",
    ]


def test_card_inherits_licence_and_carries_notices(tmp_path):
    source, target = tmp_path / "s", tmp_path / "t"
    source.mkdir()
    target.mkdir()
    (source / "README.md").write_text("---\nlicense: llama3\nlicense_name: x\n---\ntext")
    (source / "NOTICE").write_text("n")
    (source / "LICENSE.txt").write_text("l")
    assert card.carry_notices(source, target) == ["LICENSE.txt", "NOTICE"]
    text = card.render("T", "lead", [], source=card.source_metadata(source), base="o/m", tags=["mla"])
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "llama3"
    assert front["base_model"] == "o/m"
    assert card.source_metadata(tmp_path) == {}
