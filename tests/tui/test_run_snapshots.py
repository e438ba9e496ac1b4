"""Snapshots of the run screens. `pytest tests/tui/test_run_snapshots.py --snapshot-update` accepts changes."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
from textual.screen import ModalScreen
from textual.widgets import TextArea

from elite_tui.runs.comparison import ComparedRun, Comparison, Row
from elite_tui.runs.files import PlannedRun
from elite_tui.runs.report import NamedLines, RunReport, Sample, ScoredNames
from elite_tui.runs.view import RunView
from elite_tui.screens.help import HelpScreen
from elite_tui.state_part import StatePart
from elite_tui.themes import LIGHT
from engine.errors.runs import RUN_UNKNOWN
from engine.protocol.events import CommandAcked, RunFailed
from engine.runs.access import Access
from engine.runs.run_summary import RunSummary
from tests.tui.recording import FOLDER, START, gpu_run, recorded
from tests.tui.support import FixedEngine, Replay, cpu_machine, gpu_machine, half_way, make_app, screen_of, until

TINY, SMALL, USUAL, LARGE = (60, 20), (80, 24), (120, 36), (200, 60)
GPU_RUN = "20260104-100000-billing-77ab"


def name_of(size):
    return f"{size[0]}x{size[1]}"


sizes = pytest.mark.parametrize("size", [TINY, SMALL, USUAL, LARGE], ids=name_of)
large_is_slow = pytest.mark.parametrize(
    "size", [SMALL, USUAL, pytest.param(LARGE, marks=pytest.mark.slow)], ids=name_of
)
"""For states in which the large layout shows nothing different."""


class GpuReplay(Replay):
    """A run on a GPU."""

    def __init__(self, *, ended=False, name=GPU_RUN, seed=0, seconds=math.inf):
        events = gpu_run(name, 160, seed=seed, ended=ended)
        super().__init__([envelope for envelope in events if envelope.time <= START + seconds])
        self.run = type(self.run)(Path("/home/me/out/runs") / name)


def monitor(handle, machine=None):
    """Opens the monitor of one run; the clock stands at its last event."""
    app = make_app("monitor", machine=machine or gpu_machine(), handle=handle)
    app.state.clock = lambda: app.state.run.updated_at if app.state.run is not None else START
    return app


def keys(*pressed):
    async def press(pilot):
        await until(pilot, lambda: pilot.app.state.run is not None and pilot.app.state.run.updated_at is not None)
        await pilot.press(*pressed)

    return press


# --- monitor -------------------------------------------------------------------------------------------------


@sizes
def test_monitor(look, size):
    assert look(monitor(GpuReplay()), size, then=keys("right_square_bracket", "right_square_bracket"))


@sizes
def test_memory_and_events(look, size):
    assert look(monitor(GpuReplay()), size, then=keys("5", "l"))


@large_is_slow
def test_zoomed_over_time_on_a_log_axis(look, size):
    assert look(monitor(GpuReplay()), size, then=keys("x", "x", "y", "plus", "plus", "plus", "left"))


@large_is_slow
def test_searching_the_log(look, size):
    assert look(monitor(half_way(), cpu_machine()), size, then=keys("slash", *"saved", "enter"))


@large_is_slow
def test_before_the_first_step(look, size):
    assert look(monitor(Replay(recorded()[:5]), cpu_machine()), size)


@large_is_slow
def test_a_paused_run(look, size):
    handle = half_way()
    handle.add(CommandAcked(command_id="1", command="Pause", accepted=True, text="paused; memory is kept"))
    assert look(monitor(handle, cpu_machine()), size)


@large_is_slow
def test_a_finished_run(look, size):
    assert look(monitor(GpuReplay(ended=True)), size, then=keys("right_square_bracket"))


@large_is_slow
def test_a_failed_run(look, size):
    handle = half_way()
    handle.add(
        RunFailed(
            error="out-of-memory",
            message="out of GPU memory in backward: the logits were the largest part",
            hint="choose a lower tier",
            exit_code=4,
            traceback="Traceback:\n  File [/bold]\nMemoryError",
        )
    )
    assert look(monitor(handle, cpu_machine()), size)


@large_is_slow
def test_a_run_out_of_reach(look, size):
    handle = GpuReplay()
    handle.reach = Access(here=False, refusal="its process is on another machine; this folder is a copy or a mount")
    assert look(monitor(handle), size)


class SeveralRuns(FixedEngine):
    """Opens three runs by number."""

    def open_run(self, reference):
        name = f"2026010{4 + int(reference)}-100000-{('billing', 'shop', 'search')[int(reference)]}-77a{reference}"
        return GpuReplay(name=name, seed=int(reference), ended=reference != "0")


@sizes
def test_several_runs(look, size):
    app = make_app("monitor", engine=SeveralRuns(gpu_machine()))
    app._runs = ["0", "1", "2"]
    app.state.clock = lambda: app.state.run.updated_at if app.state.run is not None else START

    async def all_there(pilot):
        await until(pilot, lambda: len(app.state.open_runs) == 3)
        await until(pilot, lambda: all(run.view.updated_at for run in app.state.open_runs))

    assert look(app, size, then=all_there)


@large_is_slow
def test_a_run_that_cannot_be_opened(look, size):
    engine = FixedEngine(cpu_machine())
    engine.open_run = lambda reference: (_ for _ in ()).throw(RUN_UNKNOWN(reference="[/bold]2026"))

    async def refused(pilot):
        await until(pilot, lambda: pilot.app.state.opening is not None)

    assert look(make_app("monitor", engine=engine), size, then=refused)


@pytest.mark.parametrize("theme", ["light", "no colour"])
def test_monitor_in_other_colours(look, theme, monkeypatch):
    if theme == "no colour":
        monkeypatch.setenv("NO_COLOR", "1")
    app = monitor(GpuReplay())
    if theme == "light":
        app.theme = LIGHT.name
    assert look(app, USUAL, then=keys("right_square_bracket"))


# --- dialogs -------------------------------------------------------------------------------------------------


@large_is_slow
def test_quit_question(look, size):
    async def ask(pilot):
        await pilot.press("ctrl+q")
        await until(pilot, lambda: isinstance(pilot.app.screen, ModalScreen))

    assert look(monitor(half_way(), cpu_machine()), size, then=ask)


@large_is_slow
def test_help(look, size):
    async def ask(pilot):
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen))

    assert look(monitor(half_way(), cpu_machine()), size, then=ask)


# --- result --------------------------------------------------------------------------------------------------

SAMPLES = (
    Sample(
        file="src/shop/cart.py",
        prompt="class Cart:\n    def total(self, rate: float) -> float:\n",
        before="        return 0\n",
        after='        """Sum of the lines."""\n        return sum(line.price * rate for line in self.lines)\n',
        truth='        """Sum at a rate."""\n        return sum(line.price * rate for line in self.lines)\n',
    ),
    Sample(
        file="src/shop/[/bold].py",
        prompt="def parse(text):\n",
        before="    pass\n",
        after="    return json.loads(text)\n",
    ),
)


def result_of(report):
    """Opens the result screen with a report, as if read from the run's folder."""
    engine = FixedEngine(gpu_machine(), GpuReplay(ended=True))
    engine.read_report = lambda path: report
    app = make_app("monitor", engine=engine)

    async def enter(pilot):
        await until(pilot, lambda: app.state.run is not None and app.state.run.ended)
        app.go("result")
        await until(pilot, lambda: app.state.report.value is not None)

    return app, enter


