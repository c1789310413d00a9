"""Every command in the docs runs; every recipe, example and link is real; the tables name what the code has."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from regear.cli.main import run
from regear.conversion.convert import build_recipe
from regear.conversion.factors import FACTORS
from regear.conversion.recipes import MlaConvertRecipe
from regear.core.recipe import keys
from tests.tiny import make_adapter, make_text, small

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"```(?:sh|bash|console)\n(.*?)```", re.DOTALL)


def commands(page: Path) -> list[str]:
    return [line for block in BLOCK.findall(page.read_text()) for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_runs(page, tiny, tmp_path, monkeypatch, capsys, text):
    """In order, in one folder, as a reader would; the embedded model is replaced by a tiny one, the texts by short ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGEAR_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("regear.pipeline.demo.MODEL", str(tiny("llama")))
    for name in ("my_text.txt", "my_other_text.txt"):
        (tmp_path / name).write_text(make_text(seed=len(name)))
    make_adapter(tiny("llama"), tmp_path / "my-adapter", ["q_proj", "v_proj"])
    if page.name == "audit.md":
        audit_files(tmp_path, page, str(tiny("llama")))
    monkeypatch.setattr("regear.tasks.text.builtin_documents", lambda split: _documents(text))
    monkeypatch.setattr("regear.tasks.choice.mmlu", _items)
    monkeypatch.setitem(__import__("regear.tasks.choice", fromlist=["TASKS"]).TASKS, "mmlu", _items)
    for line in commands(page):
        words = shlex.split(line.split(" #")[0])
        if words[0] == "make":
            assert subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True).returncode == 0, line
        elif words[0] == "regear":
            words = [str(tiny("llama")) if w == "smollm2-135m-instruct" else w for w in words[1:]]
            words = [re.sub(r"train\.tokens=\d{5,}", "train.tokens=4096", word) for word in words]
            assert run(words) == 0, f"{line}: {capsys.readouterr().err}"
        else:
            assert words[:2] in (["git", "clone"], ["pip", "install"], ["cd", "regear"]) or words[0] == "cd", line


PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def examples(page: Path) -> list[str]:
    return [block for block in PYTHON.findall(page.read_text()) if "regear" in block]


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda p: p.name)
def test_every_python_example_of_ours_runs(page, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in examples(page):
        exec(compile(block.replace("smollm2-135m-instruct", str(tiny("llama"))), page.name, "exec"), {})
    assert capsys.readouterr().out


def audit_files(folder, page, model):
    """What the commands of the audit's page read: tables, lists, texts, and the YAML that the page shows."""
    generator = np.random.default_rng(0)
    ids = [f"u{i}" for i in range(300)]
    score = generator.normal(size=300)
    shown = {"clicks": [1.0] * 300, "shown": [4.0] * 300}
    region, device = generator.choice(["north", "east"], 300), generator.choice(["phone", "desk"], 300)
    places = {"region": region, "device": device}
    rows = [{"user": u, "item": f"i{(n + r) % 40}", "rank": r + 1} for n, u in enumerate(ids) for r in range(3)]
    tables = {
        "before": {"id": ids, "score": score, **shown, **places},
        "after": {"id": ids, "score": score + 0.01, **shown},
        "people": {"id": ids, "gender": generator.choice(["f", "m"], 300)},
        "users": {"user": ids, "age": generator.choice(["young", "old"], 300)},
        "items": {"item": [f"i{n}" for n in range(40)], "provider": ["large", "small"] * 20},
        "wanted": {"user": ids, "item": [row["item"] for row in rows[::3]]},
        "lists_before": rows,
        "lists_after": rows,
        "texts_by_language": [{"text": make_text(seed=n), "language": ("en", "hi")[n % 2]} for n in range(2)],
    }
    for name, table in tables.items():
        pl.DataFrame(table).write_ndjson(folder / f"{name}.jsonl")
    gates, chain = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    (folder / "gates.yaml").write_text(gates)
    (folder / "chain.yaml").write_text(chain.replace("smollm2-135m-instruct", model))


def _documents(text):
    from regear.tasks.text import Document

    return [Document(text.read_text(), "essay")]


def _items():
    from regear.tasks.choice import ChoiceItem

    return [ChoiceItem(str(i), f"Which is {i}?", ("one", "two", "three", "four"), i % 4) for i in range(4)]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_is_valid(path):
    recipe, name = build_recipe(None, path, [])
    assert name == "mla"
    assert 0 < recipe.convert.ratio <= 1


def test_recipes_convert(tiny, text, tmp_path, cache):
    import regear

    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        result = regear.convert(tiny("llama"), tmp_path / path.stem, *small(text), config=path)
        assert result["kv_floats_per_token"]["after"] <= 72


def test_examples_run(tiny, text, tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for path in sorted((ROOT / "examples").glob("*.py")):
        monkeypatch.setattr(sys, "argv", [str(path), str(tiny("llama")), str(tmp_path / path.stem), *small(text)])
        runpy.run_path(str(path), run_name="__main__")
    assert "KV floats a token" in capsys.readouterr().out


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if not target.startswith(("http", "mailto")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_docs_name_every_factor_and_no_key_that_is_not_there():
    page = (ROOT / "docs" / "convert.md").read_text()
    assert all(f"`{name}`" in page for name in FACTORS)
    known = set(keys(MlaConvertRecipe))
    named = set(re.findall(r"`((?:convert|calibration)\.[a-z_]+)`", page))
    assert named <= known
    assert known - named <= {"convert.to", "convert.rope", "convert.format", "convert.dtype", "convert"} | {
        k for k in known if k.startswith(("selection", "evaluation", "calibration", "seed"))
    }


def test_the_project_names_no_registry_host_and_no_place_of_one_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed or [str(p.relative_to(ROOT)) for p in (ROOT / "src").rglob("*.py")]:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".yml", ".txt") and path.exists():
            found = re.search(
                r"(pypi\.org|pythonhosted|registry\.npmjs|deb\.debian|/root/|/home/\w+/)", path.read_text()
            )
            assert not found or name == "tests/test_docs.py", f"{name}: {found}"
