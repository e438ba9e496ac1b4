"""What a screen does until it is seen: each part once, and for the terminal's own size from the start."""

from __future__ import annotations

import gc

import pytest
from textual.app import App
from textual.content import Content
from textual.widgets import Static

from elite_tui.app import EliteApp
from elite_tui.screens.app_screen import EVERYTHING
from elite_tui.screens.help import HelpScreen
from elite_tui.screens.options import OptionsScreen
from elite_tui.screens.review import ReviewScreen
from elite_tui.screens.tiers import TiersScreen
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.key_bar import KeyBar
from elite_tui.widgets.text_block import TextBlock
from tests.tui.support import gpu_machine, make_app, settled, still, text_of, until


@pytest.mark.parametrize("screen", [TiersScreen, OptionsScreen, ReviewScreen], ids=lambda screen: screen.ROOM)
async def test_a_screen_is_drawn_whole_once_and_for_its_size(screen, monkeypatch):
    drawn = []
    show = screen.show
    monkeypatch.setattr(
        screen, "show", lambda self, changed: (drawn.append((changed, set(self.classes))), show(self, changed))
    )
    composed = []
    compose = KeyBar.compose
    monkeypatch.setattr(KeyBar, "compose", lambda self: (composed.append(self.screen), compose(self))[1])
    app = make_app(values={"model.name": "qwen2.5-coder-1.5b"})
    async with app.run_test(size=(60, 20)) as pilot:
        await settled(pilot)
        app.go(screen.ROOM)
        await settled(pilot)
        assert [changed for changed, _ in drawn].count(EVERYTHING) == 1
        assert {"-narrow", "-short", "-tiny", "-low"} <= drawn[0][1], "the classes come before the first layout"
        # Once with the screen, and once more where an answer has allowed a key.
        assert 1 <= composed.count(app.screen) <= 2


async def test_a_dialog_that_closes_leaves_the_styles_below_it(monkeypatch):
    styled = []
    update = OptionsScreen.update_node_styles
    monkeypatch.setattr(
        OptionsScreen, "update_node_styles", lambda self, *a, **k: (styled.append(self), update(self, *a, **k))[1]
    )
    app = make_app(values={"model.name": "qwen2.5-coder-1.5b"})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        app.go("options")
        await settled(pilot)
        styled.clear()
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen) and app.screen.is_mounted)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, OptionsScreen))
        await settled(pilot)
        assert styled == []


async def test_a_key_bar_follows_what_is_allowed():
    app = make_app(values={"model.name": "qwen2.5-coder-1.5b"})
    async with app.run_test(size=(120, 30)) as pilot:
        await settled(pilot)
        app.go("tiers")
        await settled(pilot)
        actions = [key.action for key in app.screen.query("FooterKey")]
        assert "clear_what_if" not in actions
        app.drafting.type_what_if("card", "rtx-4090")
        await settled(pilot)
        await pilot.pause()
        assert "clear_what_if" in [key.action for key in app.screen.query("FooterKey")]


async def test_a_text_that_stays_the_same_is_not_laid_out_again(monkeypatch):
    asked = []
    refresh = Static.refresh
    monkeypatch.setattr(Static, "refresh", lambda self, *a, **k: (asked.append(k), refresh(self, *a, **k))[1])
    app = App()
    async with app.run_test():
        block = TextBlock()
        await app.mount(block)
        for text, drawn in (
            (Content.styled("42", "bold"), 1),
            (Content.styled("42", "bold"), 0),
            (Content.styled("42", "italic"), 1),
            (Content.styled("43", "italic"), 1),
            ("[b]43", 1),
            ("[b]43", 0),
        ):
            asked.clear()
            block.update(text)
            assert len(asked) == drawn, text
        assert str(block.content) == "[b]43"


async def test_the_heap_is_examined_less_often_while_the_app_runs():
    app = make_app()
    async with app.run_test() as pilot:
        await settled(pilot)
        assert isinstance(app, EliteApp)
        assert gc.isenabled()
        assert gc.get_threshold()[0] >= 10_000
        assert gc.get_freeze_count() > 10_000
        assert text_of(app, "#pitch")


async def test_rows_are_as_high_as_their_last_text():
    """The model's note, of two lines, comes in place of the field's, of four, before the first layout has ended."""
    app = make_app(machine=gpu_machine(), values={"model.name": "qwen2.5-coder-1.5b"})
    async with app.run_test(size=(100, 32)) as pilot:
        await settled(pilot)
        await still(pilot)
        for row in app.screen.query(FieldRow):
            note = row.query_one(".note")
            assert note.size.height == note.get_content_height(note.size, note.size, note.size.width), row.spec.path
