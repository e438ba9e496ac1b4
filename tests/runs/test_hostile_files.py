"""Files of a run directory that somebody else made: FIFOs, devices, links, what is too long or empty."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from engine import regular_file
from engine.cli import main
from engine.config import from_mapping
from engine.errors import EliteError
from engine.protocol.events import RunFinished, RunStarted
from engine.runs import process_record
from engine.runs.journal import JournalReader, JournalWriter, read_ends
from engine.runs.run_directory import RunDirectory

KINDS = {
    "a FIFO": os.mkfifo,
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.fixture
def run(tmp_path):
    config = from_mapping({"output": {"directory": str(tmp_path / "out")}, "data": {"repositories": ["."]}})
    run = RunDirectory.create(config)
    journal = JournalWriter(run.journal_path, run.id)
    journal.append(RunStarted(model="demo", context=64, total_steps=1))
    journal.append(RunFinished(status="completed", steps=1, seconds=1.0))
    journal.close()
    return run


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_only_regular_files_are_opened(make, tmp_path):
    make(tmp_path / "file")
    with pytest.raises(OSError):  # noqa: PT011 - of the system's own kind where it refuses
        regular_file.read_bytes(tmp_path / "file")


def test_a_file_that_is_too_long_is_refused_before_it_is_read_whole(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(regular_file.NotRegularError, match="more than"):
        regular_file.read_bytes(tmp_path / "file")


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["events.jsonl", "process.json", "config.yaml", "plan.json", "engine.log"])
def test_a_run_is_listed_whatever_its_files_are(make, name, run):
    """In a process of its own: a reader that waits for a FIFO could not be interrupted by a test."""
    (run.path / name).unlink(missing_ok=True)
    make(run.path / name)
    script = "import sys; from pathlib import Path; from engine.runs.run_directory import RunDirectory as R; "
    script += "print(R(Path(sys.argv[1])).summary().id)"
    done = subprocess.run([sys.executable, "-c", script, run.path], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == run.id, done.stderr


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_journal_that_is_none_has_a_problem(make, tmp_path):
    path = tmp_path / "events.jsonl"
    make(path)
    reader = JournalReader(path)
    assert reader.poll() == []
    if path.exists():
        with pytest.raises(OSError):  # noqa: PT011
            read_ends(path, 100)


@pytest.mark.parametrize("content", [b"", b"\n", b"\0" * 4096])
def test_an_empty_configuration_is_not_all_defaults(content, run):
    run.config_path.write_bytes(content)
    with pytest.raises(EliteError, match="it is empty"):
        run.load_config()


def test_the_heartbeat_goes_on_after_the_disk_was_away(tmp_path, monkeypatch):
    monkeypatch.setattr(process_record, "HEARTBEAT_S", 0.02)
    path = tmp_path / "run" / "process.json"
    path.parent.mkdir()
    path.write_text("x")
    heartbeat = process_record.Heartbeat(path)
    path.parent.rename(tmp_path / "away")
    time.sleep(0.1)
    (tmp_path / "away").rename(path.parent)
    os.utime(path, (1, 1))
    until = time.monotonic() + 20
    while path.stat().st_mtime < 2 and time.monotonic() < until:
        time.sleep(0.02)
    heartbeat.close()
    assert path.stat().st_mtime > 2


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_nobody_else_may_look_into_a_run(mask, tmp_path):
    before = os.umask(mask)
    try:
        config = from_mapping({"output": {"directory": str(tmp_path / "out")}, "data": {"repositories": ["."]}})
        assert RunDirectory.create(config).path.stat().st_mode & 0o077 == 0
    finally:
        os.umask(before)


def test_an_exception_that_nobody_foresaw_is_one_line(monkeypatch, capsys, tmp_path):
    def fail(_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("engine.commands.runs.run", fail)
    assert main(["runs", "--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == "internal"
    assert err.startswith("engine: unexpected ZeroDivisionError: division by zero; please report this with ")
    assert err.count("\n") == 1
    assert "Traceback" in (tmp_path / "state" / "elite-tui.log").read_text()


@pytest.mark.parametrize("make", [KINDS["a FIFO"], KINDS["a link to a device"]], ids=["a FIFO", "a link to a device"])
def test_attaching_to_a_run_without_a_journal_ends(make, run):
    run.journal_path.unlink()
    make(run.journal_path)
    command = [sys.executable, "-m", "engine", "attach", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "run-damaged" in done.stderr or "is damaged" in done.stderr
    assert "Traceback" not in done.stderr


DEEP = '{"a":' + "[" * 200_000 + "]" * 200_000 + "}"
NO_OBJECTS = ["", "[", "[1]", "null", '"x"', DEEP, '{"a": 1' + "0" * 400 + "}", '{"a": 1e999}', '{"a": NaN}', "\0"]


@pytest.mark.parametrize("text", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_what_is_no_bounded_object_is_one_kind_of_error(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own, a subclass
        regular_file.read_object(tmp_path / "file.json")


def test_an_object_of_a_library_may_hold_any_number(tmp_path):
    (tmp_path / "real.json").write_text('{"model_max_length": 1000000000000000019884624838656, "limit": Infinity}')
    (tmp_path / "link.json").symlink_to("real.json")
    found = regular_file.read_object(tmp_path / "link.json", follow=True, bounded=False)
    assert found["model_max_length"] == 1000000000000000019884624838656
    with pytest.raises(OSError):  # noqa: PT011 - ELOOP
        regular_file.read_object(tmp_path / "link.json")


PLANS = [
    *NO_OBJECTS,
    '{"context": 0, "precision": "fp32", "stream": null}',
    '{"context": 64, "precision": 1, "plan": []}',
]


@pytest.mark.parametrize("text", PLANS, ids=range(len(PLANS)))
def test_a_plan_that_cannot_be_used_is_one_line(run, text):
    from engine.generation.run_models import models_of

    run.plan_path.write_text(text)
    with pytest.raises(EliteError, match=r"plan\.json"):
        models_of(run, run.load_config())


@pytest.mark.parametrize("text", [*NO_OBJECTS, '{"lora_alpha": "x"}', '{"lora_alpha": {}}'])
def test_an_adapter_configuration_that_cannot_be_used_is_one_line(tmp_path, text):
    import torch
    from safetensors.torch import save_file

    from engine.export.merging import read_updates

    names = ("x.lora_A.weight", "x.lora_B.weight")
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(EliteError):
        read_updates(tmp_path)


@pytest.mark.parametrize("text", [*NO_OBJECTS, '{"yarn_factor": "2"}', '{"kv_heads": -1}', '{"kv_heads": 1.5}'])
def test_changes_to_a_base_that_cannot_be_used_are_no_changes_silently(tmp_path, text):
    from engine.models.base_changes import FILE_NAME, BaseChanges

    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises((ValueError, TypeError)):
        BaseChanges.read(tmp_path)


def test_an_argument_is_quoted_without_its_escapes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["runs", "--set", "model.device=\x1b[31m\x07red"])
    assert ended.value.code == 2
    assert "\x1b" not in (error := capsys.readouterr().err)
    assert "\\x1b[31m\\x07red" in error


def test_a_panic_of_a_library_is_one_line(monkeypatch, capsys, tmp_path):
    from engine.commands import runs

    class PanicException(BaseException):
        """As libraries in Rust raise it."""

    def panic(_):
        raise PanicException("out of \x1b[31mbounds")

    monkeypatch.setattr(runs, "run", panic)
    assert main(["runs"]) == 4
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "PanicException" in error
