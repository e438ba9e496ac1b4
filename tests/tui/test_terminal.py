"""The monitor on real terminals, beside a run in a real process: failures, signals, dropped connections."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from engine import config as run_config
from engine.launch import launcher
from tests.runs import recipes
from tests.tui.terminal import ROOT, Terminal

ENOUGH_STEPS = 100_000
BROKEN_HANDLER = "from elite_tui.app import EliteApp; EliteApp.action_toggle_theme = lambda self: 1 // 0;"
BROKEN_WORKER = (
    "from elite_tui.runs.followed import Followed; poll = Followed.poll; calls = [];"
    "Followed.poll = lambda self: poll(self) if len(calls) < 8 and calls.append(0) is None else 1 // 0;"
)


@pytest.fixture
def live_run(tmp_path):
    """Starts a run that trains in its own process, with a short recipe."""
    config = run_config.from_mapping(
        {
            "data": {"repositories": [str(tmp_path)]},
            "training": {"max_steps": ENOUGH_STEPS},
            "output": {"directory": str(tmp_path / "out"), "model_name": "ok"},
        }
    )
    handle = launcher.launch(config, recipe=recipes.PATH)
    yield handle.run
    process = handle._process
    if process.exitcode is None:
        process.kill()
    process.join()
    handle.close()


def goes_on(run):
    """Returns whether the run makes progress from now on."""
    before = run.summary().step
    deadline = time.monotonic() + 30
    while run.status() == "running" and time.monotonic() < deadline:
        if run.summary().step > before:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("defect", [BROKEN_HANDLER, BROKEN_WORKER], ids=["handler", "worker"])
def test_a_failure_leaves_the_terminal_sane_and_the_run_alive(live_run, defect):
    program = f"import sys; {defect} from elite_tui.__main__ import main; sys.exit(main(sys.argv[1:]))"
    terminal = Terminal("monitor", str(live_run.path), program=["-c", program])
    try:
        terminal.wait_for(lambda: "training" in terminal.text, 60)
        if defect == BROKEN_HANDLER:
            terminal.press(b"\x1bOQ")
        terminal.wait_for(lambda: terminal.process.poll() is not None, 60)
        terminal.read(0.3)
        assert terminal.process.returncode == 1
        assert terminal.is_sane()
        said = terminal.text_after_leaving().replace("\r\n", "")
        assert "elite-tui: unexpected " in said
        assert str(Path(os.environ["ELITE_TUI_STATE_DIR"]) / "elite-tui.log") in said
        assert f"run {live_run.id} goes on" in said
        assert f"elite-tui monitor {live_run.id}" in said
        assert "Traceback" not in said
    finally:
        terminal.close()
    assert "ZeroDivisionError" in (Path(os.environ["ELITE_TUI_STATE_DIR"]) / "elite-tui.log").read_text()
    assert goes_on(live_run)


def test_sigterm_leaves_in_good_order(live_run):
    terminal = Terminal("monitor", str(live_run.path))
    try:
        terminal.wait_for(lambda: "training" in terminal.text, 60)
        terminal.process.send_signal(signal.SIGTERM)
        terminal.wait_for(lambda: terminal.process.poll() is not None, 30)
        terminal.read(0.3)
        assert terminal.is_sane()
        assert f"run {live_run.id} goes on" in terminal.text_after_leaving().replace("\r\n", "")
    finally:
        terminal.close()
    assert goes_on(live_run)


class Tmux:
    """A separate tmux server with one window that runs a command."""

    def __init__(self) -> None:
        # A socket's path must be short, unlike a test's folder.
        self._folder = tempfile.mkdtemp(prefix="elite-")

    def run(self, *arguments: str) -> str:
        """Runs one tmux command and returns its output."""
        environment = {key: value for key, value in os.environ.items() if key not in ("TMUX", "COLORTERM")}
        done = subprocess.run(
            ["tmux", "-S", f"{self._folder}/socket", "-f", os.devnull, *arguments],
            capture_output=True,
            text=True,
            env={**environment, "PYTHONPATH": str(ROOT), "TEXTUAL_ANIMATIONS": "none", "TERM": "xterm-256color"},
            cwd=ROOT,
            check=False,
        )
        return done.stdout

    def start(self, *command: str) -> int:
        """Opens a session with a shell that runs a command; returns the app's process id."""
        Path(self._folder).mkdir(exist_ok=True)
        line = shlex.join([sys.executable, "-m", "elite_tui", *command])
        self.run("new-session", "-d", "-x", "120", "-y", "36", "-P", "-F", "#{pane_pid}", f"{line}; cat")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            shell = self.run("list-panes", "-F", "#{pane_pid}").strip()
            children = subprocess.run(
                ["pgrep", "-P", shell], capture_output=True, text=True, check=False
            ).stdout.split()
            if children:
                return int(children[0])
            time.sleep(0.05)
        raise AssertionError("the app did not start")

    def start_in_shell(self, *command: str, exported: str) -> None:
        """Runs the app in an interactive shell, which has job control, with some exported variables."""
        Path(self._folder).mkdir(exist_ok=True)
        self.run("new-session", "-d", "-x", "80", "-y", "24", "bash --noprofile --norc -i")
        app = shlex.join([sys.executable, "-m", "elite_tui", *command])
        self.run("send-keys", f"export {exported}; {app}", "Enter")

    @property
    def text(self) -> str:
        """Returns the text on the screen."""
        return self.run("capture-pane", "-p")

    def wait_for(self, condition, seconds=60.0):
        """Waits until a condition on the screen's text holds."""
        deadline = time.monotonic() + seconds
        while not condition(self.text):
            assert time.monotonic() < deadline, self.text
            time.sleep(0.1)

    def close(self) -> None:
        """Ends the server; its programs lose their terminal."""
        self.run("kill-server")
        shutil.rmtree(self._folder, ignore_errors=True)


