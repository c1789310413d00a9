"""The `regear` command: words to calls. Verbs import what they need when they run, so that help costs no torch."""

import importlib.metadata
import os
import sys
import tempfile
import traceback
from typing import Annotated, Any

import typer

from regear.cli import audit, convert, demo, evaluate, fetch, generate, heal, inspect, ledger, steps
from regear.core.errors import RegearError, one_line

app = typer.Typer(
    name="regear",
    help="Give a pretrained language model new gears: convert it, measure the change, get an ordinary checkpoint back.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"regear {importlib.metadata.version('regear')}")
        raise typer.Exit


@app.callback(help=app.info.help)
def options(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print it.")] = False,
) -> None: ...


for module in (fetch, convert, heal, evaluate, audit, ledger, generate, steps, demo, inspect):
    module.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code: 0 success, 2 a mistake, 3 an internal failure, 130 interrupted."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; every failure becomes one line on standard error and an exit code."""
    try:
        result = app(arguments, standalone_mode=False)
    except RegearError as error:
        return _fail(error, error.exit_code)
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except OSError as error:
        if error.filename is None:
            return _fail(f"internal failure: {type(error).__name__}: {one_line(error)} ({_trace(error)})", 3)
        return _fail(f"{error.strerror}: {error.filename}; check the path, its permissions and the room on the disk", 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error; some versions of typer carry a click of their own
            return _usage(error)
        return _fail(f"internal failure: {type(error).__name__}: {one_line(error)} ({_trace(error)})", 3)
    return result if isinstance(result, int) else 0


def _usage(error: Any) -> int:
    message, context = error.format_message(), getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
        return 2
    path = context.command_path if context else "regear"
    return _fail(f"{message} See '{path} --help'.", 2)


def _trace(error: Exception) -> str:
    """Where the trace is: in the run directory if a run wrote it there, else in a file of its own."""
    for note in getattr(error, "__notes__", []):
        if note.startswith("trace: "):
            return note
    with tempfile.NamedTemporaryFile("w", prefix="regear-", suffix=".trace", delete=False) as file:
        file.write("".join(traceback.format_exception(error)))
    return f"trace: {file.name}"


def _fail(message: object, code: int) -> int:
    print(f"regear: {one_line(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
