"""A newcomer's way on an empty machine, as one script: wheel, new environment, wizard, export, endpoint, completion.

The wheel is built as a release's, and installed from the package index into an environment of its own. Every key goes
through a real terminal (tmux), and no process sees this checkout.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KEPT = ("PATH", "LANG", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "XDG_CACHE_HOME")


class Shell:
    """A shell in a window of a tmux server of its own, with a home folder of its own."""

    def __init__(self, home: Path, programs: Path) -> None:
        # A socket's path must be short, unlike a test's folder.
        self._folder = tempfile.mkdtemp(prefix="elite-")
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.environment = {name: os.environ[name] for name in KEPT if name in os.environ} | pip
        self.environment |= {"HOME": str(home), "TERM": "xterm-256color", "LANG": "C.UTF-8", "PS1": "$ "}
        self.environment["PATH"] = f"{programs}{os.pathsep}{self.environment['PATH']}"
        self._home = home
        self._tmux("new-session", "-d", "-x", "80", "-y", "24", "sh")

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", f"{self._folder}/socket", "-f", os.devnull, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=self._home, timeout=60, check=True
        )
        return done.stdout

    @property
    def text(self) -> str:
        """Returns the text on the screen, with what it had to break joined again."""
        return self._tmux("capture-pane", "-p", "-J")

    def press(self, *keys: str) -> None:
        """Presses keys by their names in tmux."""
        self._tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Types a text as it is."""
        self._tmux("send-keys", "-l", text)

    def wait_for(self, pattern: str, seconds: float = 120.0) -> re.Match[str]:
        """Waits until the screen has a text."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, text := self.text)):
            assert time.monotonic() < deadline, f"{pattern} is not in\n{text}"
            time.sleep(0.3)
        return found

    def run(self, command: str, expected: str, seconds: float = 240.0) -> re.Match[str]:
        """Types a command on a cleared screen, and waits for a text of its output."""
        self.type(f"clear; {command}")
        self.press("Enter")
        return self.wait_for(expected, seconds)

    def close(self) -> None:
        """Ends the shell, and what runs in it, by the loss of its terminal."""
        subprocess.run(["tmux", "-S", f"{self._folder}/socket", "kill-server"], check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def build_and_install(folder: Path) -> Path:
    """Builds the wheel as `make build` does, installs it into a new environment; returns that one's bin folder."""
    quiet = ["--disable-pip-version-check", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def do(*command: object) -> None:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, env=environment, cwd=folder, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    do(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    do(sys.executable, "-m", "venv", folder / "environment")
    programs = folder / "environment" / "bin"
    do(programs / "python", "-m", "pip", *quiet, "torch", "numpy")
    do(programs / "python", "-m", "pip", *quiet, f"{wheel}[serve]")
    return programs


def sources(folder: Path) -> None:
    """Puts six modules of the standard library into a new repository."""
    folder.mkdir(parents=True)
    for name in ("queues.py", "locks.py", "runners.py", "timeouts.py", "tasks.py", "streams.py"):
        shutil.copy(Path(asyncio.__file__).parent / name, folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux (apt install tmux)")
def test_from_an_empty_machine_to_a_served_completion(tmp_path):
    programs = build_and_install(tmp_path)
    home = tmp_path / "home"
    sources(home / "src" / "project")
    shell = Shell(home, programs)
    try:
        place = 'python -c "import engine, elite_tui; print(engine.__file__, elite_tui.__file__)"'
        found = shell.run(place, r"(?m)^(/\S+engine/__init__\.py) (/\S+__init__\.py)$")
        assert all(Path(path).is_relative_to(tmp_path / "environment") for path in found.groups())

        shell.run("engine doctor --repo ~/src/project", "ready to train")

        # The wizard: every room once; fewer and shorter windows than it would take, so that the test is no hour long.
        shell.run("elite-tui --repo ~/src/project", "6 files")
        shell.press("C-n")
        shell.wait_for("Machine")
        shell.press("C-n")
        shell.wait_for("★")
        shell.press("C-n")
        shell.wait_for("4 Defaults")
        shell.press("F4")
        shell.wait_for("all fields are valid")
        shell.press("Tab", "Tab", "2")
        shell.wait_for(r"max steps +2")
        shell.press("Tab", "Tab", "512")
        shell.wait_for(r"context +512[\s\S]*Back")
        shell.wait_for("2 changed from their default")
        shell.press("C-n")
        shell.wait_for("held-out")
        shell.press("C-n")
        shell.wait_for("ready to start", 240)
        shell.press("C-s")
        shell.wait_for("● training|✓ completed", 240)
        shell.wait_for("✓ completed", 600)
        shell.press("Enter")
        shell.wait_for("Perplexity")
        shell.press("C-q")
        shell.wait_for(r"(?m)^(?:\^C)?[$#] *$")

        run = shell.run("engine runs --json | cut -c 1-60", r'"id": ?"([^"]+)"')[1]
        shell.run(f"engine export {run} --to gguf", "wrote ")
        shell.wait_for(r"checked: over \d+ tokens")
        assert list((home / "out" / "runs" / run / "exports").rglob("*.gguf"))
        shell.run(f"engine export {run} --to gguf-adapter", r"-lora\.gguf")

        address = shell.run(f"engine serve {run} --port 0", r"serving on (http://\S+)")[1]
        token = shell.wait_for(r"(?m)^token: (\S+)$")[1]
        request = urllib.request.Request(
            f"{address}/completions",
            json.dumps({"model": "tuned", "prompt": "def load(path):\n", "max_tokens": 8, "temperature": 0}).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        assert answer["model"] == run
        assert answer["choices"][0]["text"].strip()
        assert answer["usage"]["completion_tokens"] == 8
        shell.press("C-c")
        shell.wait_for(r"(?m)^(?:\^C)?[$#] *$")
        shell.run(f"engine report {run} --quick --output report.md", r"written to report\.md")
        assert str(home) not in (home / "report.md").read_text()
    finally:
        shell.close()
