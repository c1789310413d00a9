"""`regear heal`: train a converted model back to what it was made from, and measure what that won.

The original is measured on the same windows, so that a gain of the domain is not sold as a repair.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regear.core.errors import IncompatibleModel, RecipeError
from regear.core.files import digest, home, read_json, sha256, write_json, write_text
from regear.core.machine import peak_rss_bytes, versions
from regear.core.provenance import fingerprint
from regear.core.recipe import apply_changes, read_yaml, set_key, validate
from regear.core.run import Progress, Run, check_apart, is_done, silent
from regear.healing.board import Board
from regear.healing.measured import TEXTS, Measured, held_out, measure, measure_teacher, record
from regear.healing.plan import make_plan
from regear.healing.recipes import HealRecipe
from regear.healing.report import card_text, write_report
from regear.healing.source import Start
from regear.measure.perplexity import Scores
from regear.models.adapter import directories, source_digest
from regear.models.builtin import resolve
from regear.models.carry import carry_along, source_name
from regear.models.load import load_model, load_tokenizer, pick_device
from regear.tasks.choice import load as load_task
from regear.tasks.text import BUILTIN, Window, digest_of, read_documents, spread, take_tokens, windows_of
from regear.train.loop import Hooks, Source
from regear.train.parallel import World, processes, world
from regear.train.recipes import StageRecipe
from regear.train.rows import open_sources
from regear.train.stages import Job, check, run_stages, trained_model
from regear.train.stream import Stream
from regear.train.teacher import FORWARD_ROWS, TeacherCache

SPLITS = {"evaluation": "evaluation", "elsewhere": "unseen"}
DTYPES = {"source": None, "bfloat16": torch.bfloat16, "float32": torch.float32}


def build_recipe(
    config: str | Path | None, changes: Sequence[str], text: Sequence[str | Path], size: int = 1
) -> HealRecipe:
    """The checked recipe for `size` processes: defaults, then the file, `key=value` words, the training texts.

    Raises:
        RecipeError: anything unknown, out of range or contradictory.
    """
    values = read_yaml(Path(config)) if config is not None else {}
    apply_changes(values, changes)
    if text:
        set_key(values, "data.text", [str(name) for name in text])
    recipe = validate(HealRecipe, values)
    for stage in recipe.parts():
        stage.rows(size)
    return recipe


def heal(
    model: str | Path,
    teacher: str | Path,
    output: str | Path | None = None,
    *changes: str,
    text: Sequence[str | Path] = (),
    config: str | Path | None = None,
    tasks: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    tensorboard: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
    announce: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train a converted model on its original (or on text alone), and write it in the form it came in.

    Args:
        model: the directory to heal.
        teacher: the original: directory, hub id or embedded name. Every figure is a ratio to it.
        output: the directory to make; it appears whole, by one rename.
        changes: `key=value` words over the recipe.
        text: training files (text, JSONL or parquet) in the place of the built-in texts.
        config: a recipe file.
        tasks: multiple-choice tasks to score before and after.
        force: replace an output of another recipe, text or model.
        dry_run: only say what it would take and refuse what cannot be done; no weight is read. Needs no output.
        tensorboard: a folder that shows the run's metrics to TensorBoard.
        seed: over the recipe's.
        device: `auto` is the GPU where there is one.
        progress: told a stage, the step done, and how many there are.
        announce: told the plan before training begins.

    Returns the JSON object that `regear heal --json` prints.

    Raises:
        RecipeError, IncompatibleModel, CheckpointError, DataError: before anything appears at the output.
    """
    words = (*changes, *([] if seed is None else [f"seed={seed}"]))
    if dry_run:
        healing = Healing.open(model, teacher, build_recipe(config, words, text, processes()), list(tasks), device)
        if output is not None:
            is_done(healing.apart(output), healing.fingerprint, force=force)
        return make_plan(healing)
    with world(pick_device(device)) as here:
        recipe = build_recipe(config, words, text, here.size)
        if output is None:
            raise RecipeError("no output given; name one with -o DIR, or pass --dry-run")
        healing = Healing.open(model, teacher, recipe, list(tasks), device)
        out = healing.apart(output)
        if not here.leads:
            return healing.follow(out, here)
        if is_done(out, healing.fingerprint, force=force):
            return healing.already(out, here)
        board = None if tensorboard is None else Board(Path(tensorboard))
        if announce is not None:
            announce(make_plan(healing))
        return healing.run(out, here, progress, board, force=force)


