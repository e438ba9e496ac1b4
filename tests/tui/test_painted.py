"""DiffWidget draws changed lines even if the layout changes in the meantime."""

from __future__ import annotations

from textual.app import App
from textual.content import Content

from elite_tui.widgets.diff_widget import Lines


class OneWidget(App[None]):
    def compose(self):
        yield Lines(id="lines")

    def on_mount(self):
        self.query_one(Lines).styles.height = 3


def lines_of(*texts):
    return [Content(text) for text in texts]


async def test_other_lines_may_come_between_a_new_layout_and_the_message_about_it():
    app = OneWidget()
    async with app.run_test(size=(40, 12)) as pilot:
        lines = app.query_one(Lines)
        lines.show(lines_of("one", "two", "three"))
        await pilot.pause()
        lines.styles.height = 6
        # The first part of a layout change; its Resize message is handled later.
        app.screen._clear_arrangement_cache()
        app.screen._compositor.reflow(app.screen, app.size)
        assert lines.content_size.height == 6
        lines.show(lines_of("one", "two", "three", "four", "five"))
        await pilot.pause()
        drawn = ["".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips()]
        assert [text.strip() for text in drawn[:6]] == ["one", "two", "three", "four", "five", ""]