def named_lines():
    """Names of some lines in turn: both, the fine-tuned model alone, neither, the base model alone."""
    text = "def add(self, line: Line) -> None:\n    self.lines.append(line)\n    self.changed = True"
    kinds = itertools.cycle([(True, True), (False, True), (False, False), (True, True), (False, True), (True, False)])
    found = (match.span() for match in re.finditer(r"[A-Za-z]+", text) if match[0] not in ("def", "None", "True"))
    names = tuple((*span, *kind) for span, kind in zip(found, kinds, strict=False))
    return NamedLines(file="src/shop/cart.py", text=text, names=names)


@sizes
def test_result(look, size):
    report = RunReport(
        reference=GPU_RUN,
        planned=PlannedRun(step_seconds=18.4, gpu_bytes=7_800_000_000, host_bytes=12_100_000_000),
        compile_rate_before=0.61,
        compile_rate_after=0.83,
        names=ScoredNames(before=0.31, after=0.38, by_chance=False),
        excerpts=(named_lines(),),
        samples=SAMPLES,
        page=True,
        commands=frozenset({"export", "generate", "evaluate"}),
    )
    app, enter = result_of(report)
    assert look(app, size, then=enter)


@large_is_slow
def test_result_without_an_evaluation(look, size):
    app, enter = result_of(RunReport(reference=GPU_RUN))
    assert look(app, size, then=enter)


