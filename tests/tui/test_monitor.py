"""The monitor and the result, from a recorded run."""

from __future__ import annotations

import pytest
from textual.widgets import DataTable

from elite_tui.messages import Sampled
from elite_tui.screens.confirm import ConfirmScreen, QuitScreen
from elite_tui.widgets.chart import LineChart
from elite_tui.widgets.log_pane import LogPane
from engine import config as run_config
from engine.errors.runs import RUN_CONTROL_UNREACHABLE, RUN_UNKNOWN
from engine.launch.handle import RunHandle
from engine.protocol.events import (
    CommandAcked,
    LogLine,
    PhaseChanged,
    RecoveryTaken,
    RunFailed,
    RunFinished,
    RunStarted,
    StepCompleted,
)
from engine.runs.run_index import remember_output
from tests.tui.recording import HOSTILE, RUN_ID, recorded
from tests.tui.support import (
    FixedEngine,
    Replay,
    copy_recording,
    cpu_machine,
    half_way,
    make_app,
    screen_of,
    settled,
    text_of,
    until,
)

SIZE = (120, 40)


def logged(app):
    return "\n".join(row.text for row in app.screen.query_one(LogPane).rows)


async def test_a_live_run():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: "step 33/60" in text_of(app, "#progress"))
        assert "● training" in text_of(app, "#status")
        assert "ETA 52s" in text_of(app, "#progress")
        assert "backward layer 5 tile 0" in text_of(app, "#progress")
        assert "4,426" in text_of(app, "#figures")
        assert "train 1.965" in app.screen.query_one(LineChart).plain
        assert HOSTILE.replace("\x1b", "\\x1b") in logged(app)


@pytest.mark.parametrize(("key", "command"), [("p", "Pause"), ("w", "SaveNow"), ("e", "EvaluateNow")])
async def test_keys_send_commands(key, command):
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        await pilot.press(key)
        await until(pilot, lambda: handle.sent)
        assert type(handle.sent[0]).__name__ == command
        await until(pilot, lambda: not app.state.run.pending)


async def test_pause_then_resume():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        assert not app.screen.check_action("resume", ())
        await pilot.press("r")
        await pilot.press("p")
        await until(pilot, lambda: app.state.run.paused)
        await until(pilot, lambda: "Ⅱ paused" in text_of(app, "#status"))
        assert not app.screen.check_action("pause", ())
        await pilot.press("r")
        await until(pilot, lambda: not app.state.run.paused)
        assert [type(command).__name__ for command in handle.sent] == ["Pause", "Resume"]


async def test_stop_asks_first():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        assert app.focused.id == "cancel"
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, ConfirmScreen))
        assert handle.sent == []
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen))
        await pilot.press("left", "enter")
        await until(pilot, lambda: handle.sent)
        assert handle.sent[0].save
        handle.add(RunFinished(status="stopped", steps=33, seconds=70.0))
        await until(pilot, lambda: "■ stopped" in text_of(app, "#status"))


async def test_a_command_that_cannot_be_sent_is_said():
    handle = half_way()
    handle.send = lambda command: (_ for _ in ()).throw(
        RUN_CONTROL_UNREACHABLE(run=RUN_ID, problem="it runs on [/bold] another machine")
    )
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        await pilot.press("p")
        await until(pilot, lambda: len(app._notifications) == 1)
        assert "[/bold] another machine" in next(iter(app._notifications)).message
        assert not app.state.run.pending


async def test_detach_leaves_the_run():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        await pilot.press("d")
    assert f"elite-tui monitor {RUN_ID}" in app.return_value
    assert handle.closed
    assert handle.sent == []


@pytest.mark.parametrize(
    ("keys", "leaves", "sends"),
    [
        (["enter"], True, []),
        (["right", "enter"], True, ["Stop"]),
        (["escape"], False, []),
    ],
)
async def test_quitting_with_a_run_asks(keys, leaves, sends):
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: isinstance(app.screen, QuitScreen))
        assert app.focused.id == "detach"
        await pilot.press(*keys)
        if leaves:
            await until(pilot, lambda: app.return_value is not None)
        else:
            await until(pilot, lambda: not isinstance(app.screen, QuitScreen))
            assert screen_of(app) == "monitor"
    assert [type(command).__name__ for command in handle.sent] == sends