@dataclass(frozen=True)
class Healing:
    """One healing with its inputs fixed."""

    start: Start
    teacher: Path
    recipe: HealRecipe
    tasks: list[str]
    device: str
    tokenizer: Any
    windows: dict[str, list[Window]]
    inputs: dict[str, Any]

    @classmethod
    def open(
        cls, model: str | Path, teacher: str | Path, recipe: HealRecipe, tasks: list[str], device: str
    ) -> "Healing":
        """Check that the two belong together and read the texts to measure on.

        Raises:
            IncompatibleModel: their vocabularies differ.
        """
        start, original = Start.open(resolve(model)), resolve(teacher)
        pick_device(device)
        for task in tasks:
            load_task(task)
        tokenizer = load_tokenizer(start.directory)
        check_vocabulary(tokenizer, start.store.config, original)
        check_processes(recipe)
        open_sources(recipe.data.text)
        windows = {}
        for use, split in SPLITS.items():
            wanted = getattr(recipe, use)
            windows[use], _ = take_tokens(windows_of(read_documents(wanted.text, split)), tokenizer, wanted.tokens)
        inputs = {
            "model": source_digest(start.directory),
            "teacher": source_digest(original),
            "source": source_name(model, start.directory),
            "taught_by": source_name(teacher, original),
            "texts": {use: digest_of(found) for use, found in windows.items()} | {"training": training_digest(recipe)},
            "recipe": recipe.named(),
            "tasks": tasks,
            "versions": versions(),
            "device": pick_device(device).type,
        }
        return cls(start, original, recipe, tasks, device, tokenizer, windows, inputs)

    @property
    def fingerprint(self) -> str:
        """The identity of the result; the number of processes and threads is not part of it: any may resume."""
        return fingerprint(self.inputs)

    def run(
        self, out: Path, here: World, progress: Progress, board: Board | None = None, *, force: bool
    ) -> dict[str, Any]:
        """Measure, train, write, measure; the output appears at the end."""
        with Run(out, self.fingerprint, self.inputs["recipe"]) as run:
            if is_done(out, self.fingerprint, force=force):  # another process may just have finished
                return self.already(out, here)
            here.sum(1)
            teacher = load_model(self.teacher, self.device)
            log = run.log if board is None else board.beside(run.log)
            job = self._job(run.work, here, log, progress, teacher)
            student, parts = job.student(), self.recipe.parts()
            check(job, student, parts)
            progress("measure", 0, 3)
            first, before = self._measured_before(run.work / "before.json", student, teacher)
            del student
            progress("measure", 2, 3)
            stages = run_stages(job, parts)
            self.start.save(trained_model(job, len(parts)).state_dict(), run.staging, DTYPES[self.recipe.dtype])
            carry_along(self.start.directory, run.staging)
            after, _ = self._measure(load_model(run.staging, self.device), teacher)
            progress("measure", 3, 3)
            trained = [{k: v for k, v in stage.items() if k != "seconds"} for stage in stages]
            kept = {"fingerprint": self.fingerprint, "format": self.start.format, **self.inputs, "stages": trained}
            kept["from"] = earlier(self.start.directory)
            kept["measured"] = record(first, before, after, self.windows, self.recipe.seed)
            write_json(run.staging / "regear.json", kept)
            write_text(run.staging / "README.md", card_text(self.start.directory, self.teacher, kept))
            found = result(out, kept, time.monotonic() - run.started)
            run.log("measured", **found)
            write_report(run.directory, kept, found)
            run.publish()
        return found

    def apart(self, output: str | Path) -> Path:
        """The output's full path, which must lie apart from both models."""
        out = Path(os.path.abspath(output))
        for place in (self.start.directory, *directories(self.teacher)):
            check_apart(out, place)
        return out

    def already(self, out: Path, here: World) -> dict[str, Any]:
        """The result that is there; the processes that follow have nothing to do."""
        here.sum(0)
        return {**result(out, read_json(out / "regear.json"), 0.0), "already_done": True}

    def follow(self, out: Path, here: World) -> dict[str, Any]:
        """What every process but the first does: its share of the training, once the first has opened the run."""
        if here.sum(0):
            work = Run(out, self.fingerprint, {}).work
            run_stages(self._job(work, here, lambda *_, **__: None, silent, None), self.recipe.parts())
        return {"output": str(out), "rank": here.rank}

    def _job(self, work: Path, here: World, log: Callable[..., None], progress: Progress, teacher: Any) -> Job:
        place = work / "training"
        scratch = work / f"scratch-{here.rank}"

        def hooks(student: Any) -> Hooks:
            few = spread(self.windows[TEXTS[0]], self.recipe.held_out_windows)
            watched = here.size == 1 and self.recipe.held_out_every and few
            look = (lambda: held_out(student, teacher, self.tokenizer, few)) if watched else None
            return Hooks(log, progress, look, self.recipe.held_out_every, 60 * self.recipe.save_minutes)

        def source(stage: StageRecipe) -> Source:
            return self.stream(stage, stage.rows(here.size)).shard(here.rank, here.size)

        def original() -> Any:
            return teacher if here.size == 1 else load_model(self.teacher, self.device)

        def cached(stage: StageRecipe) -> TeacherCache | None:
            if not self.recipe.teacher.serves(stage):
                return None
            stream = self.stream(stage, FORWARD_ROWS)
            cache = self._cache(stage, stream.state()["of"])
            cache.write((stage.steps() or 0) * stage.batch, stream, original, here, progress)
            return cache

        return Job(
            lambda: self.start.load(scratch, self.device),
            original,
            source,
            place,
            here,
            hooks,
            self.recipe.seed,
            pick_device(self.device),
            cached,
        )

    def _measured_before(self, place: Path, student: Any, teacher: Any) -> tuple[Measured, Measured]:
        """The teacher and the model as it came; measured once a run."""
        if not place.exists():
            before, texts = self._measure(student, teacher)
            first = measure_teacher(teacher, texts, self.tokenizer, self.windows, self.tasks)
            write_json(place, [asdict(first), asdict(before)])
        first, before = map(Measured.from_json, read_json(place))
        return first, before

    def stream(self, stage: StageRecipe, rows: int) -> Stream:
        """The training data of a stage, `rows` rows at a time."""
        data = self.recipe.data
        return Stream(
            data.text,
            self.tokenizer,
            sequence=stage.sequence,
            batch=rows,
            seed=self.recipe.seed,
            buffer=data.shuffle,
            packing=data.packing,
            end=data.end_of_text,
            pairs=stage.objective.pairs,
        )

    def _cache(self, stage: StageRecipe, rows: dict[str, Any]) -> TeacherCache:
        """The teacher's predictions on the stream that a stage reads; `rows` says how it lays them."""
        known = ("teacher", "versions", "device")
        identity = {
            **{key: self.inputs[key] for key in known},
            "tokenizer": digest(self.tokenizer.get_vocab()),
            "texts": self.inputs["texts"]["training"],
            "rows": rows,
        }
        wanted = self.recipe.teacher
        settings: dict[str, Any] = {"kept": wanted.cache, "dtype": wanted.dtype, "sequence": stage.sequence}
        folder = home() / "teacher" / fingerprint(identity | settings)[:32]
        place = folder if wanted.place is None else Path(wanted.place).expanduser() / f"sequence-{stage.sequence}"
        return TeacherCache(place, identity, **settings)

    def _measure(self, model: Any, teacher: Any) -> tuple[Measured, dict[str, Scores]]:
        return measure(model.eval(), teacher, self.tokenizer, self.windows, self.tasks)


