"""Finds the data files that ship with the project."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def asset(*parts: str) -> Path:
    """Returns the path of a shipped file, inside an installed wheel or in the checkout's assets/.

    Raises:
        FileNotFoundError: no such asset; the installation is incomplete.
    """
    for root in (_PACKAGE / "_assets", _PACKAGE.parent / "assets"):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise FileNotFoundError(f"asset {'/'.join(parts)} is missing: reinstall elite-tui")