async def test_quitting_without_a_run_does_not_ask():
    app = make_app("monitor", handle=Replay(recorded()))
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.ended)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: app.return_value is not None)
    assert app.return_value == ""


async def test_a_finished_run_from_disk_and_its_result(tmp_path):
    run = copy_recording(tmp_path / "out")
    app = make_app("monitor", handle=RunHandle.attach(run))
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.ended)
        await until(pilot, lambda: "✓ completed" in text_of(app, "#status"))
        assert not app.screen.check_action("pause", ())
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(app) == "result")
        assert "▼ −89.0%" in text_of(app, "#change")
        assert "adapter/" in text_of(app, "#paths")
        # It is in no known output folder, so its reference is its path.
        await until(pilot, lambda: f"elite-tui monitor {run.path}" in text_of(app, "#next"))
        await pilot.press("m")
        await until(pilot, lambda: screen_of(app) == "monitor")
        app.go("result")
        await until(pilot, lambda: screen_of(app) == "result")
        await pilot.press("n")
        await until(pilot, lambda: screen_of(app) == "project")
        await settled(pilot)
        app.go("result")
        await until(pilot, lambda: screen_of(app) == "result")


async def test_a_run_that_died_says_so(tmp_path):
    run = copy_recording(tmp_path / "out")
    lines = run.journal_path.read_text().splitlines(keepends=True)
    run.journal_path.write_text("".join(lines[:60]))
    run.log_path.write_text("[/bold] the last words\n")
    # Too old for a run that is still starting.
    import os

    os.utime(run.config_path, (0, 0))
    app = make_app("monitor", handle=RunHandle.attach(run))
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.ended)
        await until(pilot, lambda: "✗ failed" in text_of(app, "#status"))
        assert "[/bold] the last words" in logged(app)
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(app) == "result")
        assert "engine train --resume" in text_of(app, "#next")


async def test_a_run_that_cannot_be_opened():
    engine = FixedEngine(cpu_machine())
    engine.open_run = lambda reference: (_ for _ in ()).throw(RUN_UNKNOWN(reference="[/x]"))
    app = make_app("monitor", engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.state.opening is not None)
        await until(pilot, lambda: "no run matches [/x]" in text_of(app, "#status"))
        await pilot.press("p", "s", "enter", "d")
        assert screen_of(app) == "monitor"


async def test_a_worse_result_says_so():
    events = [
        RunStarted(model="demo", context=64, total_steps=1),
        PhaseChanged(phase="training"),
        RunFinished(status="completed", steps=1, seconds=1.0, perplexity_before=10.0, perplexity_after=12.0),
    ]
    handle = Replay([])
    handle.add(*events)
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.ended)
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(app) == "result")
        assert "= +20.0%" in text_of(app, "#change")
        assert "one update: too few to tell" in text_of(app, "#change")
        assert "none was saved" in text_of(app, "#paths")


async def test_events_of_another_run_are_not_mixed_in():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        before = len(app.state.run.history.steps)
        stranger = recorded()[20]
        handle._coming.append(type(stranger)(run="another", seq=999, time=1.0, event=LogLine(level="info", text="x")))
        handle.add(CommandAcked(command_id="z", command="SaveNow", accepted=False, text="not now"))
        await until(pilot, lambda: "SaveNow refused: not now" in logged(app))
        assert len(app.state.run.history.steps) == before


async def test_the_log_stays_where_one_scrolled_to_and_folds_anew():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step)
        handle.add(*(LogLine(level="error", text=f"{number} " + "界" * 90) for number in range(60)))
        await until(pilot, lambda: "59 界" in logged(app))
        pane = app.screen.query_one(LogPane)
        await until(pilot, lambda: pane.is_vertical_scroll_end)
        rows = len(pane.rows)
        await pilot.press("home")
        await until(pilot, lambda: pane.scroll_offset.y == 0)
        handle.add(LogLine(level="debug", text="one more"))
        await until(pilot, lambda: "one more" in logged(app))
        assert pane.scroll_offset.y == 0
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: len(pane.rows) > rows + 1)


