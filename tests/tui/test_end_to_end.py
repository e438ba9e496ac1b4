"""End to end: the wizard drives a real training process, and a run outlives a killed app."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from textual.events import Paste
from textual.widgets._footer import FooterKey

from elite_tui.app import EliteApp
from elite_tui.client.calls import Engine
from elite_tui.screens.confirm import ConfirmScreen
from elite_tui.state import AppState
from elite_tui.widgets.chart import LineChart
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.option_form import OptionForm
from elite_tui.wizard.draft import Draft
from engine.launch.handle import RunHandle
from engine.launch.launcher import launch
from engine.launch.preflight import check
from engine.protocol.commands import Stop
from engine.protocol.events import StepCompleted
from engine.runs.run_index import find_run, list_runs
from tests.tui.support import make_app, screen_of, settled, text_of, until
from tests.tui.terminal import Terminal

ROOT = Path(__file__).parents[2]
FEW_STEPS = {
    "training.context": 128,
    "training.tokens_per_update": 256,
    "training.evaluate_tokens": 256,
    "lora.rank": 4,
}


@pytest.fixture
def repository(tmp_path):
    """Makes a dozen small files, one with a name that would be markup."""
    folder = tmp_path / "shop"
    folder.mkdir()
    for number in range(12):
        lines = [f'"""Module {number} of the shop."""', ""]
        for method in range(8):
            lines += [
                f"def total_{method}(items, rate={number}.{method}):",
                f'    """Sum of the items at rate {method}."""',
                "    return sum(price * rate for name, price in items if name and price > 0)",
                "",
            ]
        name = "[bold]module[link=x].py" if number == 0 else f"module_{number}.py"
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def one_thread(monkeypatch):
    """Limits the training process to one thread, as it shares the machine with the tests."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


async def type_into(pilot, path, text):
    selector = f"#field-{path.replace('.', '-')}"
    for form in pilot.app.screen.query(OptionForm):
        form.focus_field(path)  # its rows come as they are scrolled to
    await until(pilot, lambda: bool(pilot.app.screen.query(selector)))
    control = pilot.app.screen.query_one(selector, FieldRow).control
    control.focus()
    await pilot.press("ctrl+a", "backspace")
    control.post_message(Paste(text))  # test_terminals.py types
    await until(pilot, lambda: control.value == text)


async def test_from_the_first_screen_to_the_result(repository, tmp_path, one_thread):
    """Replaces nothing: repository, machine, plan, preflight, process, training and journal are real."""
    app = EliteApp(AppState(draft=Draft(tmp_path / "wizard.json", {})), Engine())
    app.animation_level = "none"
    async with app.run_test(size=(100, 32)) as pilot:
        await type_into(pilot, "data.repositories", str(repository))
        await type_into(pilot, "output.directory", str(tmp_path / "out"))
        await type_into(pilot, "output.model_name", "shop")
        await until(pilot, lambda: app.state.repository.value is not None)
        await until(pilot, lambda: "12 files" in text_of(app, "#repository"))
        await pilot.press("ctrl+n")
        await until(pilot, lambda: app.state.machine.value is not None and app.state.snapshots)
        await until(pilot, lambda: "Disk" in text_of(app, "#inventory"))
        await pilot.press("ctrl+n")
        await until(pilot, lambda: app.state.tiers.value is not None)
        await pilot.press("ctrl+n")
        await until(pilot, lambda: screen_of(app) == "options")
        await pilot.press("f4")
        await until(pilot, lambda: bool(app.screen.query(FieldRow)))
        for path, value in {**FEW_STEPS, "training.max_steps": 3}.items():
            await type_into(pilot, path, str(value))
        await until(pilot, lambda: "✓ all fields are valid" in text_of(app, "#verdict"))
        await pilot.press("ctrl+n")
        await until(pilot, lambda: app.state.data.value is not None, seconds=60)
        assert app.state.data.value.files == 12
        await pilot.press("ctrl+n")
        await until(pilot, lambda: app.state.preflight.value is not None)
        await until(pilot, lambda: "✓ ready to start" in text_of(app, "#verdict"))
        await pilot.press("ctrl+s")
        await until(pilot, lambda: screen_of(app) == "monitor", seconds=60)
        await until(pilot, lambda: app.state.run.step, seconds=120)
        await until(pilot, lambda: "train n/a" not in app.screen.query_one(LineChart).plain, seconds=60)
        await until(pilot, lambda: app.state.run.ended, seconds=120)
        assert app.state.run.failed is None
        assert app.state.run.state == "completed"
        assert len(app.state.run.history.steps) == 3
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(app) == "result")
        assert "✓ completed" in text_of(app, "#verdict")
        assert "3 updates: too few to tell" in text_of(app, "#change")
        assert (app.state.run_path / "adapter" / "adapter_model.safetensors").is_file()
        await pilot.press("ctrl+q")
    (summary,) = list_runs()
    assert summary.status == "completed"
    assert summary.perplexity_before is not None
    assert summary.perplexity_after is not None


