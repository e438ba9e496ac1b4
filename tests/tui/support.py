"""Builds the app on fixed data: machine, repository and run."""

from __future__ import annotations

import asyncio
import inspect
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from textual.pilot import Pilot
from textual.strip import Strip
from textual.widgets import Input, Static, TextArea

from elite_tui.app import EliteApp
from elite_tui.client.calls import Engine
from elite_tui.remote_data import RemoteData
from elite_tui.state import AppState
from elite_tui.widgets.diff_widget import DiffWidget
from elite_tui.widgets.log_pane import LogPane
from elite_tui.wizard.draft import Draft
from elite_tui.wizard.facts import LanguageShare, RepositoryFacts
from elite_tui.wizard.plans import Plans
from engine import config as run_config
from engine.errors import EliteError
from engine.hardware.cards import find_card, simulate
from engine.hardware.machine import GIB, Machine
from engine.hardware.nvml import GpuSample
from engine.hardware.telemetry import Snapshot
from engine.launch.doctor import Check
from engine.launch.handle import RunHandle
from engine.protocol.commands import Command
from engine.protocol.events import CommandAcked
from engine.protocol.wire import Envelope
from engine.runs.access import Access
from engine.runs.run_directory import RunDirectory
from engine.runs.run_summary import RunSummary
from tests.tui.recording import FOLDER, RUN_ID, START, recorded
from tests.tui.reports import REPORT

FACTS = RepositoryFacts(
    files=214,
    bytes=1_863_000,
    tokens=521_904,
    languages=(
        LanguageShare(language="Python", files=151, bytes=1_300_000),
        LanguageShare(language="TypeScript", files=41, bytes=402_000),
        LanguageShare(language="SQL", files=14, bytes=101_000),
        LanguageShare(language="Shell", files=8, bytes=60_000),
    ),
    skipped={"vendored": 1200, "lock": 2, "binary": 37},
)


CHECKS = [
    Check(name="repository", status="passed", text="214 source files, about 521,904 tokens"),
    Check(name="output folder", status="passed", text="/home/me/out can be written"),
    Check(name="clock", status="passed", text="agrees with the output folder's files"),
    Check(name="model", status="passed", text="qwen2.5-coder-1.5b, 1,543,714,304 parameters"),
    Check(
        name="context",
        status="warning",
        text="524,288 tokens, of which the model was trained with 32,768",
        remedy="compare held-out perplexity before and after, or set a lower training.tier",
    ),
    Check(name="GPU", status="skipped", text="none found: training runs on the CPU"),
    Check(name="libraries", status="passed", text="torch 2.13.0, transformers 5.23.0, peft 0.21.0"),
    Check(name="trial step", status="passed", text="one step of 64 tokens: loss 11.93, gradient norm 2.1"),
]


def gpu_machine() -> Machine:
    """Describes a gaming PC."""
    return simulate(find_card("rtx-3060-12gb"), ram_bytes=32 * GIB, disk_bytes=400 * GIB)


def cpu_machine() -> Machine:
    """Describes a laptop without an NVIDIA GPU."""
    return Machine(
        cpu_name="Example CPU",
        cpu_cores=8,
        ram_total=16 * GIB,
        ram_available=12 * GIB,
        swap_total=None,
        disk_free=200 * GIB,
        disk_total=500 * GIB,
        libraries={"torch": "2.13.0", "bitsandbytes": None},
    )


def snapshot_of(machine: Machine) -> Snapshot:
    """Makes a telemetry snapshot of a machine, with some values unknown."""
    return Snapshot(
        time=START,
        gpus=tuple(
            GpuSample(
                index=gpu.index,
                name=gpu.name,
                memory_used=7 * GIB,
                memory_total=gpu.memory_total,
                utilisation=None,
                power=143.0,
                power_limit=170.0,
                temperature=64.0,
                clock=1_777.0,
                clock_max=2_130.0,
                throttled=(),
            )
            for gpu in machine.gpus
        ),
        cpu_percent=37.0,
        ram_used=machine.ram_total // 4,
        ram_total=machine.ram_total,
        swap_used=None,
        swap_total=None,
        disk_free=machine.disk_free,
        disk_total=machine.disk_total,
    )


