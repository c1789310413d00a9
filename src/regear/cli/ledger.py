"""`regear ledger`: who decided what about which audit, in a file that shows when it was tampered with."""

from pathlib import Path
from typing import Annotated, Any

import typer

from regear.cli.output import Json, Quiet, grid, show, table

File = Annotated[Path, typer.Argument(help="The ledger (.jsonl) that audits were appended to.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    verbs = typer.Typer(
        help="The sign-off trail of audits: verify it, sign it, show it.", no_args_is_help=True, rich_markup_mode=None
    )
    app.add_typer(verbs, name="ledger")

    @verbs.command()
    def verify(
        file: File,
        head: Annotated[str | None, typer.Option(help="The digest that audit or sign printed last.")] = None,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> int:
        """Check every line: exit 0 if all is as it was written, 1 if not.

        A byte edited, or a line removed, inserted or moved, is named. Lines cut off at the end, or a file rewritten
        from some line to its end with new digests, show only against --head: keep what audit and sign print.
        """
        from regear.auditing import ledger

        try:
            found = ledger.verify(file, head=head)
        except ledger.BrokenLedger as error:
            if as_json:
                show({"valid": False, "problem": str(error)}, as_json=True, quiet=quiet, text="")
            raise
        text = f"{found['entries']} entries hold together; head {found['head']}"
        if head is None:
            text += "\nwhether lines were cut off at the end shows only with --head"
        show({"valid": True, **found, "head_checked": head is not None}, as_json=as_json, quiet=quiet, text=text)
        return 0

    @verbs.command()
    def sign(
        file: File,
        name: Annotated[str, typer.Option(help="Who decides.")],
        role: Annotated[str, typer.Option(help="In which role.")],
        decision: Annotated[str, typer.Option(help="approve, reject or waive.")],
        comment: Annotated[str, typer.Option(help="Why.")] = "",
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        """Add a decision on the latest audit; prints the new head, to be kept elsewhere for `verify --head`."""
        from regear.auditing import ledger

        head = ledger.sign(file, name=name, role=role, decision=decision, comment=comment)
        result = {"head": head, "decision": decision, "name": name, "role": role}
        show(result, as_json=as_json, quiet=quiet, text=table(list(result.items())))

    @verbs.command(name="show")
    def show_entries(file: File, as_json: Json = False, quiet: Quiet = False) -> None:
        """List the entries of a ledger that holds together."""
        from regear.auditing import ledger

        entries = ledger.read(file)
        rows = [_row(entry) for entry in entries]
        text = grid(["entry", "time", "kind", "what"], rows) if rows else "no entries"
        show({"entries": entries}, as_json=as_json, quiet=quiet, text=text)


def _row(entry: dict[str, Any]) -> list[str]:
    if entry["kind"] == "sign":
        what = f"{entry['decision']} of entry {entry['of']} by {entry['name']} ({entry['role']}) {entry['comment']}"
    else:
        words = ", ".join(f"{count} {word}" for word, count in entry["verdict_counts"].items())
        what = f"gate {entry['gate']}: {words}"
    return [str(entry["entry"]), entry["time"], entry["kind"], what.strip()]
