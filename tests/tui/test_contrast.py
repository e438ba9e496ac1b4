"""On every screen, in the dark and the light theme, text and marks reach WCAG AA's contrast with their background."""

from __future__ import annotations

import pytest

from elite_tui.themes import THEMES
from elite_tui.widgets.trail import TrailStep
from tests.tui.support import (
    FixedEngine,
    gpu_machine,
    half_way,
    history_of,
    make_app,
    settled,
    still,
    until,
)
from tests.tui.test_themes import contrast

TEXT, MARK = 4.5, 3.0
"WCAG 2.2, 1.4.3 and 1.4.11: of text, and of what else carries meaning."
DRAWN = set("─│┄┈╌·░▏▕▌▁▔▊▎ ")
"Lines between parts and the empty rest of bars and charts, which say nothing by themselves."


def closed(screen):
    """Places of the trail's steps that cannot be entered, as WCAG exempts what is inactive."""
    return [step.region for step in screen.query(TrailStep) if step.has_class("-closed")]


def too_faint(screen, region=None):
    """Text and marks of a screen, or of a region of it, that stand out too little, with their colours."""
    found = []
    inactive = closed(screen)
    for y, strip in enumerate(screen._compositor.render_strips()):
        x = 0
        for segment in strip:
            text, style, start = segment.text, segment.style, x
            x += segment.cell_length
            if region is not None and not region.contains(start + len(text) - len(text.lstrip()), y):
                continue
            if style is None or style.color is None or style.bgcolor is None or not text.strip():
                continue
            pair = [tuple(part / 255 for part in colour.get_truecolor()) for colour in (style.color, style.bgcolor)]
            written = any(character.isalnum() for character in text)
            if not written and set(text) <= DRAWN:
                continue
            quiet = any(place.contains(start, y) for place in inactive)
            if contrast(*pair) < (TEXT if written and not quiet else MARK):
                found.append((y, text.strip(), style.color.name, style.bgcolor.name, round(contrast(*pair), 2)))
    return found


@pytest.mark.parametrize("size", [(80, 24), (100, 30)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("theme", [theme.name for theme in THEMES[:2]])
async def test_all_screens_can_be_read(theme, size):
    engine = FixedEngine(gpu_machine(), half_way())
    app = make_app(engine=engine, values={"model.name": "qwen2.5-coder-1.5b"})
    app.state.snapshots.extend(history_of(gpu_machine()))
    app.theme = theme
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        for name in ("project", "hardware", "tiers", "options", "data", "review", "runs"):
            app.go(name)
            await settled(pilot)
            await still(pilot)
            assert too_faint(app.screen) == [], name
        app.go("options")
        await settled(pilot)
        await pilot.press("f4")
        await settled(pilot)
        await still(pilot)
        assert too_faint(app.screen) == [], "all fields"
        app.run_desk.open([None])
        await until(pilot, lambda: app.state.run is not None and app.state.run.updated_at is not None)
        await settled(pilot)
        await still(pilot)
        assert too_faint(app.screen) == [], "monitor"
        app.go("result")
        await settled(pilot)
        await still(pilot)
        assert too_faint(app.screen) == [], "result"


async def test_screens_take_the_colours_of_a_theme_that_is_switched_to():
    app = make_app(engine=FixedEngine(gpu_machine(), half_way()), values={"model.name": "qwen2.5-coder-1.5b"})
    app.state.snapshots.extend(history_of(gpu_machine()))
    app.theme = THEMES[0].name
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        for name in ("project", "hardware", "tiers", "options", "data", "review", "runs"):
            app.go(name)
            await settled(pilot)
            await still(pilot)
            app.theme = THEMES[1].name
            await settled(pilot)
            await still(pilot)
            assert too_faint(app.screen) == [], name
            app.theme = THEMES[0].name
