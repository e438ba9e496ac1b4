"""Draws the app's main screens into assets/screenshots/: `make screenshots`.

The machine, the repository and the run are those of the tests, so that the pictures are the same everywhere; planning
and drawing are the app's own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from textual.pilot import Pilot

from elite_tui.app import EliteApp
from elite_tui.runs.files import PlannedRun
from elite_tui.runs.report import RunReport
from elite_tui.themes import COLOUR_BLIND, LIGHT
from elite_tui.wizard.recent import remember
from engine.config import from_mapping
from engine.launch import doctor
from engine.launch.doctor import Check
from engine.models.catalogue import find_model
from engine.plan.choice import choose_plan
from engine.runs.run_index import STATE_VARIABLE
from engine.runs.run_summary import RunSummary
from tests.tui.recording import START
from tests.tui.support import FACTS, FixedEngine, gpu_machine, half_way, history_of, make_app, settled, still
from tests.tui.test_run_snapshots import GPU_RUN, SAMPLES, GpuReplay, monitor, result_of, runs_engine

SIZE = (120, 36)
MODEL = {"model.name": "qwen2.5-coder-1.5b"}


async def nothing(_pilot: Pilot[str]) -> None:
    """No key is pressed."""


def press(*keys: str) -> Callable[[Pilot[str]], Awaitable[None]]:
    """Presses some keys once the screen is there."""

    async def act(pilot: Pilot[str]) -> None:
        await settled(pilot)
        await pilot.press(*keys)

    return act


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One screen."""

    name: str
    app: Callable[[], EliteApp]
    screen_name: str | None = None
    "Room to enter; None for the first."
    act: Callable[[Pilot[str]], Awaitable[None]] = field(default=nothing)
    theme: str | None = None


def checks_of(engine: FixedEngine) -> list[Check]:
    """The tests' checks, with the doctor's own of the made-up machine and of its plan."""
    config = from_mapping({"model": {"name": MODEL["model.name"]}, "data": {"repositories": ["."]}})
    spec = find_model(MODEL["model.name"])
    choice = choose_plan(config, engine.machine, spec, FACTS.tokens)
    by_name = {check.name: check for check in engine.checks}
    by_name["context"] = doctor.context_row(config, spec, choice)
    by_name |= {check.name: check for check in doctor.gpu_rows(config, engine.machine)}
    return list(by_name.values())


def wizard() -> EliteApp:
    """The wizard on a gaming PC, with a past."""
    engine = FixedEngine(gpu_machine(), half_way())
    engine.summaries = summaries()
    engine.checks = checks_of(engine)
    app = make_app(engine=engine, values=MODEL)
    for path in ("/home/me/game", "/home/me/shop"):
        app.state.draft.set("data.repositories", [path])
        remember(app.state.draft)
    app.state.snapshots.extend(history_of(gpu_machine()))
    return app


def supposing() -> EliteApp:
    """The wizard, asked about another machine."""
    app = wizard()
    app.state.draft.set("model.name", "qwen2.5-coder-7b")
    app.state.draft.keep("what-if.card", "rtx-4090")
    app.state.draft.keep("what-if.ram", "128")
    return app


def watching() -> EliteApp:
    """A run on a graphics card, under way."""
    app = monitor(GpuReplay())
    app.state.snapshots.extend(history_of(gpu_machine()))
    return app


def listed() -> EliteApp:
    """The runs of a user."""
    return make_app("runs", engine=runs_engine())


def summaries() -> list[RunSummary]:
    """A running, a completed and a lost run."""
    return [
        RunSummary(
            id=f"2026010{day}-100000-shop-{day}a2b",
            path=Path(f"/home/me/out/runs/2026010{day}"),
            status=status,
            model="qwen2.5-coder-1.5b",
            model_name=name,
            context=context,
            step=34 if status == "running" else 20 * day,
            total_steps=60,
            loss=2.5 / day,
            perplexity_before=60.34,
            perplexity_after=6.611 if status == "completed" else None,
            started=START + 86_400 * day,
            updated=START + 86_400 * day + 100,
        )
        for day, status, name, context in (
            (3, "running", "shop-backend", 524_288),
            (2, "completed", "shop-web", 131_072),
            (1, "died", "shop-first", 4_096),
        )
    ]


FINISHED, TO_RESULT = result_of(
    RunReport(
        reference=GPU_RUN,
        planned=PlannedRun(step_seconds=18.4, gpu_bytes=7_800_000_000, host_bytes=12_100_000_000),
        compile_rate_before=0.61,
        compile_rate_after=0.83,
        samples=SAMPLES,
        page=True,
        commands=frozenset({"export", "generate", "evaluate"}),
    )
)


PICTURES = (
    Picture(name="project", app=wizard),
    Picture(name="hardware", app=wizard, screen_name="hardware"),
    Picture(name="tiers", app=wizard, screen_name="tiers"),
    Picture(name="what-if", app=supposing, screen_name="tiers", act=press("end")),
    Picture(name="models", app=wizard, screen_name="tiers", act=press("f4")),
    Picture(name="options", app=wizard, screen_name="options", act=press("down", "down", "down")),
    Picture(name="data", app=wizard, screen_name="data"),
    Picture(name="review", app=wizard, screen_name="review"),
    Picture(name="monitor", app=watching, act=press("right_square_bracket", "right_square_bracket")),
    Picture(name="result", app=lambda: FINISHED, act=TO_RESULT),
    Picture(name="runs", app=listed),
    Picture(name="tiers-light", app=wizard, screen_name="tiers", theme=LIGHT.name),
    Picture(name="options-colour-blind", app=wizard, screen_name="options", theme=COLOUR_BLIND.name),
)


async def draw(picture: Picture, size: tuple[int, int] = SIZE) -> str:
    """The SVG of one screen."""
    app = picture.app()
    if picture.theme is not None:
        app.theme = picture.theme
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        if picture.screen_name is not None:
            app.go(picture.screen_name)
            await pilot.pause()
        await picture.act(pilot)
        await settled(pilot)
        await still(pilot)
        return app.export_screenshot(title="Elite TUI")


def main() -> int:
    """Draws all pictures, or those that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of " + ", ".join(p.name for p in PICTURES))
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "screenshots", metavar="DIR")
    args = parser.parse_args()
    os.environ["TZ"] = "UTC"
    time.tzset()
    os.environ.pop("NO_COLOR", None)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as state:
        os.environ[STATE_VARIABLE] = state
        for picture in PICTURES:
            if args.names and picture.name not in args.names:
                continue
            path = args.out / f"{picture.name}.svg"
            path.write_text(asyncio.run(draw(picture)), encoding="utf-8")
            print(f"{path.name:28} {path.stat().st_size / 1024:6.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