async def test_nothing_measured_is_not_zero():
    handle = Replay([])
    handle.add(
        RunStarted(model="demo", context=64, total_steps=0),
        StepCompleted(
            step=1, total_steps=0, epoch=0.0, loss=None, lr=0.0, grad_norm=None, tokens=0, tokens_per_second=0.0
        ),
        RunFailed(error="loss-not-finite", message="the loss became null", hint="[/bold]", exit_code=4),
    )
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.ended)
        await until(pilot, lambda: "[/bold]" in text_of(app, "#progress"))
        assert "step n/a" in text_of(app, "#progress")
        assert "train n/a" in app.screen.query_one(LineChart).plain


async def test_the_list_of_runs_opens_one(tmp_path):
    run = copy_recording(tmp_path / "out")
    remember_output(tmp_path / "out")
    engine = FixedEngine(cpu_machine(), RunHandle.attach(run))
    del engine.summaries
    engine.list_runs = super(FixedEngine, engine).list_runs
    app = make_app("runs", engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        table = app.screen.query_one(DataTable)
        await until(pilot, lambda: table.row_count == 1)
        assert str(table.get_row_at(0)[1]) == "✓ completed"
        assert str(table.get_row_at(0)[7]) == "60.34 → 6.611 ▼ 89%"
        await pilot.press("f5")
        await settled(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(app) == "monitor")
        assert engine.opened == [str(run.path)]
        await until(pilot, lambda: app.state.run.ended)
        await pilot.press("f3")
        await until(pilot, lambda: screen_of(app) == "runs")


async def test_no_runs_yet():
    app = make_app("runs", machine=cpu_machine())
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: "no runs yet" in text_of(app, "#about"))
        await pilot.press("enter")
        await pilot.press("n")
        await until(pilot, lambda: screen_of(app) == "project")
        await settled(pilot)
        assert app.state.machine.value is not None


async def test_a_run_that_has_just_begun_shows_the_machine_and_the_plan():
    handle = Replay(recorded(until_step=0)[:2])
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: "RAM" in text_of(app, "#figures"))
        shown = text_of(app, "#figures")
        assert "VRAM" in shown
        assert "CPU" in shown
        assert "tokens/s    n/a" not in shown


async def test_silence_counts_without_news():
    app = make_app("monitor", handle=half_way())
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        latest = app.state.run.updated_at
        for seconds, words in ((45, "no news for 40s"), (75, "no news for 1m 10s")):
            app.state.clock = lambda seconds=seconds: latest + seconds
            app.post_message(Sampled(app.client.engine.latest_sample()))
            await until(pilot, lambda words=words: words in text_of(app, "#notice"))


@pytest.mark.parametrize("desktop", [True, False])
async def test_the_terminal_notifies_of_what_happens_while_the_app_watches(tmp_path, monkeypatch, desktop):
    for name in ("TMUX", "VTE_VERSION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    run = copy_recording(tmp_path / "out")
    mapping = run_config.to_mapping(run.load_config())
    mapping["notify"]["desktop"] = desktop
    run.write_config(run_config.from_mapping(mapping))
    handle = half_way()
    handle.run = run
    app = make_app("monitor", handle=handle)
    sent = []
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.step is not None)
        app._driver.write = sent.append
        handle.add(
            RecoveryTaken(what="repeated", why="a spike"),
            RecoveryTaken(what="repeated", why="a spike"),
            RunFinished(status="completed", steps=60, seconds=1.0),
        )
        await until(pilot, lambda: app.state.run.ended)
        notified = [text for text in sent if "]9;" in text]
        assert [text.count("\x1b]9;") for text in notified] == ([1, 1] if desktop else [])
        # The 25th step's recovery was in the journal before.
        assert all("recovered: repeated (a spike)" in text or "completed: 60 steps" in text for text in notified)