def check_vocabulary(tokenizer: Any, config: dict[str, Any], teacher: Path) -> None:
    """Refuse a teacher whose tokens mean something else.

    Raises:
        IncompatibleModel: another vocabulary, by size or by content.
    """
    other = load_tokenizer(teacher)
    mine, theirs = tokenizer.get_vocab(), other.get_vocab()
    if mine != theirs:
        differing = len(set(mine.items()) ^ set(theirs.items()))
        raise IncompatibleModel(
            f"the model's vocabulary ({len(mine)} tokens) and the teacher's ({len(theirs)}) differ in {differing} "
            "entries; wanted the model it was converted from, or another of the same tokenizer"
        )
    size = int(read_json(teacher / "config.json").get("vocab_size", 0))
    if size != config.get("vocab_size"):
        raise IncompatibleModel(
            f"the model predicts {config.get('vocab_size')} tokens and the teacher {size}; wanted equal vocab_size"
        )


def check_processes(recipe: HealRecipe) -> None:
    """Refuse a batch that the processes cannot share evenly.

    Raises:
        RecipeError: rows would be left over, or a pair be cut in two.
    """
    for stage in recipe.parts():
        unit = processes() * (2 if stage.objective.pairs else 1)
        if stage.batch % unit:
            raise RecipeError(
                f"found train.batch {stage.batch} for {processes()} processes; wanted a multiple of {unit}"
                + (" (pairs take two rows each)" if stage.objective.pairs else "")
            )


def training_digest(recipe: HealRecipe) -> dict[str, str]:
    """The digest of every training file, by name."""
    found = {}
    for name in recipe.data.text:
        if name == BUILTIN:
            found[name] = digest_of([Window(d.text, d.kind) for d in read_documents([name], "training")])
        else:
            found[Path(name).name] = sha256(Path(name).expanduser())
    return found


def earlier(directory: Path) -> dict[str, Any]:
    """What the model being healed records of its own making."""
    place = directory / "regear.json"
    made = read_json(place) if place.exists() else {}
    return {key: made[key] for key in ("source", "to", "format", "recipe", "chosen", "from", "stages") if key in made}


def result(out: Path, kept: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The JSON object of the verb, from what the checkpoint records."""
    texts = kept["measured"]["texts"]
    main = texts["evaluation"]
    return {
        "output": str(out),
        "format": kept["format"],
        "tokens": sum(stage["tokens"] for stage in kept["stages"]),
        "perplexity": main["perplexity"],
        "ratio": main["ratio"],
        "kl": main["kl"],
        "elsewhere": {key: texts["elsewhere"][key] for key in ("perplexity", "ratio", "kl")},
        "generation": kept["measured"]["generation"],
        "tasks": kept["measured"]["tasks"],
        "report": str(out.with_name(out.name + ".run") / "report.html"),
        "seconds": round(seconds, 3),
        "peak_rss_bytes": peak_rss_bytes(),
    }
