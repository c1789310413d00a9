"""Jobs of the suffix index's benchmark, each in a process of one side."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import regear

HERE = Path(__file__).parent
OURS, THEIRS, TREE = "regear", "arctic", "arctic, its tree alone"


class Bench:
    """Runs jobs of either side on the same texts."""

    def __init__(self, arguments: Any, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.sides = [OURS, THEIRS] if arguments.rival else [OURS]
        files = {"history": folder / "history.npz", "texts": folder / "texts.npz"}
        self.common = {"core": arguments.core, **{name: str(path) for name, path in files.items()}}

    def run(self, side: str, what: str, /, **job: Any) -> Any:
        script = HERE / f"suffix_index_{OURS if side == OURS else THEIRS}.py"
        python = sys.executable if side == OURS else str(self.arguments.rival)
        source = str(Path(regear.__file__).parents[1]) if side == OURS else ""
        environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        words = [python, str(script), json.dumps({**self.common, "what": what, **job})]
        print(side, what, {k: v for k, v in job.items() if k != "places"}, file=sys.stderr)
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{side}, {what}: ended with {done.returncode}; what it said stands above")
        return json.loads(done.stdout)

    def rounds(self, cases: Sequence[tuple[str, str, dict]]) -> list[dict[str, float]]:
        """Medians of each case over interleaved rounds."""
        found: list[list[dict]] = [[] for _ in cases]
        for _ in range(self.arguments.rounds):
            for rows, (side, what, job) in zip(found, cases, strict=True):
                rows.append(self.run(side, what, **job))
        return [{name: statistics.median(row[name] for row in rows) for name in rows[0]} for rows in found]
