"""The first screen: fitting tiers, recent projects and runs."""

from __future__ import annotations

import pytest
from textual.events import Key
from textual.widgets import Input, Static

from elite_tui.__main__ import enclosing_repository
from elite_tui.widgets.field_row import FieldRow
from elite_tui.widgets.recent_list import RecentList
from elite_tui.wizard.draft import FILE_NAME, Draft
from elite_tui.wizard.recent import KEPT, KEY, projects, remember
from engine.runs.run_summary import RunSummary
from tests.tui.recording import RUN_ID, START
from tests.tui.support import (
    FixedEngine,
    copy_recording,
    cpu_machine,
    gpu_machine,
    half_way,
    make_app,
    screen_of,
    settled,
    until,
)

MODEL = {"model.name": "qwen2.5-coder-1.5b"}


def text_of(app, selector):
    return str(app.screen.query_one(selector, Static).content)


async def test_the_first_screen_says_what_fits():
    app = make_app(machine=gpu_machine(), values=MODEL)
    async with app.run_test(size=(120, 36)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: "tier 4, 32K tokens: a window holds a large module" in text_of(app, "#fits"))
        assert "windows grow to it from 8K; the run takes about" in text_of(app, "#fits")
        assert "(predicted)" in text_of(app, "#fits")


@pytest.mark.parametrize(
    ("model", "words"), [("phi-2", "all windows are alike; the run"), ("qwen2.5-coder-1.5b", "grow to it from 8K")]
)
async def test_windows_grow_only_where_there_is_more_than_one_stage(model, words):
    """All windows of a run of phi-2 are as long as those that it was trained with."""
    app = make_app(machine=gpu_machine(), values={"model.name": model})
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: words in text_of(app, "#fits"))
        app.go("tiers")
        await until(pilot, lambda: screen_of(app) == "tiers" and app.screen.is_mounted)
        await settled(pilot)
        grows = model != "phi-2"
        await until(
            pilot, lambda: ("windows grow to: " if grows else "all windows: 2K tokens") in text_of(app, "#choice")
        )


async def test_what_was_typed_before_a_key_that_leaves_is_in_the_draft():
    app = make_app(machine=cpu_machine())
    left = []
    app.leave = lambda: left.append(app.state.draft.get("output.model_name"))
    async with app.run_test(size=(120, 36)) as pilot:
        await settled(pilot)
        field = app.screen.query_one("#field-output-model_name", FieldRow).control
        field.focus()
        await until(pilot, lambda: app.focused is field)
        field.value = ""
        await pilot.pause()
        for letter in "quick":
            field.post_message(Key(letter, letter))
        # As a key with priority does, before the field has received any of them.
        await app.run_action("ask_quit")
        await until(pilot, lambda: bool(left))
    assert left == ["quick"]


async def test_a_project_is_remembered_and_taken_up_again(tmp_path):
    app = make_app(machine=cpu_machine(), draft_path=tmp_path / FILE_NAME)
    async with app.run_test(size=(120, 36)) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+n")
        await until(pilot, lambda: screen_of(app) == "hardware")
        await pilot.press("ctrl+q")
    draft = Draft.load(tmp_path / FILE_NAME)
    assert projects(draft) == [["/home/me/shop"]]
    draft.set("data.repositories", ["/somewhere/else"])
    again = make_app(machine=cpu_machine(), values={"data.repositories": ["/somewhere/else"]})
    again.state.draft.keep(KEY, draft.kept(KEY))
    async with again.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        recent = again.screen.query_one(RecentList)
        assert not recent.display or not recent.region
        await pilot.press("f4")
        await until(pilot, lambda: bool(recent.region))
        await pilot.press("down", "enter")
        await until(pilot, lambda: again.state.draft.get("data.repositories") == ["/home/me/shop"])
        await until(pilot, lambda: not again.screen.has_class("-recent"))


async def test_recent_projects_take_the_width_that_there_is_and_escape_leaves_them():
    folder = "/home/me/work/of/this/year/shop"
    app = make_app(machine=cpu_machine(), values={"data.repositories": [folder]})
    remember(app.state.draft)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        recent = app.screen.query_one(RecentList)
        assert not recent.region  # hidden, so that it has no width yet

        def lines():
            return [str(option.prompt) for option in recent.options]

        await pilot.press("f4")
        await until(pilot, lambda: any(folder in line for line in lines()))
        await pilot.resize_terminal(40, 24)
        await until(pilot, lambda: all(len(line) <= 40 for line in lines()))
        await pilot.press("escape")
        await until(pilot, lambda: not app.screen.has_class("-recent"))
        assert isinstance(app.focused, Input)
        await pilot.press("escape")
        assert screen_of(app) == "project"


async def test_a_recent_run_is_opened(tmp_path):
    run = copy_recording(tmp_path)
    engine = FixedEngine(cpu_machine(), half_way())
    engine.summaries = [
        RunSummary(
            id=RUN_ID,
            path=run.path,
            status="completed",
            model="demo",
            model_name="shop[/bold]",
            context=4096,
            step=60,
            total_steps=60,
            loss=1.9,
            perplexity_before=60.3,
            perplexity_after=6.6,
            started=START,
            updated=START + 100,
        )
    ]
    app = make_app(engine=engine)
    async with app.run_test(size=(120, 36)) as pilot:
        await settled(pilot)
        recent = app.screen.query_one(RecentList)
        await until(pilot, lambda: any("60.30 → 6.600" in str(option.prompt) for option in recent.options))
        await pilot.press("f4", "down", "enter")
        await until(pilot, lambda: screen_of(app) == "monitor")
        assert engine.opened == [str(run.path)]


def test_projects_are_kept_newest_first_and_once():
    draft = Draft(None, {})
    for number in [*range(KEPT + 3), 5]:
        draft.set("data.repositories", [f"/p/{number}", "/shared, really"])
        remember(draft)
    kept = projects(draft)
    assert len(kept) == KEPT
    assert kept[0] == ["/p/5", "/shared, really"]
    assert len({str(project) for project in kept}) == KEPT


def test_what_was_kept_may_be_damaged():
    draft = Draft(None, {})
    for text in ("[", "{}", "3", "[3, [], [4]]"):
        draft.keep(KEY, text)
        assert projects(draft) == []


def test_the_work_tree_around_a_folder_is_found(tmp_path):
    inner = tmp_path / "shop" / "src" / "deep"
    inner.mkdir(parents=True)
    assert enclosing_repository(inner) == inner
    (tmp_path / "shop" / ".git").mkdir()
    assert enclosing_repository(inner) == tmp_path / "shop"
