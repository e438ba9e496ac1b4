"""Resume, stop, delete, rename and watch one run at the same time, in an order that a seed decides, and kill it.

python -m tests.runs.interleavings FIRST COUNT      so many seeds; 1 if a history is wrong

The real functions run in processes of their own (support.turns). The training is a short recipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import multiprocessing.process
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from engine.config import from_mapping
from engine.errors import EliteError
from engine.launch import launcher
from engine.launch.handle import RunHandle
from engine.protocol.commands import Stop
from engine.protocol.events import LogLine, PhaseChanged, RunFinished, RunStarted
from engine.runs.context import TrainingSession
from engine.runs.deletion import delete_run
from engine.runs.journal import JournalReader, JournalWriter
from engine.runs.run_directory import RunDirectory
from engine.training.checkpoints import CheckpointFolder, Retention, verify
from tests.support.turns import Player, Scheduler

RECIPE = "tests.runs.interleavings:train"
STEPS = 4
EXPECTED = {
    "resume": {"run-still-active", "run-unknown", "config-unreadable"},
    "delete": {"run-still-active", "run-unknown", "run-undeletable"},
    "stop": {"run-not-active", "run-control-unreachable"},
    "watch": set(),
    "rename": set(),
}
"""Refusals of each of them, by their codes."""

_player: Player


def train(session: TrainingSession) -> None:
    """A short training: each event holds the process's id, and is noted elsewhere once it was emitted."""
    notes = session.run.path.parents[2] / "promised" / str(os.getpid())
    record = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    session.listen(lambda envelope: os.write(record, f"{envelope.seq}\n".encode()) and None)
    session.emit(RunStarted(model="demo", context=64, total_steps=STEPS, first_step=0, pid=os.getpid()))
    session.emit(PhaseChanged(phase="training"))
    checkpoints = CheckpointFolder(session.run.checkpoints_path, Retention(newest=2))
    for step in range(STEPS):
        session.check_run()
        if isinstance(command := session.commands.poll(), Stop):
            session.acknowledge(command, True)
            session.emit(RunFinished(status="stopped", steps=step, seconds=0.0))
            return
        session.emit(LogLine(level="info", text=f"step {step} of {os.getpid()}"))
        if step % 2:
            checkpoints.save(step, [("state.json", b"{}")])
    session.emit(RunFinished(status="completed" if os.getpid() % 2 else "stopped", steps=STEPS, seconds=0.0))


# --- who takes part ----------------------------------------------------------------------------------------------


def resume(run: RunDirectory, _: Path) -> None:
    """As `engine train --resume` in the foreground."""
    handle = launcher.launch(run.load_config(), resume=run, recipe=RECIPE)
    seen: list[int] = []
    while handle.ending is None:
        seen += [envelope.seq for envelope in handle.poll()]
        _player.turn("poll")
    if seen != sorted(set(seen)):
        raise AssertionError(f"the launcher's events: {seen}")


def stop(run: RunDirectory, _: Path) -> None:
    """As `engine stop`."""
    RunHandle.attach(run).send(Stop(id="s", save=True))


def delete(run: RunDirectory, notes: Path) -> None:
    """As `engine delete`."""
    delete_run(run)
    (notes / "deleted").touch()


def rename(run: RunDirectory, notes: Path) -> None:
    """As `mv` of a person."""
    try:
        os.rename(run.path, run.path.with_name("renamed"))  # noqa: PTH104 - a turn is taken before it
    except FileNotFoundError:
        return
    (notes / "renamed").touch()


def watch(run: RunDirectory, notes: Path) -> None:
    """As `engine attach` and the monitor."""
    handle = RunHandle.attach(run)
    seen: list[list[float]] = []
    for _ in range(12):
        news = handle.poll()
        if handle.ending is not None and getattr(handle.ending, "error", "") in ("child-died", "run-moved"):
            news = [envelope for envelope in news if envelope.event is not handle.ending]  # not in the journal
        seen += [[envelope.seq, envelope.time] for envelope in news]
        _player.turn("poll")
    if handle.damaged_lines:
        raise AssertionError(f"the monitor met {handle.damaged_lines} damaged lines")
    (notes / f"watched-{os.getpid()}").write_text(json.dumps(seen))


ACTORS: dict[str, Callable[[RunDirectory, Path], None]] = {
    "resume": resume, "stop": stop, "delete": delete, "rename": rename, "watch": watch,
}  # fmt: skip
CASTS = (
    ("resume", "resume"), ("resume", "stop", "watch"), ("resume", "delete", "watch"), ("resume", "rename", "watch"),
    ("resume", "resume", "delete"), ("resume", "rename", "delete"), ("resume", "resume", "stop", "rename"),
    ("delete", "delete"), ("rename", "delete", "watch"), ("resume", "resume", "stop", "delete", "rename", "watch"),
)  # fmt: skip


