"""Model cards: the README of an output, with the licence and notices of its source carried over."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from regear.core.errors import writing
from regear.core.report import Section

NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")


def source_metadata(directory: Path) -> dict[str, Any]:
    """The front matter of a source model's card; empty where there is none."""
    try:
        text = (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith("---"):
        return {}
    try:
        found = yaml.safe_load(text.split("---", 2)[1])
    except (yaml.YAMLError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def render(
    title: str, lead: str, sections: Sequence[Section], *, source: dict[str, Any], base: str, tags: Sequence[str]
) -> str:
    """The card's text: front matter that inherits the licence, then the sections."""
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front |= {key: source[key] for key in ("license", "license_name", "license_link", "language") if key in source}
    front |= {"base_model": base, "base_model_relation": "finetune", "tags": list(tags)}
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    body = "\n\n".join(f"## {s.title}\n\n{s.markdown() if s.rows else s.note}" for s in sections)
    return f"---\n{head}---\n\n# {title}\n\n{lead}\n\n{body}\n"


def carry_notices(source: Path, target: Path, prefix: str = "") -> list[str]:
    """Copy licence and notice files, with a prefix to their names; returns the names."""
    names = []
    for path in sorted({p for pattern in NOTICES for p in source.glob(pattern) if p.is_file()}):
        name = prefix + path.name
        with writing(target / name):
            shutil.copyfile(path, target / name)
        names.append(name)
    return names
