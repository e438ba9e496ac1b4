"""Files that are replaced in one go: a reader sees the old text or the new one, whenever the process ends."""

from __future__ import annotations

import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a text beside the file and puts it in its place. Several processes may do so at once.

    Raises:
        OSError: the folder cannot be written, or is full; the file is as it was, and nothing lies beside it.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
