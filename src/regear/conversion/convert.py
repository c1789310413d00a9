"""`regear convert`: the driver that every conversion runs under.

Nothing is read before the recipe, the model's config and the tensor headers fit together; nothing appears at the
output before it has been reloaded and compared; and all that was durable when a run was killed is used again.
"""

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from regear.conversion.base import Conversion, Texts
from regear.conversion.formats.facts import LOADING
from regear.conversion.formats.reexport import Reexport
from regear.conversion.recipes import ConvertRecipe
from regear.conversion.table import CONVERSIONS
from regear.conversion.verify import compare, decode_section, quality_sections
from regear.core import card
from regear.core.errors import CheckpointError, RecipeError
from regear.core.files import home, read_json, write_json, write_text
from regear.core.machine import peak_rss_bytes, versions
from regear.core.provenance import fingerprint
from regear.core.recipe import apply_changes, read_yaml, set_key, validate
from regear.core.report import Plot, Report, Section
from regear.core.run import Progress, Run, check_apart, is_done, silent
from regear.models.adapter import base_of, directories, open_store, source_digest
from regear.models.builtin import resolve
from regear.models.carry import ADAPTED, carry_along, source_name
from regear.models.families import describe
from regear.models.formats.read import is_mla
from regear.models.load import load_tokenizer
from regear.tasks.choice import load as load_task
from regear.tasks.text import BUILTIN, digest_of, read_documents, take_tokens, windows_of

USES = ("calibration", "selection", "evaluation")
# Raised when the same calibration comes to hold something else, so that no stale statistics or factors are read.
STATISTICS_VERSION = 2


def build_recipe(to: str | None, config: str | Path | None, changes: Sequence[str]) -> tuple[ConvertRecipe, str]:
    """The checked recipe and the conversion's name: defaults, then the file, then `key=value` words, then `to`.

    Raises:
        RecipeError: anything unknown, out of range or contradictory.
    """
    values = read_yaml(Path(config)) if config is not None else {}
    apply_changes(values, changes)
    if to is not None:
        set_key(values, "convert.to", to)
    section = values.get("convert")
    name = str(section.get("to", "mla")) if isinstance(section, dict) else "mla"
    model: type[ConvertRecipe] = CONVERSIONS[name].recipe  # type: ignore[assignment]
    return validate(model, values), name


def open_source(
    model: str | Path, recipe: ConvertRecipe, to: str, device: str = "auto"
) -> tuple[Path, Conversion[Any]]:
    """The model's directory and the conversion of it, checked from headers alone.

    Raises:
        CheckpointError, IncompatibleModel: the model is missing, damaged or of no use to this conversion.
    """
    directory = resolve(model)
    store = open_store(directory)
    if is_mla(store.config):
        return directory, Reexport(store, recipe, device)  # type: ignore[arg-type]
    spec = describe(store.config)
    store.require(spec.tensors())
    return directory, CONVERSIONS[to].load()(store, spec, recipe, device)


def read_texts(recipe: ConvertRecipe, directory: Path, vocabulary: int) -> Texts:
    """Windows and token ids for every use of text.

    Raises:
        DataError: a text is missing, not UTF-8 or shorter than one window.
        CheckpointError: the tokenizer makes ids that the model's vocabulary does not have.
    """
    tokenizer = load_tokenizer(directory)
    windows, ids = {}, {}
    for use in USES:
        wanted = getattr(recipe, use)
        found = windows_of(read_documents(wanted.text, use))
        windows[use], ids[use] = take_tokens(found, tokenizer, wanted.tokens, wanted.chat)
        largest = max(max(row) for row in ids[use])
        if largest >= vocabulary:
            raise CheckpointError(
                f"the tokenizer made token {largest}, but the model has a vocabulary of {vocabulary}; "
                "give the tokenizer that belongs to this model"
            )
    return Texts(windows, ids)


