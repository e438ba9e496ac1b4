"""Checks that a run's result is what training wrote: a disk may have lost or changed it since."""

from __future__ import annotations

from pathlib import Path

from engine import atomic_dir

_HASHED_BYTES = 2 << 30
"A file of weights up to this size is hashed, which takes seconds; of a larger one the size is compared."


def result_problem(folder: Path) -> str | None:
    """Says what is wrong with the folder of an adapter or a model; None where nothing is.

    Other files than weights may have been edited since, and results of earlier versions have no manifest: of these,
    only an empty file tells.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    if not any(path.suffix == ".safetensors" for path in files):
        return f"{folder.name} has no weights in safetensors"  # a pickle would run what is in it
    if empty := next((path.name for path in files if path.stat().st_size == 0), None):
        return f"{empty} is empty"
    if (folder / atomic_dir.MANIFEST) in files:
        try:
            atomic_dir.verify(folder, suffix=".safetensors", most=_HASHED_BYTES)
        except (atomic_dir.DamagedError, OSError) as error:
            return str(error)
    return None
