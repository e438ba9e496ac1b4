"""Which package of its repository a file belongs to, by the files that build tools look for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from engine.data.collect import SourceFile
from engine.data.manifests import marks_package


def packages(
    files: Sequence[SourceFile], manifests: Mapping[Path, Mapping[str, str]] | None = None
) -> list[PurePosixPath]:
    """For each file the folder of its package: the nearest with a build file, else its topmost Python package.

    Args:
        files: Of any repositories.
        manifests: Of each repository, path → text of its build files, whether they are among `files` or not.
    """
    marked: dict[Path, set[PurePosixPath]] = defaultdict(set)
    modules: dict[Path, set[PurePosixPath]] = defaultdict(set)
    for repository, names in (manifests or {}).items():
        paths = map(PurePosixPath, names)
        marked[repository] |= {path.parent for path in paths if marks_package(path.name)}
    for file in files:
        name = file.name.rpartition("/")[2]
        if marks_package(name):
            marked[file.repository].add(file.path.parent)
        elif name == "__init__.py":
            modules[file.repository].add(file.path.parent)
    return [_package(file.path, marked[file.repository], modules[file.repository]) for file in files]


def _package(path: PurePosixPath, marked: set[PurePosixPath], modules: set[PurePosixPath]) -> PurePosixPath:
    topmost = PurePosixPath()
    for folder in path.parents:
        if folder in marked and folder.parts:
            return folder
        if folder in modules:
            topmost = folder
    return topmost
