"""What every benchmark records beside its figures."""

import argparse
import json
from pathlib import Path

from regear.core.files import write_json
from regear.core.machine import describe
from regear.core.provenance import git_commit

ROOT = Path(__file__).resolve().parent.parent


def parser(description: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    found.add_argument("--seed", type=int, default=0)
    found.set_defaults(commit=git_commit(ROOT, "src"))  # as the run begins: results and docs may change meanwhile
    found.add_argument("--save", type=Path, help="where to write the result (default: benchmarks/results/NAME.json)")
    return found


def finish(name: str, arguments: argparse.Namespace, results: dict, text: str) -> None:
    """Write the result and print it."""
    record = {"benchmark": name, "commit": arguments.commit, "seed": arguments.seed, **describe(), "results": results}
    write_json(arguments.save or ROOT / "benchmarks" / "results" / f"{name}.json", record)
    print(json.dumps(record) if arguments.json else text)
