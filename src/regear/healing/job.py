"""One healing from its inputs to its output: measure, train in stages, write, measure again."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regear.core.files import digest, home, read_json, write_json, write_text
from regear.core.machine import peak_rss_bytes, versions
from regear.core.provenance import fingerprint
from regear.core.run import Progress, Run, check_apart, is_done, silent
from regear.healing.board import Board
from regear.healing.inputs import check_vocabulary, earlier, read_windows, seen_in_training, training_digest
from regear.healing.measured import TEXTS, Measured, held_out, measure, measure_teacher, record
from regear.healing.recipes import HealRecipe
from regear.healing.report import card_text, write_report
from regear.healing.source import Start
from regear.measure.perplexity import Scores
from regear.models.adapter import directories, source_digest
from regear.models.builtin import resolve
from regear.models.carry import carry_along, source_name
from regear.models.head import check_head
from regear.models.load import load_model, load_tokenizer, pick_device
from regear.tasks.choice import load as load_task
from regear.tasks.text import Window, digest_of, spread
from regear.train.loop import Hooks, Source
from regear.train.parallel import World
from regear.train.recipes import StageRecipe
from regear.train.rows import open_sources
from regear.train.stages import Job, check, run_stages, trained_model
from regear.train.stream import Stream
from regear.train.teacher import FORWARD_ROWS, TeacherCache

DTYPES = {"source": None, "bfloat16": torch.bfloat16, "float32": torch.float32}


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
        open_sources(recipe.data.text)
        windows = read_windows(recipe, tokenizer)
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
            if here.size > 1 and self.recipe.held_out_every:
                print(
                    "regear: warning: held_out_every measures on one process only; nothing is held out", file=sys.stderr
                )
            teacher = load_model(self.teacher, self.device)
            log = run.log if board is None else board.beside(run.log)
            job = self._job(run, here, log, progress, teacher)
            parts = self.recipe.parts()
            self.check_caches()
            check(job, job.student(), teacher, parts)
            seen = seen_in_training(self.recipe.data.text, self.windows)
            progress("measure", 0, 3)
            first, before = self._measured_before(run.work / "before.json", teacher)
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
            kept["measured"]["windows_seen_in_training"] = seen
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
            run = Run(out, self.fingerprint, {})
            run_stages(self._job(run, here, lambda *_, **__: None, silent, None), self.recipe.parts())
        return {"output": str(out), "rank": here.rank}

    def _job(self, run: Run, here: World, log: Callable[..., None], progress: Progress, teacher: Any) -> Job:
        place = run.work / "training"
        scratch = run.scratch / str(here.rank)

        def hooks(student: Any) -> Hooks:
            few = spread(self.windows[TEXTS[0]], self.recipe.held_out_windows)
            watched = here.size == 1 and self.recipe.held_out_every and few
            look = (lambda: held_out(student, teacher, self.tokenizer, few)) if watched else None
            return Hooks(log, progress, look, self.recipe.held_out_every, 60 * self.recipe.save_minutes)

        def source(stage: StageRecipe) -> Source:
            return self.stream(stage, stage.rows(here.size)).shard(here.rank, here.size)

        def original() -> Any:
            return teacher if here.size == 1 else load_model(self.teacher, self.device)

        def proven() -> Any:
            model = original()
            check_head(model)
            return model

        def cached(stage: StageRecipe) -> TeacherCache | None:
            if not self.recipe.teacher.serves(stage):
                return None
            stream = self.stream(stage, FORWARD_ROWS)
            cache = self._cache(stage, stream.state()["of"])
            cache.write((stage.steps() or 0) * stage.batch, stream, proven, here, progress)
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

    def _measured_before(self, place: Path, teacher: Any) -> tuple[Measured, Measured]:
        """The teacher, and the model as it came and in the form that it will have; measured once a run."""
        if not place.exists():
            before, texts = self._measure(load_model(self.start.directory, self.device), teacher)
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

    def check_caches(self) -> None:
        """Refuse written predictions that no stage could use or make.

        Raises:
            RecipeError: pyarrow is missing, or `teacher.place` holds predictions of another identity.
        """
        for stage in self.recipe.parts():
            if self.recipe.teacher.serves(stage):
                self._cache(stage, self.stream(stage, FORWARD_ROWS).state()["of"])

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