async def test_a_stopped_run_is_resumed_from_the_list_and_its_result(repository, tmp_path, one_thread):
    """Stops a real run twice; resumes it by the key of the list, then by that of its result, to its last step."""
    values = {
        "data.repositories": [str(repository)],
        "model.device": "cpu",
        "output.directory": str(tmp_path / "out"),
        "output.model_name": "shop",
        "training.epochs": 20,
        "training.max_steps": 40,
    }
    draft = Draft(None, {})
    for path, value in {**FEW_STEPS, **values}.items():
        draft.set(path, value)
    handle = launch(check(draft.run_config()))
    stop_at_a_step(handle)
    handle.close()
    app = EliteApp(AppState(draft=draft), Engine(), first_screen="runs")
    app.animation_level = "none"
    async with app.run_test(size=(100, 32)) as pilot:
        await until(pilot, lambda: "Resume" in keys_of(app))
        stopped_at = app.state.runs.value[0].step
        assert 0 < stopped_at < 40
        await pilot.press("r")
        await until(pilot, lambda: screen_of(app) == "monitor", seconds=60)
        await until(pilot, lambda: app.state.run.done_steps > stopped_at and not app.state.run.ended, seconds=120)
        await until(pilot, lambda: len(app.state.run.history.steps) == app.state.run.done_steps)  # both attempts
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("left", "enter")
        await until(pilot, lambda: app.state.run.ended, seconds=120)
        assert app.state.run.state == "stopped"
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(app) == "result" and "Resume" in keys_of(app))
        await until(pilot, lambda: find_run().status() == "stopped")
        await pilot.press("r")
        await until(pilot, lambda: screen_of(app) == "monitor", seconds=60)
        await until(pilot, lambda: app.state.run.state == "completed", seconds=120)
        await until(pilot, lambda: "Resume" not in keys_of(app))
        assert app.state.run.done_steps == 40
        await pilot.press("ctrl+q")


def keys_of(app):
    """The labels of the footer's keys."""
    return [key.description for key in app.screen.query(FooterKey)]


def stop_at_a_step(handle):
    """Stops a run after its first step, and waits for its end."""
    while handle.ending is None:
        for envelope in handle.poll():
            if isinstance(envelope.event, StepCompleted) and envelope.event.step == 1:
                handle.send(Stop(id="1"))
        time.sleep(0.02)
    handle.wait_exit(30)


