"""Export of a result from its screen, with real files by a real process."""

from __future__ import annotations

import shutil

from support.exports import byte_level_tokenizer, finished_run, save_base
from textual.widgets import Button

from elite_tui.screens.export import ExportScreen
from engine.launch.handle import RunHandle
from tests.tui.recording import RUN_ID
from tests.tui.support import copy_recording, make_app, screen_of, settled, text_of, until


async def test_a_result_is_exported_from_its_screen_and_not_twice(tmp_path):
    recorded = copy_recording(tmp_path / "out")
    base = save_base(tmp_path / "base", "qwen2", byte_level_tokenizer())
    made = finished_run(tmp_path / "made", base)
    shutil.copytree(made.adapter_path, recorded.adapter_path)
    shutil.copy(made.config_path, recorded.config_path)
    app = make_app("monitor", handle=RunHandle.attach(recorded))
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run is not None and app.state.run.ended)
        await pilot.press("enter")
        await until(pilot, lambda: screen_of(app) == "result")
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, ExportScreen))
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
