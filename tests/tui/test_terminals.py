"""The app on a real terminal: tmux types through the wizard, with 256 colours, and with none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.runs.run_index import STATE_VARIABLE, list_runs

ROOT = Path(__file__).parents[2]
UNWANTED = ("COLORTERM", "NO_COLOR", "TMUX", "COLUMNS", "LINES")
"Variables that describe the test's own terminal."
pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Tmux:
    """One window of a separate tmux server."""

    def __init__(self, folder: Path, command: str, *, columns: int, rows: int, environment: dict[str, str]) -> None:
        # One server per window, as a server that ends takes a moment to release its socket.
        self._socket = folder / f"tmux-{len(list(folder.glob('tmux-*')))}"
        kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        size = ("-x", str(columns), "-y", str(rows))
        subprocess.run(
            [*("tmux", "-S", self._socket, "-f", "/dev/null", "new-session", "-d"), *size, command],
            check=True,
            cwd=ROOT,
            env={**kept, **environment, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def screen(self, *options: str) -> str:
        """Returns the text on the terminal."""
        found = subprocess.run(
            ["tmux", "-S", self._socket, "capture-pane", "-p", *options], capture_output=True, text=True, check=False
        )
        return found.stdout

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Waits until a text is on the terminal."""
        deadline = time.monotonic() + seconds
        while text not in (screen := self.screen()):
            assert time.monotonic() < deadline, f"{text!r} never came:\n{screen}"
            time.sleep(0.2)
        return screen

    def press(self, *keys: str) -> None:
        """Sends keys by tmux's names."""
        subprocess.run(["tmux", "-S", self._socket, "send-keys", *keys], check=True)

    def type(self, text: str) -> None:
        """Sends characters as they are."""
        subprocess.run(["tmux", "-S", self._socket, "send-keys", "-l", text], check=True)

    def close(self) -> None:
        """Ends the server and its programs."""
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    for number in range(12):
        lines = [f"def total_{number}_{line}(items):\n    return sum(items) * {line * number}\n" for line in range(12)]
        (folder / f"module_{number}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture
def open_wizard(tmp_path, repository):
    """Starts the wizard in a terminal, and ends it after the test."""
    opened: list[Tmux] = []

    def start(*, columns=100, rows=32, **environment):
        command = f"{sys.executable} -m elite_tui --repo {repository}"
        state = {STATE_VARIABLE: os.environ[STATE_VARIABLE], "XDG_CACHE_HOME": str(tmp_path / "cache")}
        opened.append(Tmux(tmp_path, command, columns=columns, rows=rows, environment={**state, **environment}))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def test_typing_through_the_wizard_to_a_trained_model(open_wizard, tmp_path):
    """Trains the demo model, from the first screen to the result, by keys alone; replaces nothing."""
    terminal = open_wizard(TEXTUAL_ANIMATIONS="none")
    terminal.wait_for("12 files")
    terminal.press("Tab", "Tab")
    terminal.type(str(tmp_path / "out"))
    terminal.press("Tab")
    terminal.type("tmux-model")
    terminal.wait_for("tmux-model")
    terminal.wait_for("What fits")
    terminal.press("C-n")
    terminal.wait_for("Libraries")
    terminal.press("C-n")
    terminal.wait_for("one window holds")
    terminal.press("C-n")
    terminal.wait_for("Fastest")
    terminal.press("F4")
    terminal.wait_for("Passes over the training files")
    time.sleep(1.0)  # the first field gets the cursor once the form is drawn
    terminal.press("Tab", "Tab")
    terminal.type("1")
    terminal.wait_for("max steps               1 ")
    terminal.press("Tab", "Tab")
    terminal.type("128")
    terminal.wait_for("context                 128 ")
    terminal.wait_for("2 changed from their default")
    terminal.press("C-n")
    terminal.wait_for("held-out files")
    terminal.press("C-n")
    terminal.wait_for("ready to start")
    terminal.press("C-s")
    terminal.wait_for("completed", 180)
    terminal.press("Enter")
    terminal.wait_for("Perplexity")
    terminal.press("C-q")
    (summary,) = list_runs()
    assert summary.status == "completed"
    assert summary.model_name == "tmux-model"
    assert summary.step == 1
    assert summary.context == 128
    assert (tmp_path / "out" / "runs" / summary.id / "adapter" / "adapter_model.safetensors").is_file()


def test_what_was_typed_is_there_after_the_terminal_was_lost(open_wizard):
    terminal = open_wizard()
    terminal.wait_for("12 files")
    terminal.press("Tab", "Tab", "Tab")
    terminal.type("half-a-na")
    terminal.wait_for("half-a-na")
    time.sleep(1.0)  # the draft is saved half a second after the last key
    terminal.close()
    again = open_wizard()
    again.wait_for("half-a-na")


COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def test_in_256_colours_none_is_a_true_colour(open_wizard):
    terminal = open_wizard(columns=80, rows=24)
    terminal.wait_for("12 files")
    codes = "".join(COLOURS.findall(terminal.screen("-e")))
    assert "38;5;" in codes
    assert "38;2;" not in codes
    assert "48;2;" not in codes


def test_without_colours_every_mark_is_a_sign(open_wizard):
    terminal = open_wizard(columns=80, rows=24, NO_COLOR="1")
    terminal.wait_for("12 files")
    terminal.press("C-n", "C-n")
    terminal.wait_for("context")
    drawn = terminal.wait_for("✓")
    assert "●" in drawn
    for code in COLOURS.findall(terminal.screen("-e")):
        for red, green, blue in re.findall(r"[34]8;2;(\d+);(\d+);(\d+)", code):
            assert red == green == blue


def test_a_locale_without_unicode_keeps_the_layout(open_wizard):
    terminal = open_wizard(columns=80, rows=24, PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    terminal.wait_for("Result")  # the first line and the last may be drawn apart
    screen = terminal.wait_for("^q Quit")
    assert "\\u" not in screen
    first = next(line for line in screen.splitlines() if "Project" in line).split()
    assert first[::2] == ["?"] * 8
    assert first[1::2] == ["Project", "Hardware", "Tier", "Options", "Data", "Review", "Train", "Result"]
