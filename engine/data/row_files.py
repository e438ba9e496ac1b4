"""Files with rows: which ones a data set is made of, and what kind each is."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

_NOTES = ("state.json", "dataset_info.json", "dataset_dict.json")
"What a saved data set says about itself."
_POINTER = b"version https://git-lfs.github.com/spec/"
_BEGINNINGS = {
    b"\x1f\x8b": ("compressed by gzip", ".gz"),
    b"BZh": ("compressed by bzip2", ""),
    b"\xfd7zXZ": ("compressed by xz", ""),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", ""),
    b"PK\x03\x04": ("a zip archive", ""),
    b"PAR1": ("Parquet", ".parquet"),
    b"ARROW1": ("Arrow", ".arrow"),
}
"With what files begin whose names may lie, what it is, and the ending of such names; without one it is not read."


def data_files(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Finds the files with rows below a folder, in order; of a saved data set only what its state names.

    Links are followed in the hub's cache alone, to its own files.

    Returns:
        The files, and every other one with the reason (of engine.data.filters.REASONS) why it is not read. What lies in
        hidden folders, or describes a saved data set, is in neither.
    """
    found: list[Path] = []
    others: list[tuple[Path, str]] = []
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if name != ".git")
        hidden = any(part.startswith(".") for part in here.relative_to(folder).parts)
        listed = _saved_files(here)
        for name in sorted(names):
            file = here / name
            if not file_kind(file) or (listed is not None and name not in listed):
                reason = "not rows"
            elif file.is_symlink() and not _is_of_hub(file):
                reason = "symlink"
            elif not file.is_file():
                reason = "missing" if file.is_symlink() else "special"
            else:
                found.append(file)
                continue
            if not hidden and name not in _NOTES:
                others.append((file, reason))
    return sorted(found), others


def _is_of_hub(link: Path) -> bool:
    """Whether a link is of the hub's cache, whose snapshots hold links to the blobs beside them."""
    place = next((folder for folder in link.parents if folder.name == "snapshots"), None)
    return place is not None and link.resolve().parent == place.parent.resolve() / "blobs"


def _saved_files(folder: Path) -> list[str] | None:
    """The files that `save_to_disk` wrote into a folder, of which others may be caches; None if it is not of it."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def file_kind(file: Path) -> str:
    """Returns "json" or "table"; "" for a file that holds no rows."""
    name = file.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")) and name not in _NOTES:
        return "json"
    return "table" if ending(file) in (".parquet", ".arrow") else ""


def common_kind(files: Sequence[Path], others: Sequence[tuple[Path, str]]) -> str:
    """Returns the kind of all files of a data set.

    Args:
        files: That are read.
        others: Of its folder, with the reasons of `data_files`.

    Raises:
        ValueError: they are of several kinds, of none that is read, or there are none.
    """
    kinds = {file_kind(file) for file in files}
    if len(kinds) == 1 and "" not in kinds:
        return next(iter(kinds))
    link = next((file.name for file, reason in others if reason == "symlink"), None)
    if not files and link is not None:
        raise ValueError(
            f"it holds no file with rows but links, such as {link}; they are followed in the hub's cache alone"
        )
    if not files:
        raise ValueError("it holds no .jsonl, .parquet or .arrow file")
    raise ValueError("its kind is not known" if kinds == {""} else "its files are of several kinds")


def ending(file: Path) -> str:
    """Returns the ending of a file's name in small letters."""
    return file.suffix.lower()


def may_be_array(file: Path) -> bool:
    """Tells whether a file's name says that it is one JSON value rather than one a line."""
    return file.name.lower().removesuffix(".gz").endswith(".json")


def opened_json(file: Path) -> BinaryIO:
    """Opens a file of JSON, compressed or not."""
    return cast("BinaryIO", gzip.open(file, "rb")) if ending(file) == ".gz" else file.open("rb")


def refuse_other_contents(file: Path) -> None:
    """Looks at a file's first bytes.

    Raises:
        ValueError: its name does not tell what it holds.
    """
    with file.open("rb") as opened:
        head = opened.read(64)
    if head.startswith(_POINTER):
        raise ValueError("it is a pointer of Git LFS to a file that was not fetched (git lfs pull)")
    for begin, (what, end) in _BEGINNINGS.items():
        if head.startswith(begin) and (not end or ending(file) != end):
            raise ValueError(
                f"it is {what}, " + (f"and its name does not end in {end}" if end else "which is not read")
            )


def is_list_of_rows(value: Any) -> bool:
    """Tells whether a value is what a file could hold as an array of rows."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