def has_gone(pid):
    """Returns whether a process ends within 30 seconds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


needs_tmux = pytest.mark.skipif(
    shutil.which("tmux") is None or shutil.which("pgrep") is None or not sys.platform.startswith("linux"),
    reason="needs tmux and pgrep (apt install tmux procps)",
)


@needs_tmux
def test_ctrl_c_names_the_key_that_quits_and_ctrl_z_gives_the_shell_back(live_run):
    tmux = Tmux()
    try:
        tmux.start_in_shell("monitor", live_run.id, exported="COLUMNS=80 LINES=24")
        tmux.wait_for(lambda text: "● training" in text)
        tmux.run("send-keys", "C-c")
        tmux.wait_for(lambda text: "ctrl+q quits" in text)
        tmux.run("send-keys", "C-z")
        tmux.wait_for(lambda text: "Stopped" in text and "● training" not in text)
        tmux.run("send-keys", "echo $((6 * 7)) is here", "Enter")
        tmux.wait_for(lambda text: "42 is here" in text)
        assert goes_on(live_run)
        tmux.run("resize-window", "-x", "100", "-y", "30")
        tmux.run("send-keys", "fg", "Enter")
        tmux.wait_for(lambda text: "● training" in text and "f1 Help" in text.splitlines()[29])
        tmux.run("send-keys", "C-q")
        tmux.wait_for(lambda text: "A run is under way" in text)
        tmux.run("send-keys", "Enter")
        tmux.wait_for(lambda text: f"run {live_run.id} goes on" in text.replace("\n", ""))
        assert goes_on(live_run)
    finally:
        tmux.close()


@needs_tmux
def test_detaching_losing_the_connection_and_coming_back(live_run):
    tmux = Tmux()
    try:
        tmux.start("monitor", live_run.id)
        tmux.wait_for(lambda text: "● training" in text and f"/{ENOUGH_STEPS:,}" in text)
        tmux.run("send-keys", "d")
        tmux.wait_for(lambda text: f"run {live_run.id} goes on" in text.replace("\n", ""))
        assert "● training" not in tmux.text
        tmux.close()
        assert goes_on(live_run)

        pid = tmux.start("monitor", live_run.id)
        tmux.wait_for(lambda text: "● training" in text)
        tmux.close()  # the terminal is gone: SIGHUP
        assert has_gone(pid)
        assert goes_on(live_run)

        tmux.start("monitor", live_run.id)
        tmux.wait_for(lambda text: "● training" in text and f"/{ENOUGH_STEPS:,}" in text)
        tmux.run("send-keys", "p")
        tmux.wait_for(lambda text: "Ⅱ paused" in text)
        tmux.run("send-keys", "r")
        tmux.wait_for(lambda text: "● training" in text)
        tmux.run("send-keys", "s")
        tmux.wait_for(lambda text: "Stop this run?" in text)
        tmux.run("send-keys", "Left", "Enter")
        tmux.wait_for(lambda text: "■ stopped" in text)
    finally:
        tmux.close()
    assert live_run.status() == "stopped"
