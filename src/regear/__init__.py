"""regear: give a pretrained language model new gears, measure the change, get an ordinary checkpoint back.

Every verb of the command line is a function here: `regear.convert(...)`, `regear.eval(...)`. Importing this
module imports no torch; a verb loads what it needs when it is called.
"""

import importlib
from typing import Any

from regear.core.machine import guard_cpu

__version__ = "0.1.0"

guard_cpu()

VERBS = {
    "fetch": "regear.models.builtin:fetch",
    "convert": "regear.conversion.convert:convert",
    "sweep": "regear.conversion.sweep:sweep",
    "heal": "regear.healing.heal:heal",
    "plan": "regear.pipeline.plan:plan",
    "eval": "regear.measure.evaluate:evaluate",
    "audit": "regear.auditing.audit:audit",
    "generate": "regear.engine.text:generate",
    "generate_rows": "regear.engine.rows:generate_rows",
    "run": "regear.pipeline.run:run",
    "demo": "regear.pipeline.demo:demo",
}


def __getattr__(name: str) -> Any:
    if name not in VERBS:
        raise AttributeError(f"module 'regear' has no attribute {name!r}")
    module, _, attribute = VERBS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *VERBS]
