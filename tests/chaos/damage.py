"""What is damaged: configurations, journals, checkpoints, states within a step, token stores. All of it is told."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from engine import atomic_dir
from engine import config as run_config
from engine.atomic_dir import DamagedError
from engine.data.store import StoreDamagedError, open_store
from engine.errors import EliteError
from engine.protocol.events import LogLine
from engine.runs.journal import JournalReader, JournalWriter
from engine.runs.run_directory import RunDirectory
from tests.chaos.lab import BrokenError, Lab, wait_for
from tests.chaos.odd import mutate


def mutate_configurations(lab: Lab, count: int) -> dict[str, int]:
    """Every one is read, or refused in one line that names the file: no other exception."""
    text = run_config.to_yaml(lab.config("mutated")).encode()
    short = b"".join(line + b"\n" for line in text.splitlines() if not line.lstrip().startswith(b"#"))
    path = lab.folder / "config.yaml"
    refused = 0
    for number in range(count):
        path.write_bytes(mutate(short if number % 4 else text, lab.random))
        try:
            config = run_config.load(path)
        except EliteError as error:
            refused += 1
            if "\n" in str(error) or "\x1b" in str(error):
                raise BrokenError(f"not one plain line: {error!r}") from error
        else:
            run_config.from_mapping(run_config.to_mapping(config))
    return {"mutated": count, "refused": refused}


def mutate_journals(lab: Lab, count: int) -> dict[str, int]:
    """Every one is read as far as it goes, summed up, and written on."""
    config = lab.config("journals")
    reference = lab.reference(config)
    assert reference.losses
    (folder,) = (Path(config.output.directory) / "runs").iterdir()
    run = RunDirectory(folder)
    text = run.journal_path.read_bytes()
    for number in range(count):
        run.journal_path.write_bytes(mutate(text, lab.random))
        run.summary()
        if number % 10 == 0:
            writer = JournalWriter(run.journal_path, run.id)
            envelope = writer.append(LogLine(level="info", text="next"))
            writer.close()
            if JournalReader(run.journal_path).poll()[-1] != envelope:
                raise BrokenError("what was appended to a mutated journal is not its last event")
        else:
            JournalReader(run.journal_path).poll()
    return {"mutated": count}


def damage_files(lab: Lab, count: int) -> dict[str, int]:
    """Truncated and bit-flipped files of checkpoints, states within a step, token stores and journals: all noticed."""
    config = lab.config("damaged", step="streamed")
    run = RunDirectory.create(config)
    process = lab.attempt(run, config, resuming=False)
    in_step = run.path / "in-step"
    while not (in_step.exists() and list(run.checkpoints_path.glob("step-*"))):
        if wait_for_end(process):
            raise BrokenError("the run ended before it could be damaged")
    wait_for(process, 0.0)
    atomic_dir.heal(in_step)
    checkpoint = max(run.checkpoints_path.glob("step-*"))
    cache = Path(config.output.directory) / "cache"
    (store,) = (path for path in cache.iterdir() if path.is_dir() and path.name != "baselines")
    journal = run.journal_path
    expected = JournalReader(journal).poll()

    def journal_is_damaged(_: Path) -> bool:
        reader = JournalReader(journal)
        found = reader.poll()
        return reader.damaged > 0 or len(found) < len(expected) or found == expected

    targets: list[tuple[Path, Callable[[Path], bool]]] = [
        (checkpoint, _is_damaged),
        (in_step, _is_damaged),
        (store, lambda path: _store_is_damaged(path, cache)),
        (journal, journal_is_damaged),
    ]
    done = 0
    for number in range(count):
        target, noticed = targets[number % len(targets)]
        files = [target] if target.is_file() else sorted(path for path in target.iterdir() if path.is_file())
        file = lab.random.choice(files)
        content = file.read_bytes()
        file.write_bytes(_damage(content, lab.random))
        if not noticed(target):
            raise BrokenError(f"damage to {file.relative_to(lab.folder)} was not noticed")
        file.write_bytes(content)
        done += 1
    for target, noticed in targets[:3]:
        if noticed(target):
            raise BrokenError(f"{target} counts as damaged, and is not")
    shutil.rmtree(run.path)
    return {"damaged": done}


def wait_for_end(process: int) -> bool:
    """Whether a process has ended; a moment passes."""
    import os
    import time

    time.sleep(0.005)
    return os.waitpid(process, os.WNOHANG)[0] != 0


def _damage(content: bytes, rng: random.Random) -> bytes:
    if not content or rng.random() < 0.3:
        return content[: rng.randrange(len(content))] if content else b"x"
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _is_damaged(path: Path) -> bool:
    try:
        atomic_dir.verify(path)
    except DamagedError:
        return True
    return False


def _store_is_damaged(path: Path, cache: Path) -> bool:
    try:
        return open_store(cache, path.name) is None
    except StoreDamagedError:
        return True
