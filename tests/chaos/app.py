"""The terminal app, killed: while a run is watched, while somebody types, while a run is being started."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

from elite_tui.wizard.draft import FILE_NAME
from engine.config import RunConfig, to_mapping
from engine.runs.run_directory import RunDirectory
from engine.runs.run_summary import ACTIVE
from tests.chaos.lab import BrokenError, Lab, Reference, check_result, check_run, wait_for

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
FIELD = "model_name"
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
TO_THE_FIELD = b"\t\t\t"
CONTINUE, START, QUIT, END = b"\x0e", b"\x13", b"\x11", b"\x1b[F"
_ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")


class Screen:
    """`elite-tui` in a pseudo-terminal that takes whatever it draws."""

    def __init__(self, *arguments: str) -> None:
        self._primary, secondary = pty.openpty()
        fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 32, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "elite_tui", *arguments],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", "TEXTUAL_ANIMATIONS": "none"},
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
        )
        os.close(secondary)
        self._drawn = b""
        self._reader = threading.Thread(target=self._drain)
        self._reader.start()

    def _drain(self) -> None:
        try:
            while data := os.read(self._primary, 65_536):
                self._drawn += data
        except OSError:
            return

    def press(self, keys: bytes) -> None:
        """Types; what was drawn before is forgotten."""
        self._drawn = b""
        os.write(self._primary, keys)

    def wait_for(self, text: str) -> None:
        """Waits until a text is drawn."""
        wait_until(lambda: text in _ESCAPES.sub(b"", self._drawn).decode(errors="replace"), f"{text!r} on screen")

    def kill(self) -> None:
        """-9."""
        self.process.kill()
        self._end()

    def leave(self) -> None:
        """As a person does."""
        self.press(QUIT)
        wait_until(lambda: self.process.poll() is not None, "the app leaves")
        self._end()

    def _end(self) -> None:
        self.process.wait()
        self._reader.join()
        os.close(self._primary)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Waits for something that has to come.

    Raises:
        BrokenError: it did not.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise BrokenError(f"it never came about: {what}")
        time.sleep(0.01)


def kill_the_monitor(lab: Lab, kills: int) -> dict[str, int]:
    """`elite-tui monitor` killed again and again while a run trains: the run neither ends nor differs."""
    config = lab.config("watched", max_steps=40)
    reference = lab.reference(config)
    done = runs = 0
    while done < kills:
        run = RunDirectory.create(config)
        process = lab.attempt(run, config, resuming=False)
        while run.status() in ("starting", "running") and done < kills:
            screen = Screen("monitor", str(run.path))
            time.sleep(lab.random.uniform(0.1, 1.5))
            screen.kill()
            done += 1
        if wait_for(process, 120.0) != 0:
            raise BrokenError("the run that was watched did not complete")
        check_run(run)
        check_result(run, reference)
        runs += 1
    return {"kills": done, "runs": runs}


def kill_the_wizard(lab: Lab, kills: int) -> dict[str, int]:
    """Killed at any moment while somebody types: what is kept is whole, and all of it but for the last moment."""
    kept = ""
    typed = 0
    for _ in range(kills):
        screen = Screen("--repo", str(lab.repository))
        screen.wait_for("Continue")
        screen.press(TO_THE_FIELD + END)
        sure = kept
        for _ in range(lab.random.randint(0, 40)):
            character = lab.random.choice(ALPHABET)
            screen.press(character.encode())
            kept += character
            typed += 1
            time.sleep(lab.random.uniform(0.0, 0.03))
            if lab.random.random() < 0.05:
                # Nothing but time has to pass until it is on the disk.
                wait_until(lambda: read_kept() == kept, f"{kept[-20:]!r} is kept")  # noqa: B023
                sure = kept
        time.sleep(lab.random.uniform(0.0, 0.6))
        screen.kill()
        found = read_kept()
        if not (kept.startswith(found) and len(found) >= len(sure)):
            raise BrokenError(f"{found!r} is kept; {kept!r} was typed, and {sure!r} was on the disk")
        kept = found
    screen = Screen("--repo", str(lab.repository))
    screen.wait_for("Continue")
    screen.press(TO_THE_FIELD + END + b"end")
    screen.leave()
    if read_kept() != kept + "end":
        raise BrokenError(f"{read_kept()!r} is kept, and {kept + 'end'!r} was typed before the app was left")
    return {"kills": kills, "characters": typed}


def kill_the_start(lab: Lab, kills: int) -> dict[str, int]:
    """Killed while it starts a run: there is none, or one that goes on by itself or is resumed, to the same end."""
    config = lab.config("started")
    reference = lab.reference(config)
    runs = Path(config.output.directory) / "runs"
    shutil.rmtree(runs)
    state = Path(os.environ["ELITE_TUI_STATE_DIR"])
    state.mkdir(exist_ok=True)
    outcomes = {"kills": kills, "no run": 0, "went on": 0, "resumed": 0}
    for _ in range(kills):
        (state / FILE_NAME).write_text(json.dumps(to_mapping(config)), encoding="utf-8")
        screen = Screen()
        for screen_name in ("Project", "Hardware", "Tier", "Options", "Data"):
            screen.wait_for(f"● {screen_name}")
            screen.press(CONTINUE)
        screen.wait_for("ready to start")
        screen.press(START)
        time.sleep(lab.random.uniform(0.0, 3.0) ** 2 / 3)  # more often at once than later
        screen.kill()
        json.loads((state / FILE_NAME).read_text(encoding="utf-8"))
        found = list(runs.iterdir()) if runs.exists() else []
        outcomes[_see_through(lab, config, reference, found)] += 1
        shutil.rmtree(runs, ignore_errors=True)
    return outcomes


def _see_through(lab: Lab, config: RunConfig, reference: Reference, found: list[Path]) -> str:
    if not found:
        return "no run"
    (folder,) = found
    run = RunDirectory(folder)
    wait_until(lambda: run.status() not in ACTIVE, f"{run.id} ends, which is {run.status()}")
    resumed = run.status() != "completed"
    if resumed and wait_for(lab.attempt(run, config, resuming=True), 120.0) != 0:
        raise BrokenError(f"it could not be resumed: {run.log_path.read_text()[-2000:]}")
    check_run(run)
    check_result(run, reference)
    return "resumed" if resumed else "went on"


def read_kept() -> str:
    """What the wizard's file holds of the field; whole JSON at any moment."""
    try:
        text = (Path(os.environ["ELITE_TUI_STATE_DIR"]) / FILE_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    value = json.loads(text).get("output", {}).get(FIELD, "")
    return str(value)
