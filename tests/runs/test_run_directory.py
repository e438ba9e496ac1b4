"""Run directories, their output folder, and the index that finds them."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat

import pytest

from engine import config as run_config
from engine.errors import EliteError
from engine.errors.runs import OUTPUT_FULL, OUTPUT_UNWRITABLE, RUN_AMBIGUOUS, RUN_UNKNOWN
from engine.launch import preflight
from engine.protocol.events import PhaseChanged, RunStarted, StepCompleted
from engine.protocol.wire import Envelope, encode_event
from engine.runs import run_index
from engine.runs.deepspeed_config import deepspeed_config
from engine.runs.run_directory import RunDirectory, check_output
from tests.runs.conftest import drain, run_alone


def kind_of(call, *arguments):
    with pytest.raises(EliteError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value.kind


def test_create_and_open(make_config):
    config = make_config("name-1.x")
    run = RunDirectory.create(config)
    assert RunDirectory.open(run.path) == run
    assert run.load_config() == config
    assert run.id.split("-", 2)[2].startswith("name-1.x-")
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "deepspeed.json"]
    assert [path.name for path in run.path.parent.iterdir()] == [run.id]


def test_a_run_and_the_folder_of_runs_are_their_user_s_whatever_the_umask(make_config):
    """Who may write to the folder of runs may put another run in one's place."""
    former = os.umask(0)
    try:
        run = RunDirectory.create(make_config())
    finally:
        os.umask(former)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (run.path, run.path.parent)] == [0o700, 0o700]


