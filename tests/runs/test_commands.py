"""`engine train` and its relatives as people run them: a process, its signals, its output, its exit status."""

from __future__ import annotations

import argparse
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cli import build_parser
from engine.commands.summaries import SUMMARIES, module_of
from engine.launch.handle import RunHandle
from engine.protocol.commands import Stop
from engine.protocol.events import StepProgress
from engine.protocol.wire import decode_event
from engine.runs.journal import JournalReader
from engine.runs.run_directory import RunDirectory
from engine.runs.run_index import find_runs
from tests.runs.conftest import drain

ENGINE = (sys.executable, "-m", "tests.runs.short_engine")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.py").write_text(f"def {name}(x):\n    return x + 1\n" * 50)
    return folder


@pytest.fixture
def options(repository, tmp_path):
    return ["--repo", str(repository), "--output", str(tmp_path / "out")]


def parsers(parser):
    (action,) = (found for found in parser._actions if isinstance(found, argparse._SubParsersAction))
    return action.choices


def engine(*arguments, **keywords):
    return subprocess.run(
        [*ENGINE, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False, **keywords
    )


def start(*arguments, **keywords):
    return subprocess.Popen([*ENGINE, *map(str, arguments)], cwd=ROOT, stderr=subprocess.PIPE, text=True, **keywords)


def wait_for_step(output, step=1):
    """The one run below `output`, once it has done a step."""
    deadline = time.monotonic() + 60
    while not (runs := find_runs(output)):
        assert time.monotonic() < deadline, "no run was started"
        time.sleep(0.02)
    drain(RunHandle.attach(runs[0]), lambda e: e.kind == "StepCompleted" and e.event.step >= step)
    return runs[0]


def test_foreground_shows_the_result(options, tmp_path):
    done = engine("train", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    run = find_runs(tmp_path / "out")[0]
    for text in ("7.389 before, 4.480 after", str(run.path / "adapter"), f"elite-tui monitor {run.id}"):
        assert text in done.stderr


def test_json_is_the_journal_and_nothing_else(options, tmp_path):
    done = engine("train", *options, "--json")
    assert done.returncode == 0
    message = [decode_event(line) for line in done.stdout.splitlines()]
    journal = JournalReader(find_runs(tmp_path / "out")[0].journal_path).poll()
    assert [e for e in message if not isinstance(e.event, StepProgress)] == [
        e for e in journal if not isinstance(e.event, StepProgress)
    ]
    assert done.stderr == ""


def test_live_display_in_a_terminal(options):
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [*ENGINE, "train", *options, "--max-steps", "40"],
        cwd=ROOT,
        stderr=secondary,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(secondary)
    output = b""
    while True:
        try:
            output += os.read(primary, 4096)
        except OSError:
            break
    os.close(primary)
    assert process.wait() == 0
    assert "tok/s" in output.decode()
    assert "7.389 before, 4.480 after" in output.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_with_a_checkpoint_and_resume_goes_on(options, tmp_path, number):
    process = start("train", *options, "--max-steps", "60")
    run = wait_for_step(tmp_path / "out")
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"engine train --resume {run.id}" in text
    assert run.status() == "stopped"
    assert list(run.checkpoints_path.iterdir())

    seed, keep = ("--set", "training.seed=7"), ("--set", "checkpoint.keep=7")
    refused = engine("train", "--resume", run.id, *seed, *keep)
    assert refused.returncode == 2
    assert "training.seed 0 → 7" in refused.stderr
    assert "checkpoint.keep" not in refused.stderr
    done = engine("train", "--resume", "--max-steps", "60", "--json", *keep)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["changed  checkpoint.keep 2 → 7"]
    assert run.load_config().checkpoint.keep == 7
    assert decode_event(done.stdout.splitlines()[0]).kind == "PhaseChanged"
    again = engine("train", "--resume", run.id)
    assert again.returncode == 2
    assert "complete" in again.stderr


def test_a_second_interrupt_ends_at_once(options, tmp_path):
    process = start("train", *options, "--model-name", "hang")
    run = wait_for_step(tmp_path / "out", 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted twice" in text
    assert JournalReader(run.journal_path).poll()[-1].event.error == "interrupted"


def test_the_run_survives_kill_9_of_its_launcher(options, tmp_path):
    process = start("train", *options, "--max-steps", "50")
    run = wait_for_step(tmp_path / "out")
    process.kill()
    process.communicate()
    events = drain(RunHandle.attach(run))
    assert events[-1].event.status == "completed"
    assert [e.event.step for e in events if e.kind == "StepCompleted"] == list(range(1, 51))
    attached = engine("attach", run.id, "--json")
    assert attached.returncode == 0
    message = [decode_event(line) for line in attached.stdout.splitlines()]
    assert message == JournalReader(run.journal_path).poll()


def test_the_run_survives_its_terminal(options, tmp_path):
    pid, primary = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [*ENGINE, "train", *options, "--max-steps", "50"])
    run = wait_for_step(tmp_path / "out")
    os.close(primary)  # the terminal is gone: SIGHUP
    os.waitpid(pid, 0)
    assert drain(RunHandle.attach(run))[-1].event.status == "completed"


def test_detached(options, tmp_path):
    done = engine("train", *options, "--detach", "--max-steps", "50", "--json")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    run = find_runs(tmp_path / "out")[0]
    assert answer == {"run": run.id, "path": str(run.path)}
    assert run.status() in ("starting", "running")
    assert drain(RunHandle.attach(run))[-1].event.status == "completed"


def test_control_from_another_process(options, tmp_path):
    assert engine("train", *options, "--detach", "--max-steps", "3000").returncode == 0
    run = wait_for_step(tmp_path / "out")
    short = run.id[:-2]
    assert engine("pause", short).returncode == 0
    assert run.status() == "paused"
    assert engine("resume", short).returncode == 0
    done = engine("stop", short, "--json")
    assert json.loads(done.stdout)["accepted"] is True
    assert drain(RunHandle.attach(run))[-1].event.status == "stopped"
    late = engine("stop", run.id, "--json")
    assert late.returncode == 2
    assert json.loads(late.stdout)["error"] == "run-not-active"
    attached = engine("attach", run.path)
    assert attached.returncode == 130
    listed = json.loads(engine("runs", "--json").stdout)
    assert [(line["id"], line["status"]) for line in listed] == [(run.id, "stopped")]
    assert run.id in engine("runs").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 2, "no repository was named"),
        (["--repo", "/does/not/exist"], 2, "/does/not/exist does not exist"),
        (["--repo", __file__], 2, "is not a folder"),
        (["--auto", "--epochs", "many"], 2, "training.epochs: many is not a number"),
        (["--auto", "--tier", "12"], 2, "training.tier: 12 is not"),
        (["--auto", "--set", "training.epocs=1"], 2, "did you mean training.epochs?"),
        (["--auto", "--config", "/does/not/exist.yaml"], 2, "/does/not/exist.yaml"),
        (["--auto", "--output", "/proc/nowhere"], 2, "/proc/nowhere cannot be written"),
        (["--auto", "--output", f"{__file__}/out"], 2, "cannot be written"),
        (["--resume", "no-such-run"], 2, "no run matches no-such-run"),
        (["--resume"], 2, "no run matches"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, status, text, repository):
    done = engine("train", *arguments)
    assert done.returncode == status, done.stderr
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (ROOT / "out").exists() or not list((ROOT / "out").glob("runs/.*"))


def test_help_names_every_option():
    text = engine("train", "--help").stdout
    options = "auto repo output model model-name epochs max-steps tier config set resume detach json"
    assert [name for name in options.split() if f"--{name}" not in text] == []


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_command_alone_has_the_help_that_it_has_among_all(name):
    alone, among = (parsers(build_parser(filled))[name] for filled in ([name], SUMMARIES))
    assert alone.format_help() == among.format_help()


def test_every_module_of_a_command_has_a_summary():
    sources = {path.stem: path.read_text() for path in (ROOT / "engine/commands").glob("*.py")}
    modules = {f"engine.commands.{stem}" for stem, text in sources.items() if "\ndef run(" in text}
    assert {module_of(name) for name in SUMMARIES} == modules
    assert SUMMARIES.keys() >= {"train", "attach", "stop", "lr-range", "serve"}


@pytest.mark.parametrize("name", ["control", "lr_range", "trian", "-"])
def test_what_is_no_command_is_answered_with_all_of_them(name):
    done = engine(name)
    assert done.returncode == 2
    assert f"unknown command {name}" in done.stderr
    assert "engine --help" in done.stderr
    # The longest name may have a line of its own.
    listed = [line.split()[0] for line in engine("--help").stdout.splitlines() if line.startswith("    ")]
    assert [known for known in SUMMARIES if known not in listed] == []


def test_an_option_before_a_command_leaves_it_its_options():
    assert engine("--verbose", "stop", "--help").stdout == engine("stop", "--help").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["trian"]])
def test_an_answer_without_a_command_imports_no_command(arguments):
    code = "import sys\ntry: import engine.__main__\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], text=True, capture_output=True, cwd=ROOT)
    imported = done.stdout.splitlines()[-1].split()
    assert "engine.cli" in imported
    assert [name for name in SUMMARIES if module_of(name) in imported] == []
    assert not {"engine.config", "msgspec", "numpy", "yaml"} & set(imported)


def test_who_follows_a_run_hears_that_its_folder_was_renamed(options, tmp_path):
    assert engine("train", *options, "--detach", "--max-steps", "3000").returncode == 0
    run = wait_for_step(tmp_path / "out")
    words = [*ENGINE, "attach", run.path, "--plain"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as follower:
        for line in follower.stderr:
            if line.startswith("step "):
                break
        moved = run.path.rename(run.path.with_name(f"{run.id}-moved"))
        said = follower.stderr.read()
    assert follower.returncode == 4
    assert f"run directory {run.path} was renamed or deleted" in said
    assert "without reporting an error" not in said
    handle = RunHandle.attach(RunDirectory(moved))
    handle.send(Stop(id="end", save=False))  # the short recipe does not look for its folder, and has a minute to go
    assert drain(handle)
