"""Shows a notice on the desktop: by notify-send in a local session, else by the terminal's own sequences."""

from __future__ import annotations

import contextlib
import html
import shutil
import subprocess
from collections.abc import Mapping

from engine.runs.notices import Notice

_TIMEOUT_S = 5.0
_BELL = "\a"
_END = "\x1b\\"
_OSC_777 = ("rxvt", "foot")
"""Terminals, by the beginning of TERM, that take OSC 777."""


def has_desktop(environment: Mapping[str, str]) -> bool:
    """Tells whether this process belongs to a local desktop session that has notify-send."""
    remote = environment.get("SSH_CONNECTION") or environment.get("SSH_TTY")
    display = environment.get("WAYLAND_DISPLAY") or environment.get("DISPLAY")
    return bool(not remote and display and shutil.which("notify-send", path=environment.get("PATH")))


def show_on_desktop(notice: Notice) -> None:
    """Runs notify-send; a desktop that does not answer is no error."""
    # Notification servers read markup in the body.
    command = ["notify-send", "--app-name=elite-tui", "--", notice.title, html.escape(notice.text, quote=False)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            command,
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def terminal_sequence(notice: Notice, environment: Mapping[str, str]) -> str:
    """Returns what makes a terminal notify: OSC 777 or OSC 9, and the bell for those that know neither.

    It also works over SSH, as the terminal itself shows it. A terminal ignores sequences that it does not know.
    https://iterm2.com/documentation-escape-codes.html, https://codeberg.org/dnkl/foot, tmux(1) "Dcs passthrough".
    """
    title, text = notice.title.replace(";", ","), notice.text
    if environment.get("TERM", "").startswith(_OSC_777) or environment.get("VTE_VERSION"):
        sequence = f"\x1b]777;notify;{title};{text.replace(';', ',')}{_END}"
    else:
        # ConEmu and Windows Terminal take OSC 9 with a number for other things; a title may begin with a digit.
        sequence = f"\x1b]9;Elite TUI: {title}: {text}{_END}"
    if environment.get("TMUX"):
        # tmux passes it on to its terminal where allow-passthrough is on.
        sequence = f"\x1bPtmux;{sequence.replace(chr(27), chr(27) * 2)}{_END}"
    return sequence + _BELL
