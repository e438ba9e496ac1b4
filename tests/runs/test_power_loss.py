"""Every crash point of what a run keeps: un-synced writes lost, torn or reordered, by the model of support.power_loss.

After each, what was promised before is there, and nothing passes for whole that is not.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine import atomic_dir, whole_file
from engine.atomic_dir import DamagedError
from engine.config import from_mapping
from engine.data.store import StoreBuilder, StoreDamagedError, open_store
from engine.protocol.events import CheckpointSaved, LogLine, PhaseChanged, RunFinished, RunStarted, StepCompleted
from engine.runs.journal import JournalReader, JournalWriter
from engine.runs.run_directory import RunDirectory
from engine.training.checkpoints import CheckpointFolder, Retention, verify
from tests.support.power_loss import Disk, Recorder, choosers

KEY = "0" * 32


# --- the journal -----------------------------------------------------------------------------------------------


def write_journal(root, note):
    """Two attempts at a run; every event that must survive is a promise."""
    number = 0
    for attempt in range(2):
        journal = JournalWriter(root / "events.jsonl", "r")
        for event in (
            RunStarted(model="demo", context=64, total_steps=4, first_step=2 * attempt),
            LogLine(level="info", text=f"a line é {attempt}"),
            *(
                StepCompleted(
                    step=step,
                    total_steps=4,
                    epoch=0.0,
                    loss=1.0,
                    lr=1.0,
                    grad_norm=1.0,
                    tokens=1,
                    tokens_per_second=1.0,
                )
                for step in (1, 2)
            ),
            CheckpointSaved(step=2, path="checkpoints/step-000002", bytes=1),
            PhaseChanged(phase="training"),
            LogLine(level="info", text="after"),
        ):
            envelope = journal.append(event)
            if not isinstance(event, (LogLine, StepCompleted)):
                note(("journal", envelope))
            number += 1
        journal.close()
        note(("journal", envelope))


def check_journal(root, promises, written):
    path = root / "events.jsonl"
    reader = JournalReader(path)
    found = reader.poll()
    assert set(found) <= set(written)
    assert [e.seq for e in found] == sorted(e.seq for e in found)
    for _, envelope in promises:
        assert envelope in found
    journal = JournalWriter(path, "r")
    last = journal.append(RunFinished(status="stopped", steps=1, seconds=1.0))
    journal.close()
    again = JournalReader(path)
    assert again.poll()[: len(found)] == found
    assert last.seq > max((e.seq for e in found), default=-1)
    assert [e.event for e in JournalReader(path).poll()][-1] == last.event


# --- checkpoints -------------------------------------------------------------------------------------------------


def checkpoint(step):
    return {"state.json": json.dumps({"step": step}).encode(), "weights.safetensors": bytes([step]) * (200 + step)}


def save_checkpoints(root, note):
    """Saves five, prunes all but two, and saves one of them once more, as a run that rolled back."""
    folder = CheckpointFolder(root / "checkpoints", Retention(newest=2))
    for step in (1, 2, 3, 4, 4):
        folder.save(step, checkpoint(step).items())
        note(("checkpoint", step))


def check_checkpoints(root, promises, _):
    folder = CheckpointFolder(root / "checkpoints", Retention(newest=2))
    folder.heal()
    valid = []
    for path in folder.newest_first():
        try:
            found = verify(path)
        except DamagedError:
            continue
        step = found.about["step"]
        assert {name: found.read(name) for name in checkpoint(step)} == checkpoint(step)
        valid.append(step)
    if promises:
        assert valid
        assert valid[0] >= promises[-1][1]
    folder.save(9, checkpoint(9).items())
    assert folder.newest_first()[0].name == "step-000009"


# --- the data store ------------------------------------------------------------------------------------------------


def build_store(root, note):
    """Builds a store with checkpoints within, resumed once."""
    cache = root / "cache"
    fill_store(cache, until=2)
    fill_store(cache, until=4)
    note(("store", KEY))


def fill_store(cache, until=4, key=KEY):
    with StoreBuilder(cache, key, np.dtype("<u2")) as builder:
        for number in range(builder.files, until):
            builder.append(np.arange(number * 3, number * 3 + 50, dtype=np.uint32), np.array([number], dtype=np.int64))
            builder.checkpoint()
        if until == 4:
            builder.finish([(f"f{n}", 0, "python", 0) for n in range(4)], np.zeros(256, dtype=np.uint8))


def check_store(root, promises, _):
    cache = root / "cache"
    try:
        found = open_store(cache, KEY)
    except StoreDamagedError:
        assert not promises
        shutil.rmtree(cache / KEY)
        found = None
    assert found is not None or not promises
    if found is None:
        fill_store(cache)
        found = open_store(cache, KEY)
    expected = np.concatenate([np.arange(n * 3, n * 3 + 50) for n in range(4)])
    assert np.array_equal(np.fromfile(cache / KEY / "tokens.bin", dtype="<u2"), expected)
    assert [file.tokens for file in found.files] == [50] * 4


# --- results and whole files -----------------------------------------------------------------------------------------


def save_results(root, note):
    """An adapter saved by a library, and saved again; beside it a record that is replaced."""
    for number in range(3):
        aside = root / ".adapter.new"
        aside.mkdir()
        (aside / "adapter_model.safetensors").write_bytes(bytes([number + 1]) * 300)
        (aside / "tokenizer.json").write_text(f"{number}")
        atomic_dir.seal(root / "adapter", aside, {"number": number})
        note(("adapter", number))
        whole_file.replace_text(root / "plan.json", f"plan {number} " * 20)
        note(("plan", number))


def check_results(root, promises, _):
    last = dict(promises)
    atomic_dir.heal(root / "adapter")
    if "adapter" in last or (root / "adapter").exists():
        try:
            found = atomic_dir.verify(root / "adapter")
        except DamagedError:
            assert "adapter" not in last
        else:
            number = found.about["number"]
            assert number >= last.get("adapter", 0)
            assert found.read("adapter_model.safetensors") == bytes([number + 1]) * 300
    plan = root / "plan.json"
    if "plan" in last or plan.exists():
        assert plan.read_text() in [f"plan {number} " * 20 for number in range(last.get("plan", 0), 3)]


# --- a run's folder ------------------------------------------------------------------------------------------------


def create_run(root, note):
    """A run in an output folder that was not there, with its first checkpoint and event."""
    config = from_mapping({"output": {"directory": str(root / "deep" / "out")}, "data": {"repositories": ["."]}})
    run = RunDirectory.create(config)
    note(("run", run.path.relative_to(root)))
    journal = JournalWriter(run.journal_path, run.id)
    envelope = journal.append(RunStarted(model="demo", context=64, total_steps=1))
    note(("event", envelope))
    CheckpointFolder(run.checkpoints_path, Retention()).save(1, checkpoint(1).items())
    note(("checkpoint", 1))
    journal.close()


def check_run(root, promises, _):
    kinds = dict(promises)
    if "run" not in kinds:
        return
    run = RunDirectory.open(root / kinds["run"])
    assert list(run.load_config().data.repositories) == ["."]
    if "event" in kinds:
        assert kinds["event"] in JournalReader(run.journal_path).poll()
    if "checkpoint" in kinds:
        verify(run.checkpoints_path / "step-000001")


SCENARIOS = {
    "journal": (write_journal, check_journal),
    "checkpoints": (save_checkpoints, check_checkpoints),
    "store": (build_store, check_store),
    "results": (save_results, check_results),
    "run": (create_run, check_run),
}


def replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, random_ones: int, seed: int = 0) -> int:
    """Replays all crash points of a scenario; returns how many disks were checked."""
    run, check = SCENARIOS[name]
    root = tmp_path / "recorded"
    root.mkdir()
    (root / "cache").mkdir()
    recorder = Recorder(root)
    with recorder.recording():
        run(root, recorder.note)
    written = JournalReader(root / "events.jsonl").poll()
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what is checked survives this process, which is enough
    numbers = itertools.count()
    for count in range(recorder.start, len(recorder.steps) + 1):
        disk = Disk(recorder, count)
        for choose in choosers(random_ones, seed + count):
            target = tmp_path / f"{next(numbers)}"
            target.mkdir()
            disk.write(target, choose)
            try:
                check(target, disk.promises, written)
            except BaseException as error:
                error.add_note(f"{name}: crash after step {count} of {len(recorder.steps)}, {choose}")
                raise
            shutil.rmtree(target)
    return next(numbers)


@pytest.mark.parametrize("name", SCENARIOS)
def test_after_a_power_loss_nothing_that_was_promised_is_missing(tmp_path, monkeypatch, name):
    assert replay(tmp_path, monkeypatch, name, random_ones=1) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_after_a_power_loss_of_many_kinds_nothing_that_was_promised_is_missing(tmp_path, monkeypatch, name):
    assert replay(tmp_path, monkeypatch, name, random_ones=40, seed=7) > 1000
