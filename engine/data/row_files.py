"""Files with rows: which ones a data set is made of, and what kind each is."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

_NOTES = ("state.json", "dataset_info.json", "dataset_dict.json")
"What a saved data set says about itself."


def data_files(folder: Path) -> Iterator[Path]:
    """Files with rows below a folder; links are not followed. Of a saved data set only what its state names."""
    for here, folders, names in os.walk(folder):
        folders.sort()
        listed = _saved_files(Path(here))
        for name in sorted(names if listed is None else listed):
            file = Path(here) / name
            if file_kind(file) and not file.is_symlink() and file.is_file():
                yield file


def _saved_files(folder: Path) -> list[str] | None:
    """The files that `save_to_disk` wrote into a folder, of which others may be caches; None if it is not of it."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def file_kind(file: Path) -> str:
    """Returns "json" or "table"; "" for a file that holds no rows."""
    name = file.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")) and name not in _NOTES:
        return "json"
    return "table" if file.suffix in (".parquet", ".arrow") else ""


def opened_json(file: Path) -> BinaryIO:
    """Opens a file of JSON, compressed or not."""
    return cast("BinaryIO", gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")


def is_list_of_rows(value: Any) -> bool:
    """Tells whether a value is what a file could hold as an array of rows."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
