"""`engine sessions`: lists the sessions of coding agents on this machine, and writes the chosen ones as a data set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.commands.output import print_json
from engine.errors import one_line
from engine.errors.data import DATA_SET_UNUSABLE
from engine.errors.usage import DATE_INVALID, FILE_UNWRITABLE, SESSIONS_NONE
from engine.home_folder import expand_home
from engine.quantities import counted

if TYPE_CHECKING:
    from engine.data.sessions.collecting import Found

_SHOWN = 40


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:  # noqa: ARG001 - one signature for all
    """Adds the options of `engine sessions`."""
    parser.add_argument(
        "places",
        nargs="*",
        type=Path,
        metavar="PATH",
        help="files or folders of Claude Code, Codex, SWE-agent or OpenHands; without any, ~/.claude/projects and "
        "~/.codex/sessions",
    )
    parser.add_argument("--repository", default="", metavar="TEXT", help="those whose folder or name contains this")
    parser.add_argument("--since", default="", metavar="DATE", help="those that began on this day or later")
    parser.add_argument("--until", default="", metavar="DATE", help="those that began on this day or earlier")
    parser.add_argument(
        "--outcome",
        action="append",
        default=[],
        choices=("resolved", "unresolved", "finished", "unfinished"),
        help="those that ended so; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write them to this new file, as JSON Lines for --dataset"
    )
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Lists the sessions, and writes them where a file is named.

    Raises:
        EliteError: DATE_INVALID, FILE_UNWRITABLE, SESSIONS_NONE, or DATA_SET_UNUSABLE for a path that does not exist.
    """
    from datetime import date

    from engine.data.sessions.collecting import Choice, find_sessions

    for option in ("since", "until"):
        try:
            if given := getattr(args, option):
                setattr(args, option, date.fromisoformat(given).isoformat())
        except ValueError:
            raise DATE_INVALID(option=option, value=given) from None
    for place in args.places:
        try:
            found_there = expand_home(place).exists()
        except OSError as error:  # such as a name too long for a path
            raise DATA_SET_UNUSABLE(path=place, problem=error.strerror or error) from error
        if not found_there:
            raise DATA_SET_UNUSABLE(path=place, problem="it does not exist")
    choice = Choice(
        repository=args.repository, since=args.since, until=args.until, outcomes=tuple(dict.fromkeys(args.outcome))
    )
    found = find_sessions(args.places, choice)
    rows = [_listed(session) for session in found.sessions]
    written = None if args.out is None else _write(args.out, found)
    if args.json:
        print_json({"files": found.files, "skipped": dict(found.skipped), "sessions": rows, "written": written})
    else:
        _show(found, rows, written)
    return 0


def _listed(session: Any) -> dict[str, Any]:
    from engine.data.report import printable
    from engine.data.sessions.collecting import without_home

    return {
        "agent": session.agent,
        "date": printable(session.date),
        "repository": printable(without_home(session.repository)),
        "outcome": session.outcome,
        "answers": session.answers,
        "calls": session.calls,
        "characters": sum(len(str(message.get("content") or "")) for message in session.messages),
        "path": printable(without_home(str(session.path))),
    }


def _write(path: Path, found: Found) -> dict[str, Any]:
    """Writes the sessions to a new file, which appears whole.

    Raises:
        EliteError: FILE_UNWRITABLE; SESSIONS_NONE, where no file would hold one.
    """
    from engine.data.sessions.collecting import session_row
    from engine.whole_file import replace_text

    try:
        exists = path.exists()
    except OSError as error:  # such as a name too long for a path
        raise FILE_UNWRITABLE(option="--out", path=path, problem=error.strerror or error) from error
    if exists:
        raise FILE_UNWRITABLE(option="--out", path=path, problem="it exists already")
    lines, secrets = [], 0
    for session in found.sessions:
        made = session_row(session)
        if made is None:
            found.skipped["not searched"] += 1
            continue
        row, masked = made
        secrets += masked
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if not lines:
        left = _left_out(found)
        raise SESSIONS_NONE(problem=f"{counted(found.files, 'file')}{f', left out: {left}' if left else ''}")
    try:
        replace_text(path, "".join(lines))
    except OSError as error:
        raise FILE_UNWRITABLE(option="--out", path=path, problem=error.strerror or error) from error
    return {"path": str(path), "sessions": len(lines), "secrets": secrets}


def _left_out(found: Found) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in found.skipped.most_common())


def _show(found: Found, rows: list[dict[str, Any]], written: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    table = Table("date", "agent", "repository", "outcome", box=None, header_style="bold")
    for name in ("answers", "calls", "characters"):
        table.add_column(name, justify="right")
    for row in rows[:_SHOWN]:
        figures = (f"{row[name]:,}" for name in ("answers", "calls", "characters"))
        table.add_row(row["date"][:16].replace("T", " "), row["agent"], row["repository"], row["outcome"], *figures)
    if rows:
        console.print(table)
    if len(rows) > _SHOWN:
        console.print(f"and {len(rows) - _SHOWN:,} more (--json lists all)")
    left = _left_out(found)
    console.print(
        f"{counted(len(rows), 'session')} in {counted(found.files, 'file')}{f'; left out: {left}' if left else ''}"
    )
    if found.files == found.skipped["no session"]:
        console.print("read are files of Claude Code, Codex, SWE-agent, mini-swe-agent and OpenHands")
    if written is not None:
        path = one_line(written["path"])
        console.print(
            f"wrote {counted(written['sessions'], 'conversation')} to {path}, "
            f"{counted(written['secrets'], 'secret')} masked; "
            f"look at them, then: engine data --dataset {path}"
        )
    elif rows:
        console.print("nothing was written; --out FILE writes them for --dataset, secrets and home folders masked")
