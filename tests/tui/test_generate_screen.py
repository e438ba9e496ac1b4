"""The generate screen: its requests, the shown answers, and its cleanup."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from textual.widgets import Input, TextArea

from elite_tui.client.calls import Engine
from elite_tui.generation.answers import Generation, request_of
from elite_tui.generation.process import GenerationProcess
from engine.errors import EliteError
from tests.tui.recording import recorded
from tests.tui.support import FixedEngine, Replay, cpu_machine, make_app, screen_of, settled, text_of, until


class WithModel(FixedEngine):
    """Asks the embedded model, which always exists, instead of the recorded run's; the process is real."""

    def __init__(self):
        super().__init__(cpu_machine(), Replay(recorded()))
        self.made = []

    def generation(self, reference, tell):
        self.made.append(GenerationProcess("demo", tell))
        return self.made[-1]


async def entered(pilot):
    app = pilot.app
    await settled(pilot)
    await until(pilot, lambda: app.state.run is not None and app.state.run.ended)
    await pilot.press("enter")
    await until(pilot, lambda: screen_of(app) == "result")
    await pilot.press("g")
    await until(pilot, lambda: screen_of(app) == "generate")


async def test_both_are_asked_and_a_model_alone_says_so():
    engine = WithModel()
    app = make_app("monitor", engine=engine)
    async with app.run_test(size=(120, 40)) as pilot:
        await entered(pilot)
        await pilot.press(*"def f(?")
        assert app.screen.query_one("#prompt", TextArea).text == "def f(?"
        app.screen.query_one("#set-max_tokens", Input).value = "6"
        await pilot.pause()
        await pilot.press("f5")
        state = app.state.generation
        await until(pilot, lambda: state.status == "loading" or state.answers["base"].pieces, 60)
        await until(pilot, lambda: state.status == "ready", 60)
        # The embedded model has no tuned counterpart; the request asked for both, and the refusal is shown.
        assert "6 tokens in" in text_of(app, "#title-base")
        assert state.sides == ("base",)
        assert "not here" in text_of(app, "#title-tuned")
        await pilot.press("f5")
        await until(pilot, lambda: state.status == "ready" and state.number == 2, 30)
        assert len(engine.made) == 1
        process = engine.made[0]._process
        await pilot.press("escape")
        await until(pilot, lambda: screen_of(app) == "result")
        await until(pilot, lambda: process.poll() is not None)
        await pilot.press("g")
        await until(pilot, lambda: screen_of(app) == "generate")
        assert app.screen.query_one("#prompt", TextArea).text == "def f(?"


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 36)], ids=lambda size: f"{size[0]}x{size[1]}")
async def test_every_setting_stands_apart_from_its_name(size):
    app = make_app("monitor", engine=WithModel())
    async with app.run_test(size=size) as pilot:
        await entered(pilot)
        await settled(pilot)
        parts = [part.region for part in app.screen.query("#settings > .small, #settings > Input")]
        assert len(parts) == 8
        assert all(part.x + part.width < after.x for part, after in pairwise(parts))


async def test_an_answer_can_be_stopped():
    app = make_app("monitor", engine=WithModel())
    async with app.run_test(size=(120, 40)) as pilot:
        await entered(pilot)
        await pilot.press(*"x")
        app.screen.query_one("#set-max_tokens", Input).value = "20000"
        await pilot.pause()
        await pilot.press("f5")
        state = app.state.generation
        await until(pilot, lambda: state.status == "writing" and state.answers["base"].pieces > 2, 60)
        await pilot.press("f7")
        await until(pilot, lambda: state.status == "ready", 30)
        assert state.answers["base"].stopped
        assert "stopped" in text_of(app, "#title-base")


