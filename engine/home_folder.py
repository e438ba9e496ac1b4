"""Expands `~` in paths that people type."""

from __future__ import annotations

import os
from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """Returns the path with `~` and `~name` expanded; unchanged where nobody has that name.

    pathlib's own raises RuntimeError there, though a folder may be called so.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111