def history_of(machine: Machine) -> list[Snapshot]:
    """Makes a minute and a half of varying snapshots."""
    now = snapshot_of(machine)
    found = []
    for second in range(90):
        wave = math.sin(second / 9) * math.cos(second / 23)
        gpus = tuple(
            replace(
                gpu,
                memory_used=round(gpu.memory_total * (0.5 + 0.1 * wave)),
                utilisation=50 + 45 * wave,
                power=100 + 60 * wave,
                temperature=55 + second / 9,
            )
            for gpu in now.gpus
        )
        found.append(replace(now, gpus=gpus, cpu_percent=40 + 30 * wave))
    return found


class Replay(RunHandle):
    """A handle that replays a list of events; acknowledges commands at once and keeps them in `sent`."""

    def __init__(self, envelopes: list[Envelope]) -> None:
        super().__init__(RunDirectory(FOLDER))
        self._coming = list(envelopes)
        self._number = len(envelopes)
        self.sent: list[Command] = []
        self.closed = False
        self.reach = Access(here=True)

    def poll(self) -> list[Envelope]:
        """Returns the events since the last call."""
        coming, self._coming = self._coming, []
        return coming

    def add(self, *events: object) -> None:
        """Appends events in order."""
        for event in events:
            self._coming.append(Envelope(run=RUN_ID, seq=self._number, time=START + 500, event=event))
            self._number += 1

    def send(self, command: Command) -> None:
        """Acknowledges the command."""
        self.sent.append(command)
        self.add(CommandAcked(command_id=command.id, command=type(command).__name__, accepted=True))

    def access(self) -> Access:
        """Returns the access that the test set."""
        return self.reach

    def close(self) -> None:
        """Records the call."""
        self.closed = True


_PLANS: dict[str, Plans] = {}
_ANSWERS: dict[str, object] = {}


class FixedEngine(Engine):
    """The engine with a fixed machine, repository and run; planning and checking are real."""

    def __init__(self, machine: Machine, handle: RunHandle | None = None) -> None:
        super().__init__()
        self.machine = machine
        self.handle = handle
        self.facts: RepositoryFacts | EliteError = FACTS
        self.summaries: list[RunSummary] = []
        self.checks: list[Check] = CHECKS
        self.opened: list[str | None] = []
        self.launched: list[run_config.RunConfig] = []
        self._snapshot = snapshot_of(machine)

    def read_repositories(self, repositories, max_file_bytes):
        if isinstance(self.facts, EliteError):
            raise self.facts
        return self.facts

    def find_machine(self, disk_path):
        return self.machine

    def plan_tiers(self, machine, mapping, tokens):
        # The real planner, cached, since it takes a third of a second.
        asked = repr((machine, mapping, tokens))
        if asked not in _PLANS:
            _PLANS[asked] = super().plan_tiers(machine, mapping, tokens)
        return _PLANS[asked]

    def outlooks(self, mapping, machine, tokens, progress):
        key = f"outlooks{(mapping, machine, tokens)!r}"
        if key in _ANSWERS:
            for outlook in _ANSWERS[key]:
                progress(outlook)
        else:
            _ANSWERS[key] = super().outlooks(mapping, machine, tokens, progress)
        return _ANSWERS[key]

    def ways_to_fit(self, mapping, machine, tokens, context):
        return self._once("ways_to_fit", mapping, machine, tokens, context)

    def _once(self, name, *asked):
        # Cached too: planning all models of the catalogue takes seconds.
        key = f"{name}{asked!r}"
        if key not in _ANSWERS:
            _ANSWERS[key] = getattr(Engine, name)(self, *asked)
        return _ANSWERS[key]

    def check(self, mapping):
        return run_config.from_mapping(mapping, source="form")

    def preview_data(self, mapping, progress):
        progress(1, 2, "files found")
        return REPORT

    def examine(self, mapping):
        yield from self.checks

    def launch(self, config):
        self.launched.append(config)
        assert self.handle is not None
        return self.handle

    def resume(self, path):
        return self.open_run(str(path))

    def open_run(self, reference):
        self.opened.append(reference)
        assert self.handle is not None
        return self.handle

    def list_runs(self):
        return self.summaries

    def start_sampling(self, disk_path):
        pass

    def latest_sample(self):
        return self._snapshot


