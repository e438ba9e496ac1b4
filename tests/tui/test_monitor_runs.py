"""The monitor of several runs, and of runs that are resumed or out of reach."""

from __future__ import annotations

import dataclasses
import os
import time

from engine.launch.handle import RunHandle
from engine.protocol.events import (
    PhaseChanged,
    RunStarted,
)
from engine.runs.access import Access
from engine.runs.process_record import STALE_S, ProcessRecord, write_record
from tests.tui.recording import RUN_ID, recorded
from tests.tui.support import (
    FixedEngine,
    Replay,
    at_step,
    copy_recording,
    gpu_machine,
    half_way,
    make_app,
    settled,
    text_of,
    until,
)

SIZE = (120, 36)


class ManyRuns(FixedEngine):
    """An engine that replays several runs by name."""

    def __init__(self, handles):
        super().__init__(gpu_machine())
        self.handles = handles

    def open_run(self, reference):
        return self.handles[reference]


def copies(tmp_path, *names):
    """Makes run directories with the recorded journal, each under its own name."""
    handles = {}
    for name in names:
        run = copy_recording(tmp_path / name)
        path = run.path.with_name(f"20260102-100000-{name}-0000")
        run.path.rename(path)
        run = type(run)(path)
        run.journal_path.write_text(run.journal_path.read_text().replace(RUN_ID, path.name))
        handles[name] = RunHandle.attach(run)
    return handles


async def test_several_runs_in_tabs(tmp_path):
    engine = ManyRuns(copies(tmp_path, "one", "two", "three"))
    app = make_app("monitor", engine=engine)
    app._runs = ["one", "two", "three"]
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(app.state.open_runs) == 3)
        await until(pilot, lambda: all(run.view.ended for run in app.state.open_runs))
        await until(pilot, lambda: "✓ one-0000  ✓ two-0000  ✓ three-0000" in text_of(app, "#run-tabs"))
        assert app.state.run.run_id.endswith("one-0000")
        await pilot.press("full_stop")
        await until(pilot, lambda: "two-0000" in text_of(app, "#status"))
        await pilot.press("comma", "comma")
        await until(pilot, lambda: "three-0000" in text_of(app, "#status"))
        tabs = text_of(app, "#run-tabs")
        await pilot.click("#run-tabs", offset=(tabs.index("one-0000") + 1, 0))
        await until(pilot, lambda: "one-0000" in text_of(app, "#status"))
        await pilot.press("k")
        await until(pilot, lambda: "two-0000" in text_of(app, "#status"))
        await pilot.press("k")
        await until(pilot, lambda: not app.screen.query_one("#run-tabs").display)
        assert len(app.state.open_runs) == 1
        assert not app.screen.check_action("next_run", ())
        await pilot.press("k")
        await until(pilot, lambda: app.screen.ROOM == "runs")
        await settled(pilot)


async def test_commands_go_to_the_run_on_screen(tmp_path):
    first = half_way()
    second = Replay([dataclasses.replace(envelope, run="another") for envelope in recorded(until_step=33)])
    second.run = type(second.run)(second.run.path.with_name("another"))
    engine = ManyRuns({"a": first, "b": second})
    app = make_app("monitor", engine=engine)
    app._runs = ["a", "b"]
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: len(app.state.open_runs) == 2)
        await until(pilot, lambda: app.state.run.step is not None)
        await pilot.press("w")
        await until(pilot, lambda: bool(first.sent))
        await pilot.press("full_stop")
        await until(pilot, lambda: app.state.run.run_id == "another")
        await pilot.press("e")
        await until(pilot, lambda: bool(second.sent))
        assert [type(command).__name__ for command in first.sent] == ["SaveNow"]
        assert [type(command).__name__ for command in second.sent] == ["EvaluateNow"]
        await pilot.press("d")
    assert RUN_ID in app.return_value
    assert "another" in app.return_value


async def test_a_run_that_cannot_be_controlled_says_why():
    handle = half_way()
    handle.reach = Access(here=False, refusal="its process is on another machine; this folder is a copy or a mount")
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        await until(pilot, lambda: "⊘ read-only: its process is on another machine" in text_of(app, "#notice"))
        assert app.screen.check_action("pause", ()) is None
        await pilot.press("p", "w", "e", "s")
        await pilot.pause()
        assert handle.sent == []
        # This machine's levels are unrelated to that run.
        await until(pilot, lambda: not app.screen.query_one("MachineGauges").display)
        await pilot.press("ctrl+q")
        await until(pilot, lambda: app.return_value is not None)
    assert f"elite-tui monitor {handle.run.path}" in app.return_value


async def test_a_copy_from_another_machine(tmp_path):
    """Follows a folder with the record of a process on another machine and no socket; the run comes back to life."""
    run = copy_recording(tmp_path / "out")
    lines = run.journal_path.read_text().splitlines(keepends=True)
    run.journal_path.write_text("".join(lines[:60]))
    write_record(run.process_path, ProcessRecord(pid=1, start="1", place="elsewhere/4026531836", first_seq=0))
    for path in (run.process_path, run.config_path):
        os.utime(path, (0, 0))
    assert time.time() > STALE_S
    app = make_app("monitor", handle=RunHandle.attach(run))
    async with app.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run.failed is not None)
        await until(pilot, lambda: "no sign of life" in text_of(app, "#progress"))
        # The next synchronisation brings more of the journal, so the run was alive.
        with run.journal_path.open("a") as journal:
            journal.write("".join(lines[60:100]))
        os.utime(run.process_path)
        await until(pilot, lambda: app.state.run.failed is None)
        await until(pilot, lambda: "● training" in text_of(app, "#status"))
        assert "⊘ read-only" in text_of(app, "#notice")


async def test_a_journal_that_cannot_be_read_is_said(tmp_path):
    handle = half_way()
    handle._reader.problem = "[/bold] stale file handle"
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        await until(pilot, lambda: "the journal cannot be read at present: [/bold] stale" in text_of(app, "#notice"))


async def test_a_resumed_run_goes_on_where_it_was():
    handle = half_way()
    app = make_app("monitor", handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await at_step(pilot, 33)
        handle.add(
            RunStarted(model="demo", context=4096, total_steps=60, first_step=20), PhaseChanged(phase="training")
        )
        await until(pilot, lambda: "step 20/60" in text_of(app, "#progress"))
        assert len(app.state.run.history.steps) == 20
        assert "resumed after step 20" in app.state.run.events[-2].text