def calibration_place(conversion: Conversion[Any], source_digest: str, texts: Texts) -> Path:
    """Where the cache keeps the statistics of this model on this text."""
    identity = {
        "code": STATISTICS_VERSION,
        "model": source_digest,
        "ids": texts.ids["calibration"],
        "weights": [window.weight for window in texts.windows["calibration"]],
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "device": conversion.device.type,
        "seed": conversion.recipe.seed,
    }
    return home() / "calibration" / fingerprint(identity)[:32]


def convert(
    model: str | Path,
    output: str | Path | None = None,
    *changes: str,
    to: str | None = None,
    config: str | Path | None = None,
    tasks: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    seed: int | None = None,
    device: str = "auto",
    max_memory: float | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Convert a model's architecture and measure what that changed.

    Args:
        model: directory (of a model or a LoRA adapter), hub id or embedded name.
        output: the directory to make; it appears whole, by one rename. Not needed with `dry_run`.
        changes: `key=value` words over the recipe.
        to: the conversion, a row of `CONVERSIONS`.
        config: a recipe file.
        tasks: multiple-choice tasks to score before and after.
        force: replace an output of another recipe, text or model.
        dry_run: print sizes, ranks and refusals only; no weight is read.
        seed: over the recipe's.
        device: where layers run: `auto` is the GPU where there is one. Factors are always found in float64 on the CPU.
        max_memory: memory to stay under, in GB: refused where the conversion itself needs more, and whole models
            are loaded (to time a decode step, for tasks) only where both fit. By default what the machine has left.
        progress: told a stage, the step done, and how many there are.

    Returns the JSON object that `regear convert --json` prints.

    Raises:
        RecipeError, IncompatibleModel, CheckpointError, DataError: before anything appears at the output.
    """
    if max_memory is not None and not 0 < max_memory < math.inf:
        raise RecipeError(f"found --max-memory {max_memory:g}; wanted gigabytes, a number above 0")
    if seed is not None:
        changes = (*changes, f"seed={seed}")
    recipe, name = build_recipe(to, config, changes)
    directory, conversion = open_source(model, recipe, name, device)
    plan = conversion.plan()
    limit = None if max_memory is None else int(max_memory * 1e9)
    if limit is not None and plan.memory_bytes > limit:
        raise RecipeError(
            f"found --max-memory {max_memory:g}; this conversion needs about {plan.memory_bytes / 1e9:.1f} GB: "
            "raise it, or lower calibration.tokens"
        )
    if dry_run:
        for use in USES:
            read_documents([name for name in getattr(recipe, use).text if name != BUILTIN], use)
        if output is not None:
            for place in directories(directory):
                check_apart(Path(output), place)
            is_done(Path(output), "", force=True)
        facts = {key: value for key, value in asdict(plan).items() if not key.startswith("kv_floats")}
        kv = {"before": plan.kv_floats_before, "after": plan.kv_floats_after}
        return {"dry_run": True, "to": name, "format": conversion.format, "kv_floats_per_token": kv, **facts}
    if output is None:
        raise RecipeError("no output given; name one with -o DIR, or pass --dry-run")
    out = Path(os.path.abspath(output))
    for place in directories(directory):
        check_apart(out, place)
    for task in tasks:
        load_task(task)
    texts = read_texts(recipe, directory, conversion.spec.vocabulary)
    conversion.check_texts(texts, warn)
    if shared := texts.shared():
        warn(f"{shared} evaluation windows are also calibration or selection text; the figures will look too good")
    job = Job(conversion, texts, directory, out, source_name(model, directory), name, list(tasks), limit)
    if is_done(out, job.fingerprint, force=force):
        return {**job.result(read_json(out / "regear.json"), 0.0), "already_done": True}
    return job.run(progress, force=force)


def warn(message: str) -> None:
    print(f"regear: warning: {message}", file=sys.stderr)


class Job:
    """One conversion with its inputs fixed: their identity, the steps, the record."""

    def __init__(
        self,
        conversion: Conversion[Any],
        texts: Texts,
        directory: Path,
        output: Path,
        source: str,
        to: str,
        tasks: list[str],
        limit: int | None,
    ) -> None:
        self.conversion, self.texts, self.directory = conversion, texts, directory
        self.output, self.source, self.to, self.tasks, self.limit = output, source, to, tasks, limit
        recipe: ConvertRecipe = conversion.recipe
        self.inputs: dict[str, Any] = {
            "model": source_digest(directory),
            "texts": {use: digest_of(texts.windows[use]) for use in USES},
            "recipe": recipe.model_dump(mode="json") | {use: getattr(recipe, use).named() for use in USES},
            "tasks": tasks,
            "source": source,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "device": conversion.device.type,
        }
        self.fingerprint = fingerprint(self.inputs)

    def run(self, progress: Progress, *, force: bool) -> dict[str, Any]:
        """All steps; the output appears at the end."""
        recipe = self.conversion.recipe
        with Run(self.output, self.fingerprint, self.inputs["recipe"]) as run:
            if is_done(self.output, self.fingerprint, force=force):  # another process may just have finished
                return {**self.result(read_json(self.output / "regear.json"), 0.0), "already_done": True}
            place = calibration_place(self.conversion, self.inputs["model"], self.texts)
            chosen = self.conversion.prepare(self.texts, place, progress)
            run.log("prepared", **chosen)
            self.conversion.write(run.staging, progress)
            carry_along(self.directory, run.staging)
            run.log("written")
            progress("compare", 0, 1)
            windows = self.texts.windows["evaluation"]
            device = str(self.conversion.device)
            measured, decode = compare(
                self.conversion.store, self.directory, run.staging, windows, self.tasks, recipe.seed, device, self.limit
            )
            measured["evaluation_windows_seen_before"] = self.texts.shared()
            self.conversion.accept(measured)
            progress("compare", 1, 1)
            inside, plots = self.conversion.explain()
            write_text(run.staging / "README.md", self._card([*quality_sections(measured), *inside]))
            record: dict[str, Any] = {"fingerprint": self.fingerprint, "to": self.to, "format": self.conversion.format}
            record |= {**self.inputs, "chosen": chosen, "measured": measured}
            write_json(run.staging / "regear.json", record)
            result = self.result(record, time.monotonic() - run.started)
            run.log("measured", **result)
            timed, curves = decode_section(decode)
            self._report(run.directory, result, [*quality_sections(measured), timed, *inside], [*curves, *plots])
            run.publish()
        return result

    def result(self, record: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The JSON object of the verb, from what the checkpoint records."""
        measured = record["measured"]
        return {
            "output": str(self.output),
            "to": self.to,
            "format": record["format"],
            "kv_floats_per_token": measured["kv_floats_per_token"],
            "perplexity": measured["perplexity"],
            "kl": measured["kl"],
            "tasks": measured["tasks"],
            "report": str(self.output.with_name(self.output.name + ".run") / "report.html"),
            "seconds": round(seconds, 3),
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def _card(self, sections: Sequence[Section]) -> str:
        settings = ", ".join(f"{key} {value}" for key, value in self.conversion.settings().items())
        lead = (
            f"{self.source} with its attention converted by regear: {CONVERSIONS[self.to].help}. "
            f"Settings: {settings}. {LOADING[self.conversion.format]} `regear.json` records digests, versions and "
            "every figure below."
        )
        return card.render(
            f"{self.source.split('/')[-1]} as {self.conversion.format}",
            lead,
            sections,
            source=card.source_metadata(base_of(self.directory)),
            base=self.source.split(ADAPTED)[0],
            tags=["regear", self.to],
        )

    def _report(
        self, directory: Path, result: dict[str, Any], sections: Sequence[Section], plots: Sequence[Plot]
    ) -> None:
        write_json(directory / "report.json", result)
        lead = (
            f"Output {self.output}; {result['seconds']:.0f} s, peak memory {result['peak_rss_bytes'] / 2**30:.2f} GiB."
        )
        Report(f"{self.source} → {self.conversion.format}", sections, plots, lead).write(directory / "report.html")
