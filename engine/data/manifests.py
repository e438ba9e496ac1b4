"""Reads the files of build tools, which mark packages and say how these and their parts are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from engine.data.safe_files import Folder, NotRegularError

_READ = frozenset(
    {
        "Cargo.toml",
        "deno.json",
        "deno.jsonc",
        "go.mod",
        "go.work",
        "import_map.json",
        "importmap.json",
        "package.json",
        "pubspec.yaml",
    }
)
"Names of files whose text tells what an import means."
_CONFIGS = ("tsconfig", "jsconfig")
"How the names of others begin."
_MARK_NAMES = """
package.json pyproject.toml setup.py setup.cfg Cargo.toml pom.xml build.gradle build.gradle.kts CMakeLists.txt BUILD
BUILD.bazel meson.build Package.swift mix.exs pubspec.yaml build.sbt build.sc build.mill go.mod composer.json build.zig
deno.json jsr.json rebar.config dune-project stack.yaml Project.toml DESCRIPTION elm.json gleam.toml
"""
_MARKS = frozenset(_MARK_NAMES.split())
_ENDINGS = "csproj fsproj vbproj gemspec podspec cabal rockspec nimble"
_MARK_ENDINGS = frozenset(_ENDINGS.split())
_LONGEST = 1 << 20
"Bytes of a manifest that are read."


def is_manifest(path: PurePosixPath) -> bool:
    """Tells whether a file marks a package, or tells what an import means."""
    return marks_package(path.name) or _is_read(path.name)


def marks_package(name: str) -> bool:
    """Tells whether a file of that base name lies at the root of a package."""
    return name in _MARKS or name.rpartition(".")[2] in _MARK_ENDINGS


def _is_read(name: str) -> bool:
    return name in _READ or (name.endswith(".json") and name.startswith(_CONFIGS))


def read_manifests(paths: Mapping[Path, Sequence[str]]) -> dict[Path, dict[str, str]]:
    """Reads each repository's manifests: path → text, "" for those that only mark a package or cannot be read."""
    found: dict[Path, dict[str, str]] = {}
    for root, names in paths.items():
        folder = Folder(str(root))
        texts = found[root] = dict.fromkeys(names, "")
        for name in names:
            path = PurePosixPath(name)
            if _is_read(path.name):
                try:
                    texts[name] = folder.read(path, _LONGEST).decode("utf-8-sig", "replace")
                except NotRegularError:
                    continue
    return found
