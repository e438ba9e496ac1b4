"""Atomic and durable file replacement: a reader sees the old text or the new one, also after a power loss."""

from __future__ import annotations

import os
from pathlib import Path

from engine import durable


def replace_text(path: Path, text: str) -> None:
    """Writes a text beside the file, puts it in its place, and waits until both are on the disk.

    Several processes may do so at once.

    Raises:
        OSError: the folder cannot be written, or is full; the file is unchanged, and the temporary file is removed.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        durable.write_bytes(aside, text.encode())
        durable.rename(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
