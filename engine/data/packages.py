"""Which package of its repository a file belongs to, by the files that build tools look for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from engine.data.collect import SourceFile

_BUILD_FILES = """
package.json pyproject.toml setup.py setup.cfg Cargo.toml pom.xml build.gradle build.gradle.kts CMakeLists.txt BUILD
BUILD.bazel meson.build Package.swift mix.exs pubspec.yaml build.sbt
"""
_MARKS = frozenset(_BUILD_FILES.split())


def packages(files: Sequence[SourceFile]) -> list[PurePosixPath]:
    """For each file the folder of its package: the nearest with a build file, else its topmost Python package."""
    marked: dict[Path, set[PurePosixPath]] = defaultdict(set)
    modules: dict[Path, set[PurePosixPath]] = defaultdict(set)
    for file in files:
        if file.path.name in _MARKS:
            marked[file.repository].add(file.path.parent)
        elif file.path.name == "__init__.py":
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