def act(name: str, run: RunDirectory, folder: Path, later: int) -> None:
    """One of them, in a process of its own and after so many turns; never returns."""
    global _player
    status = 70
    try:
        _player = Player(folder / "turns", name)
        # A fork of this process, which has no threads, is what a spawned one would be, in a thousandth of the time.
        launcher.multiprocessing = _Forking()  # type: ignore[assignment]
        launcher.wait = lambda ends, timeout: _player.wait(lambda: _ready(ends))  # type: ignore[attr-defined]
        _player.join()
        for _ in range(later):
            _player.turn("later")
        ACTORS[name](run, folder / "notes")
        status = 0
    except EliteError as error:
        status = 2 if error.code in EXPECTED[name] else 71
        if status == 71:
            (folder / "notes" / f"trouble-{os.getpid()}").write_text(f"{name}: {error.code}: {error}")
    except BaseException:
        (folder / "notes" / f"trouble-{os.getpid()}").write_text(f"{name}: {traceback.format_exc()}")
    finally:
        os._exit(status)


class _Forking:
    """multiprocessing, as the launcher uses it."""

    process = multiprocessing.process

    @staticmethod
    def get_context(_: str) -> Any:
        return multiprocessing.get_context("fork")


def _ready(ends: list[Any]) -> bool:
    return bool(_wait(ends, 0))


_wait = launcher.wait


# --- one history -------------------------------------------------------------------------------------------------


def play(folder: Path, seed: int) -> tuple[str, ...]:
    """Plays one seed and checks its history; returns who took part.

    Raises:
        AssertionError: the history is wrong. The message says how, and the turns.
    """
    rng = random.Random(seed)
    cast = CASTS[seed % len(CASTS)]
    for name in ("notes", "promised"):
        (folder / name).mkdir()
    mapping = {"data": {"repositories": ["."]}, "output": {"directory": str(folder / "out")}}
    run = RunDirectory.create(from_mapping(mapping))
    journal = JournalWriter(run.journal_path, run.id)
    for event in (
        RunStarted(model="demo", context=64, total_steps=STEPS),
        RunFinished(status="stopped", steps=0, seconds=0.0),
    ):
        journal.append(event)  # fmt: skip
    journal.close()
    inode = run.path.stat().st_ino
    scheduler = Scheduler(folder / "turns", rng)
    for name in cast:
        # Mostly while the run trains: its start takes some 60 turns, its training some 300.
        later = rng.randrange(60) if name == "resume" or rng.random() < 0.2 else rng.randrange(60, 400)
        if os.fork() == 0:
            act(name, run, folder, later)
    kills = rng.choice([0.0, 0.0, 0.01])
    killed = scheduler.run(len(cast), lambda name: kills if name.endswith("child") else 0.0)
    try:
        _reap()
        _check(run, folder, inode)
    except AssertionError as error:
        turns = "\n".join(f"  {name}: {what}" for name, what in scheduler.history)
        raise AssertionError(f"seed {seed}, {cast}, {killed} killed: {error}\n{turns[-6000:]}") from error
    return cast


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _check(run: RunDirectory, folder: Path, inode: int) -> None:
    """What must be true of a history."""
    notes = folder / "notes"
    troubles = [path.read_text() for path in notes.glob("trouble-*")]
    assert not troubles, troubles[0]
    deleted, renamed = (notes / "deleted").exists(), (notes / "renamed").exists()
    left = sorted(path.name for path in run.path.parent.iterdir())
    expected = [] if deleted else ["renamed"] if renamed else [run.id]
    assert left == expected, f"there is {left} instead of {expected}"
    promised = [sorted(map(int, path.read_text().split())) for path in (folder / "promised").iterdir()]
    if deleted:
        return
    found = run.path.with_name(left[0])
    assert found.stat().st_ino == inode, "the folder is another one"
    reader = JournalReader(found / "events.jsonl")
    events = reader.poll()
    assert reader.damaged == 0, f"{reader.damaged} damaged lines"
    for path in found.glob("checkpoints/step-*"):
        verify(path)
    numbers = [envelope.seq for envelope in events]
    assert numbers == list(range(len(numbers))), f"the journal's numbers: {numbers}"
    for one in promised:
        assert set(one) <= set(numbers), f"lost: {sorted(set(one) - set(numbers))} of {numbers}"
    together = [number for one in promised for number in one]
    assert len(together) == len(set(together)), f"two writers: {sorted(promised)}"
    spans = sorted((one[0], one[-1]) for one in promised if one)
    assert all(end < start for (_, end), (start, _) in zip(spans, spans[1:])), f"two writers at a time: {spans}"  # noqa: B905, RUF007
    by_number = {envelope.seq: envelope.time for envelope in events}
    for path in notes.glob("watched-*"):
        seen = json.loads(path.read_text())
        assert [number for number, _ in seen] == sorted({number for number, _ in seen}), f"the monitor saw {seen}"
        for number, when in seen:
            assert by_number.get(number) == when, f"the monitor saw {number}, which is not in the journal"


def main(first: int, count: int) -> int:
    """Plays so many seeds; prints a JSON line with how often who took part."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans are this process's, so that it can wait for them
    os.environ["ELITE_TUI_STATE_DIR"] = tempfile.mkdtemp(prefix="elite-turns-")
    resource_tracker.ensure_running()
    played: Counter[str] = Counter()
    for seed in range(first, first + count):
        folder = Path(tempfile.mkdtemp(prefix="elite-turns-"))
        try:
            played["+".join(play(folder, seed))] += 1
        except AssertionError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"interleavings": count, "casts": len(played)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), int(sys.argv[2])))