def test_paths_where_nothing_can_be_written(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nowhere", tmp_path / ("x" * 300), "a\0b"):
        assert kind_of(RunDirectory.create, make_config(output=output)) is OUTPUT_UNWRITABLE
        assert kind_of(check_output, tmp_path / output) is OUTPUT_UNWRITABLE
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_too_little_space_is_found_before_anything_is_written(tmp_path):
    assert kind_of(check_output, tmp_path / "out", 2**62) is OUTPUT_FULL
    assert list(tmp_path.iterdir()) == []


CREATE = """
import os, resource, sys
from engine import config
from engine.errors import EliteError
from engine.runs.run_directory import RunDirectory
data = {"data": {"repositories": ["x" * 5000]}, "output": {"directory": sys.argv[1]}}
PREPARE
try:
    RunDirectory.create(config.from_mapping(data))
except EliteError as error:
    print(error.code)
"""


def test_a_failing_write_leaves_nothing(tmp_path):
    # The probe of 4 KiB passes and config.yaml does not: as if the disk filled up in between.
    limited = CREATE.replace("PREPARE", "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))")
    assert run_alone(limited, tmp_path / "out") == OUTPUT_UNWRITABLE.code
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_of_somebody_else(tmp_path):
    folder = tmp_path
    while folder != folder.parent:
        folder.chmod(folder.stat().st_mode | 0o055)
        folder = folder.parent
    assert run_alone(CREATE.replace("PREPARE", "os.setuid(65534)"), tmp_path / "out") == OUTPUT_UNWRITABLE.code


def test_a_full_disk_while_making_the_run(make_config, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    status = os.system(f"mount -t tmpfs -o size=16k tmpfs {small} 2>/dev/null")
    if status != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        assert kind_of(check_output, small / "out") is OUTPUT_FULL
        (small / "fill").write_bytes(b"x" * 12_000)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (small / "more").write_bytes(b"x" * 12_000)
        assert kind_of(RunDirectory.create, make_config(output=small)) is OUTPUT_FULL
        assert sorted(path.name for path in small.iterdir()) == ["fill", "more"]
    finally:
        os.system(f"umount {small}")


def test_open_what_is_no_run(tmp_path):
    assert kind_of(RunDirectory.open, tmp_path) is RUN_UNKNOWN
    assert kind_of(RunDirectory.open, tmp_path / "x" / "y") is RUN_UNKNOWN


def test_index_finds_runs_by_id_prefix_and_path(make_config, tmp_path, state):
    runs = [RunDirectory.create(make_config(name, output=tmp_path / name)) for name in ("one", "two")]
    for run in runs:
        run_index.remember_output(run.path.parent.parent)
        run_index.remember_output(run.path.parent.parent)
    assert len((state / "outputs.jsonl").read_text().splitlines()) == 2
    assert {run.id for run in run_index.find_runs()} == {run.id for run in runs}
    assert run_index.find_run() == run_index.find_runs()[0]
    for run in runs:
        assert run_index.find_run(None, run.path.parent.parent) == run
    assert kind_of(run_index.find_run, None, tmp_path) is RUN_UNKNOWN
    assert run_index.find_run(runs[0].id) == runs[0]
    assert run_index.find_run(runs[0].id[:-2]) == runs[0]
    assert run_index.find_run(str(runs[1].path)) == runs[1]
    assert kind_of(run_index.find_run, runs[0].id[:4]) is RUN_AMBIGUOUS
    for reference in ("", "nothing", "a\0b", "\x1b[31m", "/"):
        assert kind_of(run_index.find_run, reference) is RUN_UNKNOWN


def test_index_survives_deleted_outputs_and_garbage(make_config, tmp_path, state):
    run = RunDirectory.create(make_config())
    gone = RunDirectory.create(make_config(output=tmp_path / "gone"))
    for folder in (tmp_path / "out", tmp_path / "gone"):
        run_index.remember_output(folder)
    with (state / "outputs.jsonl").open("ab") as file:
        file.write(b'garbage\n\xff\n[]\n12\n"a\\u0000b"\n')
    shutil.rmtree(tmp_path / "gone")
    assert run_index.find_runs() == [run]
    assert [summary.id for summary in run_index.list_runs()] == [run.id]
    assert kind_of(run_index.find_run, gone.id) is RUN_UNKNOWN


def test_an_index_that_cannot_be_written_is_a_warning(launch, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(run_index.STATE_VARIABLE, str(tmp_path / "file" / "below"))
    handle = launch()
    warnings = [e.event.code for e in drain(handle) if e.kind == "WarningRaised"]
    assert warnings == ["run-not-indexed"]
    assert handle.ending.status == "completed"


def test_summary(launch):
    handle = launch(steps=4)
    drain(handle)
    summary = handle.run.summary()
    assert (summary.status, summary.step, summary.total_steps, summary.context) == ("completed", 4, 4, 64)
    assert (summary.loss, summary.perplexity_before, summary.perplexity_after) == (0.5, 7.389, 4.48)
    assert summary.started < summary.updated
    assert handle.wait_exit(30)
    handle.run.config_path.write_text("- damaged")
    handle.run.journal_path.write_bytes(b"garbage\n" * 100_000)
    damaged = handle.run.summary()
    assert (damaged.status, damaged.model_name, damaged.step) == ("died", handle.run.id, 0)


def test_time_left_is_that_of_the_attempt_under_way(make_config):
    """A run that is resumed an hour after its last step is not done before its next one."""
    run = RunDirectory.create(make_config())
    step = StepCompleted(
        step=1, total_steps=9, epoch=0.1, loss=1.0, lr=1.0, grad_norm=1.0, tokens=1, tokens_per_second=1.0,
        eta_seconds=80.0,
    )  # fmt: skip
    started = RunStarted(model="demo", context=64, total_steps=9)
    events = [
        (1000.0, PhaseChanged(phase="starting")), (1001.0, started), (1010.0, step), (1015.0, PhaseChanged(phase="x")),
        (5000.0, PhaseChanged(phase="starting")), (5001.0, started), (5010.0, step),
    ]  # fmt: skip
    found = []
    for seq, (time, event) in enumerate(events):
        with run.journal_path.open("a") as journal:
            journal.write(encode_event(Envelope(run=run.id, seq=seq, time=time, event=event)) + "\n")
        found.append(run.summary().eta_seconds)
    assert found == [None, None, 80.0, 75.0, None, None, 80.0]


def test_preflight_makes_paths_absolute(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "a.py").write_text("x = 1\n" * 2000)
    (repository / "b.py").write_text("y = 1\n" * 2000)
    monkeypatch.chdir(tmp_path)
    config = run_config.from_mapping({"data": {"repositories": ["repository"]}, "output": {"directory": "o"}})
    checked = preflight.check(config)
    assert checked.data.repositories == [str(repository)]
    assert checked.output.directory == str(tmp_path / "o")
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_deepspeed_json_holds_no_infinity():
    """Gradients that are not to be clipped: other readers of JSON refuse Infinity."""
    config = run_config.from_mapping({"training": {"max_grad_norm": math.inf}})
    assert deepspeed_config(config)["gradient_clipping"] == 0.0
    config = run_config.from_mapping({"training": {"max_grad_norm": math.inf}, "distributed": {"strategy": "zero2"}})
    json.dumps(deepspeed_config(config, context=4096, ranks=2), allow_nan=False)


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16", "fp32", "nf4"])
def test_deepspeed_json_agrees_with_the_configuration(make_config, device, precision):
    data = run_config.to_mapping(make_config())
    data["model"] |= {"device": device, "precision": precision}
    data["training"] |= {"context": 1024, "max_grad_norm": 0.5, "learning_rate": 3e-4, "tokens_per_update": 4096}
    run = RunDirectory.create(run_config.from_mapping(data))
    found = json.loads(run.deepspeed_path.read_text())
    assert found["gradient_clipping"] == 0.5
    assert found["optimizer"]["params"]["lr"] == 3e-4
    assert found["gradient_accumulation_steps"] == 4
    assert found["train_batch_size"] == (found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"])
    assert not (found["bf16"]["enabled"] and found["fp16"]["enabled"])
    assert found["zero_optimization"]["stage"] == 2
    assert ("offload_optimizer" in found["zero_optimization"]) == (device != "cpu")
    assert deepspeed_config(run.load_config(), context=4096)["gradient_accumulation_steps"] == 1
