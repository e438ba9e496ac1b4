"""Atomic file replacement. A reader sees the old text or the new one, even if the process dies in between."""

from __future__ import annotations

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a temporary file beside the file and renames it into place. Several processes may do so at once.

    Raises:
        OSError: the folder cannot be written, or is full; the file is unchanged, and the temporary file is removed.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
