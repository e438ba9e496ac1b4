"""Bad places to train in: a disk that fills up again and again, a repository made to do harm."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from engine.config import from_mapping, to_mapping
from engine.protocol.events import WarningRaised
from engine.runs.journal import JournalReader
from engine.runs.run_directory import RunDirectory
from tests.chaos import hostile
from tests.chaos.kills import MOST_A_RUN
from tests.chaos.lab import BrokenError, Lab, check_result, check_run, wait_for

ROOT = Path(__file__).parents[2]


def fill_the_disk(lab: Lab, times: int) -> dict[str, int]:
    """Runs on a small tmpfs, in a mount namespace of their own."""
    mount = lab.folder / "small-disk"
    mount.mkdir()
    command = f'mount -t tmpfs -o size=96m none "{mount}" && exec "{sys.executable}" -m tests.chaos --on-disk "{mount}"'
    seed = str(lab.random.randrange(2**31))
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{command} --times {times} --seed {seed}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BrokenError(f"{done.stdout[-500:]} {done.stderr[-2000:]}")
    return {"filled": times, "pauses": int(done.stdout.split()[-1])}


def run_on(mount: Path, times: int, seed: int) -> int:
    """Fills the disk under a run, and empties it a while later, so many times in all; returns the pauses."""
    lab = Lab(mount, seed)
    # The reference first, and without what it leaves; both need the same data cache.
    config = lab.config("full", max_steps=80)
    reference = lab.reference(config)
    shutil.rmtree(Path(config.output.directory) / "runs")
    filled = pauses = 0
    while filled < times:
        run = RunDirectory.create(config)
        stopping = threading.Event()
        process = lab.attempt(run, config, resuming=False)
        counts: list[int] = []
        filler = threading.Thread(target=_fill_and_empty, args=(mount, lab, stopping, counts))
        filler.start()
        status = wait_for(process, 240.0)
        stopping.set()
        filler.join()
        if status != 0:
            raise BrokenError(f"ended with {status}: {run.log_path.read_text()[-3000:]}")
        check_run(run)
        check_result(run, reference)
        events = JournalReader(run.journal_path).poll()
        pauses += sum(isinstance(e.event, WarningRaised) and e.event.code.startswith("paused") for e in events)
        filled += sum(counts)
        shutil.rmtree(run.path)
    return pauses


def _fill_and_empty(mount: Path, lab: Lab, stopping: threading.Event, counts: list[int]) -> None:
    """Appends 1 to `counts` for each time that the disk was full."""
    ballast = mount / "ballast"
    # Not while the run starts: without room for its first files it says so and ends.
    stopping.wait(0.5)
    while not stopping.wait(lab.random.uniform(0.0, 0.2)):
        if _fill(ballast, stopping):
            counts.append(1)
        stopping.wait(lab.random.uniform(0.05, 0.6))
        ballast.unlink(missing_ok=True)


def _fill(ballast: Path, stopping: threading.Event) -> bool:
    """Writes until not even a page finds room; false if it was told to stop before."""
    for piece in (1 << 20, 1 << 12):
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            while not stopping.is_set():
                file.write(bytes(piece))
    return not stopping.is_set()


def learn_a_hostile_repository(lab: Lab, kills: int) -> dict[str, int]:
    """A repository made to do harm, learnt by runs that are killed while they do."""
    sources = [path.read_text() for path in sorted(lab.repository.iterdir())]
    repository = lab.folder / "hostile"
    cases = hostile.plant(repository, sources)
    plain = lab.config("hostile-run")
    config = from_mapping({**to_mapping(plain), "data": {"repositories": [str(repository)], "max_file_bytes": 1 << 20}})
    reference = lab.reference(config)
    runs = Path(config.output.directory) / "runs"
    done = 0
    while done < kills:
        done += lab.kill_until_complete(config, reference, min(MOST_A_RUN, kills - done))
        for run in runs.iterdir():
            _check_files(run)
            shutil.rmtree(run)
        # So that the repository is read again, and the reading killed.
        shutil.rmtree(Path(config.output.directory) / "cache")
    return {"cases": cases, "kills": done}


def _check_files(run: Path) -> None:
    for file in ("events.jsonl", "engine.log", "report.md"):
        content = (run / file).read_bytes()
        if b"\x1b" in content:
            raise BrokenError(f"{file} holds an escape sequence from the repository")
        if hostile.OUTSIDE.encode() in content:
            raise BrokenError(f"{file} holds what lies outside the repository")