async def test_what_cannot_be_asked_is_said(tmp_path):
    app = make_app("monitor", engine=WithModel())
    async with app.run_test(size=(100, 30)) as pilot:
        await entered(pilot)
        app.screen.query_one("#set-top_p", Input).value = "2"
        await pilot.pause()
        await pilot.press("f5")
        assert "top-p: 2 is not a number" in text_of(app, "#status")
        place = app.screen.query_one("#place", Input)
        place.focus()
        place.value = "/nowhere/[/bold]x.py:3"
        await pilot.press("enter")
        assert "/nowhere/[/bold]x.py" in text_of(app, "#status")
        await pilot.resize_terminal(60, 20)
        status = app.screen.query_one("#status")
        await until(pilot, lambda: status.size.height == 2)  # nothing of it is cut off
        path = tmp_path / "a.py"
        path.write_text("one\ntwo\nthree\n")
        place.value = f"'{path}'"
        await pilot.press("enter")
        assert app.state.generation.prompt == "one\ntwo\nthree\n"
        place.focus()
        place.value = f"{path}:2"
        await pilot.press("enter")
        state = app.state.generation
        assert (state.prompt, state.suffix, state.path) == ("one\ntwo\n", "three\n", str(path))
        assert "the prompt is the beginning of" in text_of(app, "#status")
        app.screen.query_one("#prompt", TextArea).text = ""
        await until(pilot, lambda: state.path == "")


async def test_a_process_that_cannot_load_says_why():
    class Broken(WithModel):
        def generation(self, reference, tell):
            return GenerationProcess("neither-run-nor-model", tell)

    app = make_app("monitor", engine=Broken())
    async with app.run_test(size=(120, 30)) as pilot:
        await entered(pilot)
        await pilot.press("x", "f5")
        await until(pilot, lambda: app.state.generation.status == "failed", 60)
        assert "no run and no model is called neither-run-nor-model" in text_of(app, "#status")


async def test_a_run_without_a_result_cannot_be_tried():
    events = recorded()[:-1]
    app = make_app("monitor", handle=Replay(events))
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        await until(pilot, lambda: app.state.run is not None)
        app.go("result")
        await until(pilot, lambda: screen_of(app) == "result")
        await pilot.press("g")
        await pilot.pause()
        assert screen_of(app) == "result"


def test_the_process_is_let_go_while_it_loads():
    said = []
    process = GenerationProcess("demo", said.append)
    process.ask({"id": 1, "prompt": "x"})
    process.close()
    deadline = time.monotonic() + 30
    while process._process is not None and not said and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process._process is None or said[-1]["wanted"]


def test_events_fold_in_whatever_they_hold():
    state = Generation()
    number = state.asked(running=False)
    assert state.status == "loading"
    state.hear({"event": "ready", "device": "card\x1b[31m", "sides": ["base", "tuned", "other"]})
    assert (state.status, state.device, state.sides) == ("writing", "card\\x1b[31m", ("base", "tuned"))
    state.hear({"event": "text", "id": number, "side": "base", "text": "a"})
    state.hear({"event": "text", "id": number - 1, "side": "base", "text": "old"})
    state.hear({"event": "text", "id": number, "side": "nobody", "text": "?"})
    state.hear({"event": "done", "id": number, "side": "base", "tokens": 1, "seconds": 0.5})
    assert state.status == "writing"
    state.hear({"event": "done", "id": number, "side": "tuned", "tokens": 1, "seconds": 0.5})
    assert (state.status, state.answers["base"].text) == ("ready", "a")
    state.hear({"event": "failed", "id": number, "message": "no\nroom", "remedy": "less"})
    assert state.problem == "no\\nroom; less"
    state.hear({"event": "ended", "wanted": False, "words": "killed"})
    assert (state.status, state.problem) == ("failed", "killed")
    state.begin("another run")
    assert (state.status, state.answers, state.prompt) == ("closed", {}, "")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("max_tokens", "many", "tokens: many is not a whole number from 1 to 1,000,000"),
        ("temperature", "-1", "temperature: -1 is not a number at least 0 and at most 10"),
        ("top_p", "0", "top-p: 0 is not a number above 0 and at most 1"),
        ("seed", "1.5", "seed: 1.5 is not a whole number"),
    ],
)
def test_settings_are_checked(name, text, said):
    state = Generation(prompt="x")
    assert request_of(state)["max_tokens"] == 128
    state.settings[name] = text
    with pytest.raises(EliteError, match=said):
        request_of(state)


def test_the_engine_makes_the_real_process():
    process = Engine().generation("neither-run-nor-model", lambda event: None)
    assert isinstance(process, GenerationProcess)
    process.close()
