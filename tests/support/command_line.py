"""The exit status of a command, whether `main` returns it or argparse ends with it."""

from __future__ import annotations

from engine.cli import main


def status_of(words: list[str]) -> int:
    """Runs `engine` in this process; wrong usage ends it as an exit would."""
    try:
        return main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
