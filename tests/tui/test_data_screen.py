"""The data screen: a real dataset report, its settings, and a stopped reading."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.widgets import Button, Input, Select, Static

from elite_tui.client.calls import Engine
from elite_tui.format import data as data_words
from elite_tui.widgets.field_row import FieldRow
from engine.errors.data import REPOSITORY_MISSING
from tests.tui.reports import REPORT
from tests.tui.support import FixedEngine, cpu_machine, make_app, screen_of, settled, until

SIZE = (120, 36)


def text_of(app, selector):
    return str(app.screen.query_one(selector, Static).content)


async def enter(pilot):
    await settled(pilot)
    pilot.app.go("data")
    await until(pilot, lambda: screen_of(pilot.app) == "data" and pilot.app.screen.is_mounted)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Makes a repository with a file for every kind of entry; the cache folder is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "shop"
    root.mkdir()
    for number in range(8):
        lines = [f"def total_{number}_{line}(items):\n    return sum(items) * {line * number}\n" for line in range(30)]
        (root / f"module_{number}.py").write_text("\n".join(lines))
    (root / "copy.py").write_text((root / "module_3.py").read_text() + "\n# a copy\n")
    (root / "settings.py").write_text('password = "hunter2!Xq9"\n' * 1 + "A = 1\nB = 2\n")
    (root / "node_modules").mkdir()
    (root / "node_modules" / "x.js").write_text("let x = 1\n")
    (root / "[bold]logo.png").write_bytes(b"\x89PNG\0\0")
    return root


class RealData(FixedEngine):
    """The fixed engine with real datasets."""

    preview_data = Engine.preview_data


async def test_a_real_dataset_is_told(shop):
    app = make_app(engine=RealData(cpu_machine()), values={"data.repositories": [str(shop)]})
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await until(pilot, lambda: app.state.data.value is not None, seconds=60)
        await until(pilot, lambda: "Python" in text_of(app, "#in"))
        assert "runs of six lines are in training files too" in " ".join(text_of(app, "#in").split())
        assert "end inside a definition" in " ".join(text_of(app, "#windows").split())
        assert "vendored" in text_of(app, "#out")
        assert "[bold]logo.png" in text_of(app, "#out")
        assert "settings.py:1" in text_of(app, "#secrets")
        assert "hunter2" not in text_of(app, "#secrets")
        assert "copy.py" in text_of(app, "#twins")
        assert "tokens" in text_of(app, "#summary")
        # Another policy gives another dataset, so it is built again.
        row = app.screen.query_one("#field-data-near_duplicates", FieldRow)
        row.query_one(Select).value = "keep"
        await until(pilot, lambda: app.state.data.value is None)
        await until(pilot, lambda: app.state.data.value is not None, seconds=60)
        assert app.state.draft.get("data.near_duplicates") == "keep"


async def test_a_reading_is_stopped_and_taken_up_again():
    engine = FixedEngine(cpu_machine())
    going = threading.Event()

    def slow(mapping, progress):
        going.set()
        for done in range(100_000):
            progress(done, 100_000, "files found")
            threading.Event().wait(0.005)
        return REPORT

    engine.preview_data = slow
    app = make_app(engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await until(pilot, lambda: going.is_set() and "of 100,000 files found" in text_of(app, "#summary"))
        assert app.screen.query_one("#stop", Button).display
        await pilot.press("f7")
        await until(pilot, lambda: "was stopped; f5 goes on" in text_of(app, "#summary"))
        engine.preview_data = lambda mapping, progress: REPORT
        await pilot.press("f5")
        await until(pilot, lambda: "521,904 tokens" in text_of(app, "#summary"))
        assert not app.screen.query_one("#stop", Button).display


async def test_entered_again_nothing_is_read_again():
    engine = FixedEngine(cpu_machine())
    app = make_app(engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await until(pilot, lambda: app.state.data.value is not None)
        engine.preview_data = lambda mapping, progress: (_ for _ in ()).throw(AssertionError)
        app.go("options")
        await until(pilot, lambda: screen_of(app) == "options")
        await enter(pilot)
        assert app.state.data.value is REPORT


async def test_what_cannot_be_read_is_said():
    engine = FixedEngine(cpu_machine())
    engine.preview_data = lambda mapping, progress: (_ for _ in ()).throw(
        REPOSITORY_MISSING(path="/home/me/[/bold]shop")
    )
    app = make_app(engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await until(pilot, lambda: "✗ repository /home/me/[/bold]shop does not exist" in text_of(app, "#summary"))
        assert app.screen.query_one("#report").has_class("-empty")


async def test_leaving_the_app_gives_a_reading_up():
    engine = FixedEngine(cpu_machine())
    ended = threading.Event()

    def slow(mapping, progress):
        try:
            while True:
                progress(1, 2, "files found")
                threading.Event().wait(0.01)
        finally:
            ended.set()

    engine.preview_data = slow
    app = make_app(engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await until(pilot, lambda: "files found" in text_of(app, "#summary"))
        await pilot.press("ctrl+q")
    assert ended.wait(20)


@settings(max_examples=30)
@given(st.integers(50, 160))
def test_no_line_is_wider_than_its_column(width):
    parts = (
        data_words.what_is_in(REPORT, width),
        data_words.what_is_out(REPORT, width),
        data_words.secrets(REPORT, "mask", width),
        data_words.twins(REPORT, width),
        data_words.windows(REPORT, 3, width, packing=True),
    )
    for part in parts:
        assert max(map(len, str(part).splitlines())) <= width


async def test_a_finding_is_allowed_by_its_fingerprint(shop):
    app = make_app(engine=RealData(cpu_machine()), values={"data.repositories": [str(shop)]})
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await until(pilot, lambda: app.state.data.value is not None, seconds=60)
        (found,) = app.state.data.value.secrets
        await until(pilot, lambda: found.fingerprint in text_of(app, "#secrets"))
        assert f"by rule {found.kind}" in text_of(app, "#secrets")
        row = app.screen.query_one("#field-data-allowed_secrets", FieldRow)
        assert row.display
        row.query_one(Input).value = found.fingerprint
        await until(pilot, lambda: app.state.data.value is None)
        await until(pilot, lambda: app.state.data.value is not None, seconds=60)
        assert app.state.data.value.secrets == ()
        assert app.state.draft.get("data.allowed_secrets") == [found.fingerprint]
        assert row.display
