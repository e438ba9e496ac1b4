"""What is killed: training, the building of data, the writing of journals, the command line."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tokenizers import Tokenizer

from engine.config import DataSection
from engine.data.dataset import build_dataset
from engine.protocol.events import LogLine, StepCompleted
from engine.runs.journal import JournalReader, JournalWriter
from engine.runs.run_directory import RunDirectory
from tests.chaos.lab import BrokenError, Lab, check_result, check_run, in_fork, wait_for

ROOT = Path(__file__).parents[2]
MOST_A_RUN = 12


def kill_training(lab: Lab, kills: int, *, step: str) -> dict[str, int]:
    """Runs killed anywhere between their first statement and their last: data, model, steps, checkpoints, report."""
    config = lab.config(f"training-{step}", step=step)
    reference = lab.reference(config)
    done = runs = 0
    while done < kills:
        done += lab.kill_until_complete(config, reference, min(MOST_A_RUN, kills - done))
        runs += 1
        shutil.rmtree(Path(config.output.directory) / "runs")
        if lab.random.random() < 0.3:
            shutil.rmtree(Path(config.output.directory) / "cache")  # so that data is built again, and killed
    return {"kills": done, "runs": runs}


def kill_data_building(lab: Lab, kills: int) -> dict[str, int]:
    """Stores killed while they are built; what comes out is what an undisturbed build gives."""
    repository = lab.folder / "large"
    repository.mkdir()
    for number, source in enumerate(sorted(Path(os.__file__).parent.glob("*.py"))[:60]):
        shutil.copy(source, repository / f"{number:03d}_{source.name}")
    tokenizer = lab.model / "tokenizer.json"
    data = DataSection(repositories=[str(repository)])

    def build(cache: Path) -> None:
        build_dataset(data, tokenizer=Tokenizer.from_file(str(tokenizer)), context=256, cache=cache)

    expected = lab.folder / "store-expected"
    began = time.monotonic()
    if wait_for(in_fork(lambda: build(expected))) != 0:
        raise BrokenError("the undisturbed build failed")
    seconds = time.monotonic() - began
    done = 0
    cache = lab.folder / "store"
    while done < kills:
        status = wait_for(in_fork(lambda: build(cache)), lab.random.uniform(0, 1.1 * seconds))
        if status == 0:
            _compare_stores(cache, expected)
            shutil.rmtree(cache)
        elif status == -signal.SIGKILL:
            done += 1
        else:
            raise BrokenError(f"a build ended with {status}")
    if wait_for(in_fork(lambda: build(cache))) != 0:
        raise BrokenError("the last build failed")
    _compare_stores(cache, expected)
    return {"kills": done}


def _compare_stores(found: Path, expected: Path) -> None:
    def content(folder: Path) -> dict[str, str]:
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    if content(found) != content(expected):
        raise BrokenError(f"the store differs: {sorted(content(found))} and {sorted(content(expected))}")


def kill_journal_writing(lab: Lab, kills: int) -> dict[str, int]:
    """A journal whose writer is killed over and over: every line is whole, and no number is missing or twice."""
    path = lab.folder / "events.jsonl"

    def write() -> None:
        writer = JournalWriter(path, "run")
        while True:
            writer.append(LogLine(level="info", text="x" * 150))

    for number in range(kills):
        wait_for(in_fork(write), lab.random.uniform(0, 0.04))
        if number % 20 == 19 or number == kills - 1:
            JournalWriter(path, "run").close()  # what was torn is mended by the next writer
            reader = JournalReader(path)
            numbers = [envelope.seq for envelope in reader.poll()]
            if reader.damaged or numbers != list(range(len(numbers))):
                raise BrokenError(f"the journal is damaged after {number + 1} kills")
            path.unlink()
    return {"kills": kills}


def kill_the_command(lab: Lab, kills: int) -> dict[str, int]:
    """`engine train` in the foreground, killed after its first step: the run that it launched goes on to its end."""
    config = lab.config("launched")
    reference = lab.reference(config)
    shutil.rmtree(Path(config.output.directory) / "runs")
    for _ in range(kills):
        path = lab.folder / "launched.yaml"
        source = RunDirectory.create(config)
        shutil.copy(source.config_path, path)
        shutil.rmtree(source.path)
        command = [sys.executable, "-m", "engine", "train", "--json", "--config", str(path)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if f'"kind":"{StepCompleted.__name__}"' in line:
                break
        process.kill()
        process.wait()
        process.stdout.close()
        (folder,) = (Path(config.output.directory) / "runs").iterdir()
        run = RunDirectory(folder)
        deadline = time.monotonic() + 120
        while run.status() != "completed" and time.monotonic() < deadline:
            time.sleep(0.1)
        check_run(run)
        check_result(run, reference)
        shutil.rmtree(folder)
    return {"kills": kills}
