"""Indexes a user's output folders, and finds a run by its id, the beginning of its id, or its path."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors.runs import RUN_AMBIGUOUS, RUN_UNKNOWN
from engine.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from engine.runs.run_summary import RunSummary

STATE_VARIABLE = "ELITE_TUI_STATE_DIR"
"""Environment variable that moves the index, for tests and for shared accounts."""


def state_directory() -> Path:
    """Returns the folder of this user's index, which need not exist yet."""
    if chosen := os.environ.get(STATE_VARIABLE):
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_state_dir("elite-tui"))


def remember_output(output: Path) -> None:
    """Adds an output folder to the index.

    Raises:
        OSError: the index cannot be written.
    """
    output = output.absolute()
    if output in known_outputs():
        return
    index = _index_path()
    index.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One short append per folder, so that two runs that start together cannot lose each other's line.
    with index.open("a", encoding="utf-8") as file:
        file.write(json.dumps(str(output)) + "\n")


def check_index() -> None:
    """Checks by writing that an output folder can be added to the index; leaves nothing there.

    Raises:
        OSError: the index cannot be written.
    """
    index = _index_path()
    if index.exists():
        with index.open("ab"):
            return
    existing = index.parent
    while not existing.exists():
        existing = existing.parent
    with tempfile.TemporaryFile(prefix=".elite-", dir=existing):
        pass


def known_outputs() -> list[Path]:
    """Lists the remembered output folders, including deleted ones, in order of first use."""
    try:
        lines = _index_path().read_bytes().splitlines()
    except OSError:
        return []
    found: dict[Path, None] = {}
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, str) and "\0" not in value:
            found[Path(value)] = None
    return list(found)


def find_runs(output: Path | None = None) -> list[RunDirectory]:
    """Finds the runs below one output folder, or below every remembered one, newest first."""
    outputs = [output.absolute()] if output else known_outputs()
    runs = [run for folder in outputs for run in _runs_below(folder)]
    return sorted(runs, key=_age, reverse=True)


def _age(run: RunDirectory) -> tuple[str, float]:
    # The id begins with the second of its creation; the file's time orders runs of the same second.
    try:
        return run.id[:15], run.config_path.stat().st_mtime
    except OSError:
        return run.id[:15], 0.0


def list_runs(output: Path | None = None) -> list[RunSummary]:
    """Lists the summaries of `find_runs(output)`."""
    return [run.summary() for run in find_runs(output)]


def find_run(reference: str | None = None, output: Path | None = None) -> RunDirectory:
    """Finds the run that a reference names.

    Args:
        reference: A path to a run directory, an id, or the unique beginning of one; None means the newest run.
        output: Output folder to search for the newest run; None means every remembered one.

    Raises:
        EliteError: RUN_UNKNOWN, RUN_AMBIGUOUS or RUN_DAMAGED.
    """
    if reference is None:
        newest = find_runs(output)
        if not newest:
            there = "yet" if output is None else f"in {output}"
            raise RUN_UNKNOWN(reference=f"'newest': there is none {there}")
        return newest[0]
    matches = [run for run in find_runs() if reference and run.id.startswith(reference)]
    exact = [run for run in matches if run.id == reference]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if matches:
        raise RUN_AMBIGUOUS(reference=reference, matches=", ".join(run.id for run in matches))
    if not reference or "\0" in reference:
        raise RUN_UNKNOWN(reference=repr(reference))
    return RunDirectory.open(Path(reference))


def _runs_below(output: Path) -> Iterator[RunDirectory]:
    try:
        entries = list(os.scandir(output / "runs"))
    except OSError:
        return  # deleted, or on a disk that is not mounted
    for entry in entries:
        if not entry.name.startswith(".") and os.path.isfile(os.path.join(entry.path, "config.yaml")):  # noqa: PTH113, PTH118
            yield RunDirectory(Path(entry.path))


def _index_path() -> Path:
    return state_directory() / "outputs.jsonl"
