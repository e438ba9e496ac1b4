"""Export of a result from its screen, with real files by a real process."""

from __future__ import annotations

import shutil

import pytest
from support.exports import byte_level_tokenizer, finished_run, save_base
from textual.widgets import Button

from elite_tui.screens.export import ExportScreen
from engine.launch.handle import RunHandle
from tests.tui.recording import RUN_ID
from tests.tui.support import copy_recording, make_app, screen_of, settled, text_of, until


def app_with_result(folder):
    """Returns the app on an ended run whose adapter can be exported, and the run."""
    recorded = copy_recording(folder / "out")
    base = save_base(folder / "base", "qwen2", byte_level_tokenizer())
    made = finished_run(folder / "made", base)
    shutil.copytree(made.adapter_path, recorded.adapter_path)
    shutil.copy(made.config_path, recorded.config_path)
    return make_app("monitor", handle=RunHandle.attach(recorded)), recorded


async def open_export(pilot) -> None:
    app = pilot.app
    await settled(pilot)
    await until(pilot, lambda: app.state.run is not None and app.state.run.ended)
    await pilot.press("enter")
    await until(pilot, lambda: screen_of(app) == "result")
    await pilot.press("x")
    await until(pilot, lambda: isinstance(app.screen, ExportScreen))


async def test_a_result_is_exported_from_its_screen_and_not_twice(tmp_path):
    app, recorded = app_with_result(tmp_path)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_export(pilot)
        app.screen.query_one("#gguf", Button).press()
        await until(pilot, lambda: "original weights" in text_of(app, "#said"), seconds=60)
        written = recorded.path / "exports" / "gguf-f32"
        assert {path.name for path in written.iterdir()} == {"tiny-f32.gguf", "Modelfile", "README.md"}
        assert RUN_ID in text_of(app, "#said")
        assert "ollama create tiny -f" in text_of(app, "#said")
        app.screen.query_one("#gguf", Button).press()
        await until(pilot, lambda: "press again" in text_of(app, "#said"), seconds=60)
        app.screen.query_one("#gguf", Button).press()
        await until(pilot, lambda: "original weights" in text_of(app, "#said"), seconds=60)
        assert (recorded.path / "exports" / "gguf-2" / "tiny-f32.gguf").is_file()
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(app) == "result")


@pytest.mark.parametrize("leave", ["another screen", "escape", "the end of the app"])
async def test_an_export_under_way_ends_with_its_screen(tmp_path, leave):
    app, recorded = app_with_result(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_export(pilot)
        app.screen.query_one("#merged", Button).press()
        await until(pilot, lambda: app.screen._process is not None and app.screen._process._process is not None)
        child = app.screen._process._process
        if leave == "another screen":
            app.go("runs")
            await until(pilot, lambda: screen_of(app) == "runs")
        else:
            await pilot.press("escape" if leave == "escape" else "ctrl+q")
    assert child.wait(60) != 0
    assert not list(recorded.path.glob("exports/*"))