def test_a_run_outlives_a_killed_app_and_is_attached_to_again(repository, tmp_path, one_thread):
    """Kills the app with SIGKILL and closes its terminal; the run completes, and the monitor shows all of it."""
    state = Path(os.environ["ELITE_TUI_STATE_DIR"])
    draft = Draft(state / "wizard.json", {})
    values = {"output.directory": str(tmp_path / "out"), "output.model_name": "shop", "training.max_steps": 12}
    for path, value in {**FEW_STEPS, **values}.items():
        draft.set(path, value)
    draft.save()
    terminal = Terminal("--repo", str(repository))
    try:
        terminal.wait_for(lambda: "12 files" in terminal.text, 60)
        for screen_name in ("Machine", "an epoch", "Fastest", "held-out", "ready to start"):
            terminal.press(b"\x0e")
            terminal.wait_for(lambda screen_name=screen_name: screen_name in terminal.text, 60)
        terminal.press(b"\x13")
        terminal.wait_for(lambda: any(run.step >= 1 for run in list_runs()), 180)
        os.kill(terminal.process.pid, signal.SIGKILL)
        terminal.process.wait()
    finally:
        terminal.close()
    (summary,) = list_runs()
    assert summary.status == "running"
    assert summary.step < 12
    again = Terminal("monitor")
    try:
        again.wait_for(lambda: "completed" in again.text, 180)
        again.press(b"\r")
        again.wait_for(lambda: "Perplexity" in again.text, 30)
        again.press(b"\x11")
        again.wait_for(lambda: again.process.poll() is not None, 30)
        assert again.process.returncode == 0
    finally:
        again.close()
    assert find_run().status() == "completed"


def test_a_failure_of_the_app_leaves_the_terminal_sane(repository):
    """Raises in a handler; expects three lines on the normal screen, a log, and exit status 1."""
    program = (
        "import sys; from elite_tui.app import EliteApp; from elite_tui.__main__ import main;"
        "EliteApp.action_toggle_theme = lambda self: 1 // 0; sys.exit(main(sys.argv[1:]))"
    )
    terminal = Terminal("--repo", str(repository), program=["-c", program])
    try:
        terminal.wait_for(lambda: "12 files" in terminal.text, 60)
        terminal.press(b"\x1bOQ")
        terminal.wait_for(lambda: terminal.process.poll() is not None, 30)
        terminal.read(0.2)
        log = Path(os.environ["ELITE_TUI_STATE_DIR"]) / "elite-tui.log"
        normal_screen = terminal.text_after_leaving()
        assert "elite-tui: unexpected ZeroDivisionError" in normal_screen
        assert "the details are in" in normal_screen
        assert str(log) in normal_screen.replace("\r\n", "")
        assert "Traceback" not in normal_screen
        assert "Traceback" in log.read_text()
        assert terminal.process.returncode == 1
    finally:
        terminal.close()


async def test_the_monitor_attaches_to_a_run_started_elsewhere(repository, tmp_path, one_thread):
    """Watches, pauses, resumes and stops a run that another process started."""
    from engine import config
    from engine.launch.launcher import launch

    values = {
        "data": {"repositories": [str(repository)]},
        "output": {"directory": str(tmp_path / "out"), "model_name": "shop"},
        "lora": {"rank": 4},
        # More steps than a slow machine completes before the stop, so that the run cannot finish first.
        "training": {"context": 128, "tokens_per_update": 256, "evaluate_tokens": 256, "epochs": 1000},
    }
    launched = launch(config.from_mapping(values))
    app = make_app("monitor", engine=Engine())
    try:
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: app.state.run is not None and app.state.run.step, seconds=120)
            await pilot.press("p")
            await until(pilot, lambda: app.state.run.paused, seconds=60)
            steps = len(app.state.run.history.steps)
            await pilot.press("r")
            await until(pilot, lambda: len(app.state.run.history.steps) > steps, seconds=60)
            await pilot.press("s")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
            await pilot.press("left", "enter")
            await until(pilot, lambda: app.state.run.ended, seconds=60)
            assert app.state.run.state == "stopped"
            assert app.state.run.checkpoint is not None
            await settled(pilot)
    finally:
        if RunHandle.attach(launched.run).status() == "running":
            launched.terminate(signal.SIGKILL)
        launched.close()
