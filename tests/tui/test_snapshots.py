"""How each screen looks in a meaningful state. `pytest tests/tui/test_snapshots.py --snapshot-update` accepts."""

from __future__ import annotations

import pytest
from textual.command import CommandPalette
from textual.screen import ModalScreen

from elite_tui.screens.help import HelpScreen
from elite_tui.themes import LIGHT
from engine.protocol import RunFailed
from engine.runtime.run_summary import RunSummary
from tests.tui.recording import FOLDER, RUN_ID, START, recorded
from tests.tui.support import FixedEngine, Replay, cpu_machine, gpu_machine, half_way, make_app, settled, still, until

SMALL, USUAL, LARGE = (80, 24), (120, 40), (200, 60)
MODEL = {"model.name": "qwen2.5-coder-1.5b"}


def name_of(size):
    return f"{size[0]}x{size[1]}"


@pytest.fixture
def look(snap_compare):
    """Compares an app's screen, once everything that it asked for is there."""

    def compare(app, size, *, room=None, then=None):
        async def before(pilot):
            await settled(pilot)
            if room is not None:
                app.go(room)
                await pilot.pause()
            if then is not None:
                await then(pilot)
            await settled(pilot)
            await still(pilot)

        return snap_compare(app, terminal_size=size, run_before=before)

    return compare


sizes = pytest.mark.parametrize("size", [SMALL, USUAL], ids=name_of)
all_sizes = pytest.mark.parametrize("size", [SMALL, USUAL, LARGE], ids=name_of)


@all_sizes
def test_monitor(look, size):
    assert look(make_app("monitor", machine=gpu_machine(), handle=half_way()), size)


@sizes
def test_monitor_of_a_failed_run(look, size):
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
    assert look(make_app("monitor", machine=cpu_machine(), handle=handle), size)


@sizes
def test_monitor_before_the_first_step(look, size):
    assert look(make_app("monitor", machine=cpu_machine(), handle=Replay(recorded()[:5])), size)


@sizes
def test_quit_question(look, size):
    async def ask(pilot):
        await pilot.press("ctrl+q")
        await until(pilot, lambda: isinstance(pilot.app.screen, ModalScreen))

    assert look(make_app("monitor", machine=cpu_machine(), handle=half_way()), size, then=ask)


@sizes
def test_result(look, size, monkeypatch):
    app = make_app("monitor", machine=cpu_machine(), handle=Replay(recorded()))

    async def result(pilot):
        await until(pilot, lambda: app.state.run.ended)
        # The checkout's place is not the same everywhere.
        app.state.run_path = type(FOLDER)("/home/me/out/runs") / RUN_ID
        app.go("result")

    assert look(app, size, then=result)


@sizes
def test_runs(look, size):
    engine = FixedEngine(cpu_machine())
    engine.summaries = [
        RunSummary(
            id=f"2026010{day}-100000-shop-{day}a2b",
            path=FOLDER,
            status=status,
            model="demo",
            model_name="shop[/bold]",
            context=4096,
            step=20 * day,
            total_steps=60,
            loss=2.5 / day,
            perplexity_before=60.34,
            perplexity_after=None if status != "completed" else 6.611,
            started=START + day,
            updated=START + day + 100,
        )
        for day, status in ((3, "running"), (2, "completed"), (1, "died"))
    ]
    for index, summary in enumerate(engine.summaries):
        object.__setattr__(summary, "path", FOLDER / str(index))
    assert look(make_app("runs", engine=engine), size)


@sizes
def test_help(look, size):
    async def ask(pilot):
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen))

    assert look(make_app("monitor", machine=cpu_machine(), handle=half_way()), size, then=ask)


def test_palette(look):
    async def ask(pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(pilot.app.screen, CommandPalette))

    assert look(make_app(values=MODEL), USUAL, then=ask)


@pytest.mark.parametrize("room", ["tiers", "monitor"])
def test_light_theme(look, room):
    app = make_app(
        "monitor" if room == "monitor" else "project",
        machine=gpu_machine(),
        handle=half_way() if room == "monitor" else None,
        values=MODEL,
    )
    app.theme = LIGHT.name
    assert look(app, USUAL, room=room if room != "monitor" else None)


def test_no_colour(look, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert look(make_app("monitor", machine=gpu_machine(), handle=half_way()), USUAL)