@sizes
def test_generate(look, size):
    app, enter = result_of(RunReport(reference=GPU_RUN))

    async def written(pilot):
        await enter(pilot)
        app.go("generate")
        await pilot.pause()
        state = app.state.generation
        prompt = "class Cart:\n    def total(self):\n"
        app.screen.query_one("#prompt", TextArea).text = prompt
        app.screen.query_one("#write").focus()  # no blinking cursor
        await pilot.pause()
        number = state.asked(running=False)
        state.hear({"event": "ready", "device": "NVIDIA GeForce RTX 3060", "sides": ["base", "tuned"]})
        for side, text in (("base", SAMPLES[0].before), ("tuned", SAMPLES[0].after)):
            state.hear({"event": "text", "id": number, "side": side, "text": text})
        state.hear({"event": "done", "id": number, "side": "base", "tokens": 42, "seconds": 1.5})
        app.tell(StatePart.GENERATION)
        await pilot.pause()

    assert look(app, size, then=written)


# --- list and comparison -------------------------------------------------------------------------------------


def runs_engine():
    engine = FixedEngine(cpu_machine())
    statuses = ("running", "completed", "stopped", "died", "failed", "paused")
    engine.summaries = [
        RunSummary(
            id=f"2026010{day}-100000-shop-{day}a2b",
            path=FOLDER / str(day),
            status=status,
            model=("demo", "qwen2.5-coder-1.5b")[day % 2],
            model_name=("shop[/bold]", "billing")[day % 2],
            context=4096 << day,
            step=9 * day,
            total_steps=60,
            loss=2.5 / day,
            perplexity_before=60.34,
            perplexity_after=None if status != "completed" else 6.611,
            started=START + 3600 * day,
            updated=START + 3600 * day + 100,
        )
        for day, status in zip((6, 5, 4, 3, 2, 1), statuses, strict=True)
    ]
    return engine


@sizes
def test_runs(look, size):
    async def mark(pilot):
        await until(pilot, lambda: bool(pilot.app.state.runs.value))
        await pilot.press("space", "down", "space", "up")

    assert look(make_app("runs", engine=runs_engine()), size, then=mark)


@large_is_slow
def test_runs_filtered_and_sorted(look, size):
    async def narrow(pilot):
        await until(pilot, lambda: bool(pilot.app.state.runs.value))
        await pilot.press("slash", *"shop", "enter", "o", "o")

    assert look(make_app("runs", engine=runs_engine()), size, then=narrow)


@large_is_slow
def test_no_runs(look, size):
    assert look(make_app("runs", machine=cpu_machine()), size)


@large_is_slow
def test_delete_question(look, size):
    async def ask(pilot):
        await until(pilot, lambda: bool(pilot.app.state.runs.value))
        pilot.app.state.runs.value = [
            type(run)(**{**vars(run), "path": Path("/home/me/out/runs") / run.id}) for run in pilot.app.state.runs.value
        ]
        pilot.app.tell(StatePart.RUNS)
        await pilot.pause()
        await pilot.press("down", "delete")
        await until(pilot, lambda: isinstance(pilot.app.screen, ModalScreen))

    assert look(make_app("runs", engine=runs_engine()), size, then=ask)


def compared():
    runs = []
    for index, letter in enumerate("ABC"):
        name = f"2026010{4 + index}-100000-{('billing', 'shop', 'search')[index]}-77a{index}"
        view = RunView(run_id=name)
        for envelope in gpu_run(name, 120 + 40 * index, seed=index, ended=index != 1):
            view.apply(envelope)
        runs.append(ComparedRun(letter=letter, path=Path("/x"), view=view, planned=None, config={}))
    return Comparison(
        runs=tuple(runs),
        figures=(
            Row(name="state", values=("completed", "training", "completed")),
            Row(name="perplexity after", values=("2.593", "2.611", "2.571"), best=2),
            Row(name="tokens/s", values=("6,431", "6,502", "6,590"), best=2),
            Row(name="GPU peak", values=("6.61 GiB", "6.60 GiB", "6.62 GiB"), best=1),
        ),
        differing=(
            Row(name="lora.rank", values=("8", "16", "32")),
            Row(name="data.repositories", values=("/home/me/[/bold]", "/home/me/shop", "/home/me/search")),
        ),
    )


@sizes
def test_comparison(look, size):
    engine = runs_engine()
    engine.compare = lambda paths: compared()

    async def compare(pilot):
        await until(pilot, lambda: bool(pilot.app.state.runs.value))
        await pilot.press("space", "space", "space", "c")
        await until(pilot, lambda: screen_of(pilot.app) == "compare" and pilot.app.state.comparison.value is not None)
        await pilot.press("right_square_bracket", "right_square_bracket", "right_square_bracket")

    assert look(make_app("runs", engine=engine), size, then=compare)
