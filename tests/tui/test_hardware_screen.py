"""The hardware screen: levels with their history, libraries and their installation, and measuring."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.widgets import Button, Static

from elite_tui.client.process import EngineProcess
from elite_tui.format.machine import GET, inventory, libraries
from elite_tui.format.meters import devices, draw
from engine.errors import EliteError
from engine.hardware.inventory import LIBRARIES
from engine.hardware.machine import GIB
from engine.protocol.events import StepCompleted
from tests.tui.support import (
    FixedEngine,
    cpu_machine,
    gpu_machine,
    half_way,
    make_app,
    screen_of,
    settled,
    snapshot_of,
    until,
)

SIZE = (120, 36)


def text_of(app, selector):
    return str(app.screen.query_one(selector, Static).content)


async def enter(pilot):
    await settled(pilot)
    pilot.app.go("hardware")
    await until(pilot, lambda: screen_of(pilot.app) == "hardware" and pilot.app.screen.is_mounted)
    await settled(pilot)


async def test_levels_and_what_is_not_known():
    app = make_app(machine=gpu_machine())
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await until(pilot, lambda: "GPU 0" in text_of(app, "#levels"))
        lines = {line.split()[0]: line for line in text_of(app, "#levels").splitlines() if line.strip()}
        assert "7.00/12.0 GiB" in lines["memory"]
        assert "n/a" in lines["load"]
        assert "143/170 W" in lines["power"]
        assert "64 °C" in lines["heat"]
        assert "others 7.00 GiB" in text_of(app, "#levels")
        assert "compute capability 8.6" in text_of(app, "#inventory")
        await pilot.press("f5")
        await settled(pilot)


async def test_without_a_gpu_the_levels_are_the_computer_s():
    app = make_app(machine=cpu_machine())
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await until(pilot, lambda: "CPU" in text_of(app, "#levels"))
        assert "GPU" not in text_of(app, "#levels")
        assert "none found" in text_of(app, "#inventory")
        assert "pip install 'elite-tui[quant]'" in text_of(app, "#libraries")


async def test_a_run_s_own_memory_is_told_apart():
    handle = half_way()
    app = make_app("monitor", machine=gpu_machine(), handle=handle)
    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.state.run is not None and app.state.run.step is not None)
        step = dataclasses.replace(app.state.run.step, gpu_reserved=3 * GIB)
        assert isinstance(step, StepCompleted)
        app.state.run.step = step
        app.go("hardware")
        await until(pilot, lambda: screen_of(app) == "hardware")
        await until(pilot, lambda: "this run 3.00 GiB" in text_of(app, "#levels"))
        assert "others 4.00 GiB" in text_of(app, "#levels")


# --- measuring ---------------------------------------------------------------------------------------------


class Measuring(EngineProcess):
    """A real process that takes a while."""

    def __init__(self, program: str) -> None:
        super().__init__("profile")
        self._command = [self._command[0], "-c", program]


SLOW = "import sys,time,json; print('reading GPUs', file=sys.stderr, flush=True); time.sleep(60)"
QUICK = "import sys,json; print('nearly there', file=sys.stderr); print(json.dumps({'cpu_cores': 4}))"
FAILING = "import sys; print('no [/bold] luck', file=sys.stderr); sys.exit(3)"


async def test_measuring_shows_progress_and_can_be_stopped():
    engine = FixedEngine(gpu_machine())
    engine.measurement = lambda *arguments: Measuring(SLOW)
    app = make_app(engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await pilot.press("f7")
        await until(pilot, lambda: "measuring … reading GPUs" in text_of(app, "#measured"))
        assert "Stop" in str(app.screen.query_one("#measure", Button).label)
        await pilot.press("f7")
        await until(pilot, lambda: "it was stopped" in text_of(app, "#measured"))


async def test_a_failed_measurement_is_a_message():
    engine = FixedEngine(gpu_machine())
    engine.measurement = lambda *arguments: Measuring(FAILING)
    app = make_app(engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await pilot.press("f7")
        await until(pilot, lambda: "no [/bold] luck" in text_of(app, "#measured"))
        assert "plans go by predictions" in " ".join(text_of(app, "#measured").split())


def test_a_measurement_is_the_document_that_the_command_prints():
    said: list[str] = []
    assert Measuring(QUICK).run(said.append) == {"cpu_cores": 4}
    assert said == ["nearly there"]


def test_stopping_ends_the_process():
    process = Measuring(SLOW)
    begun = threading.Event()
    outcome: list[BaseException] = []

    def work():
        try:
            process.run(lambda line: begun.set())
        except EliteError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(20)
    pid = process._process.pid
    process.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert "it was stopped" in str(outcome[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(EliteError, match="stopped"):
        process.run(lambda line: None)


async def test_leaving_the_app_ends_a_measurement(tmp_path):
    pids = tmp_path / "pid"
    program = f"import os; open({str(pids)!r}, 'w').write(str(os.getpid())); {SLOW}"
    engine = FixedEngine(gpu_machine())
    engine.measurement = lambda *arguments: Measuring(program)
    app = make_app(engine=engine)
    async with app.run_test(size=SIZE) as pilot:
        await enter(pilot)
        await pilot.press("f7")
        await until(pilot, lambda: "measuring … reading" in text_of(app, "#measured"))
        await pilot.press("ctrl+q")
    await asyncio.to_thread(gone, int(pids.read_text()))


def gone(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- words -------------------------------------------------------------------------------------------------


def test_every_library_that_can_be_left_out_says_how_to_get_it():
    core = {"torch", "transformers", "peft", "accelerate", "safetensors", "nvidia-ml-py"}
    assert LIBRARIES.keys() - GET.keys() <= core
    machine = dataclasses.replace(gpu_machine(), libraries=dict.fromkeys(LIBRARIES))
    words = " ".join(str(libraries(machine, 120)).split())
    assert words.count("→") == len(LIBRARIES)
    assert all(enables in words for enables in LIBRARIES.values())


@settings(max_examples=30)
@given(st.integers(40, 200))
def test_lines_stay_inside_the_width(width):
    machine = dataclasses.replace(gpu_machine(), libraries=dict.fromkeys(LIBRARIES, "1.0"))
    for content in (inventory(machine, width), libraries(machine, width)):
        assert all(len(line) <= max(width, 30 + 16) for line in str(content).splitlines())
    for device in devices([snapshot_of(machine)] * 3, None):
        assert max(len(line) for line in str(draw(device, width)).splitlines()) <= max(width, 58)