def make_app(
    screen_name: str = "project",
    *,
    machine: Machine | None = None,
    handle: RunHandle | None = None,
    engine: Engine | None = None,
    values: dict[str, object] | None = None,
    draft_path: Path | None = None,
) -> EliteApp:
    """Builds an app on fixed data, on one screen, with some fields set."""
    draft = Draft(draft_path, {})
    for path, value in {"data.repositories": ["/home/me/shop"], **(values or {})}.items():
        draft.set(path, value)
    app = EliteApp(
        AppState(draft=draft, clock=lambda: START + 100),
        engine or FixedEngine(machine or gpu_machine(), handle),
        first_screen=screen_name if screen_name in ("monitor", "runs") else "project",
    )
    app.animation_level = "none"
    return app


def screen_of(app: EliteApp) -> str:
    """Returns the name of the current screen."""
    return app.screen.ROOM  # type: ignore[attr-defined]


def text_of(app: EliteApp, selector: str) -> str:
    """Returns the text of a widget on the current screen, without styles."""
    widget = app.screen.query_one(selector)
    if isinstance(widget, DiffWidget):
        return widget.plain
    assert isinstance(widget, Static)
    return str(widget.content)


async def until(pilot: Pilot, condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits until a condition holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"it never came about: {inspect.getsource(condition).strip()}")
        await pilot.pause(0.02)
    await pilot.pause()


async def settled(pilot: Pilot) -> None:
    """Waits until every worker has answered, and stops cursors from blinking."""
    app = pilot.app
    assert isinstance(app, EliteApp)
    state = app.state
    fetched = [value for value in vars(state).values() if isinstance(value, RemoteData)]
    await until(pilot, lambda: bool(state.snapshots) and not any(one.loading for one in fetched), 60.0)
    await until(pilot, lambda: not state.checks.running)
    if state.run is not None:
        await until(pilot, lambda: state.run is not None and state.run.updated_at is not None)
        for pane in (pane for screen in app.screen_stack for pane in screen.query(LogPane) if pane.size):
            await until(pilot, lambda pane=pane: state.run is not None and pane.drawn == state.run.log_count)
    for field in (*app.screen.query(Input), *app.screen.query(TextArea)):
        field.cursor_blink = False
    await pilot.pause()


async def go_to(pilot: Pilot, screen_name: str) -> None:
    """Opens a screen of the wizard, and waits until it stands."""
    await settled(pilot)
    assert isinstance(pilot.app, EliteApp)
    pilot.app.go(screen_name)
    await until(pilot, lambda: screen_of(pilot.app) == screen_name and pilot.app.screen.is_mounted)
    await settled(pilot)


async def at_step(pilot: Pilot, step: int) -> None:
    """Waits until the monitor shows a step."""
    app = pilot.app
    assert isinstance(app, EliteApp)
    await settled(pilot)
    await until(pilot, lambda: app.state.run is not None and app.state.run.done_steps >= step)
    await until(pilot, lambda: f"step {step}" in text_of(app, "#progress"))


async def still(pilot: Pilot) -> None:
    """Waits until the screen is the same for 0.3 s, as late as a thread's answer may be drawn on a busy machine."""
    former: list[Strip] = []
    same = 0
    while same < 5:
        await pilot.pause(0.06)
        for field in pilot.app.screen.query(Input):  # also in a form mounted in the meantime
            field.cursor_blink = False
        present = pilot.app.screen._compositor.render_strips()
        same = same + 1 if present == former else 0
        former = present


def copy_recording(folder: Path) -> RunDirectory:
    """Copies the recorded run to a run directory below an output folder."""
    path = folder / "runs" / RUN_ID
    shutil.copytree(FOLDER, path)
    config = run_config.from_mapping(
        {"data": {"repositories": ["/home/me/shop"]}, "output": {"model_name": "shop-backend"}}
    )
    (path / "config.yaml").write_text(run_config.to_yaml(config), encoding="utf-8")
    return RunDirectory(path)


def half_way() -> Replay:
    """Returns a run inside its 34th step."""
    return Replay(recorded(until_step=33))
