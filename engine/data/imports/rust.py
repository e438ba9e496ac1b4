"""Resolves Rust's `mod a;` to a file beside, and paths from a crate's root, a module, or another crate."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from engine.data.imports.rules import MOST, Files, ImportRules, Repository, Strength, joined

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_ROOTS = ("src/lib.rs", "src/main.rs", "build.rs")
_ROOT_FOLDERS = ("src/bin", "tests", "examples", "benches")


class RustRules(ImportRules):
    """Modules as a tree below each crate's root; crates by the names that Cargo.toml gives them."""

    def __init__(self, files: Files, repository: Repository) -> None:
        self._by_path = {str(path): number for number, path in files}
        self._roots: set[str] = set()
        self._crates: dict[str, str] = {}
        self._aliases: dict[str, dict[str, str]] = {}
        'Folder of a manifest → what it calls a crate → the package that this is, "" where its workspace says so.'
        self._shared_aliases: dict[str, dict[str, str]] = {}
        "Folder of a workspace → the same for the members that leave it to their workspace."
        self._written: dict[tuple[str, str], str] = {}
        "A file and the name of a module of its whose path is written → the module's file."
        for name, text in sorted(repository.manifests.items()):
            if PurePosixPath(name).name == "Cargo.toml":
                self._take_manifest(PurePosixPath(name).parent, text)
        for path in self._by_path:
            self._take_root(PurePosixPath(path))
        self._parents = self._module_tree(repository.imports)

    def _take_manifest(self, folder: PurePosixPath, text: str) -> None:
        try:
            manifest: dict[str, Any] = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError):
            return
        self._take_aliases(folder, manifest)
        package, library = manifest.get("package"), manifest.get("lib")
        library = library if isinstance(library, dict) else {}
        targets = [library]
        for kind in ("bin", "test", "example", "bench"):
            found = manifest.get(kind)
            targets += [target for target in found if isinstance(target, dict)] if isinstance(found, list) else []
        for target in targets:
            if isinstance(path := target.get("path"), str) and (root := joined(folder, path)) in self._by_path:
                self._roots.add(root)
        if isinstance(package, dict):
            path = library.get("path")
            root = joined(folder, path if isinstance(path, str) else "src/lib.rs")
            if root in self._by_path:
                self._roots.add(root)
                for crate in (library.get("name"), package.get("name")):
                    if isinstance(crate, str):
                        self._crates.setdefault(crate.replace("-", "_"), root)

    def _take_aliases(self, folder: PurePosixPath, manifest: dict[str, Any]) -> None:
        """Notes the names that a manifest, or its workspace, gives to packages of other names."""
        aliases = self._aliases[str(folder)] = {}
        tables = [(manifest, aliases), *((one, aliases) for one in _tables(manifest.get("target")))]
        if isinstance(workspace := manifest.get("workspace"), dict):
            tables.append((workspace, self._shared_aliases.setdefault(str(folder), {})))
        for table, into in tables:
            for kind in ("dependencies", "dev-dependencies", "build-dependencies"):
                dependencies = table.get(kind)
                for name, said in dependencies.items() if isinstance(dependencies, dict) else ():
                    package = said.get("package", name) if isinstance(said, dict) else name
                    shared = isinstance(said, dict) and said.get("workspace") is True
                    if isinstance(package, str):
                        into[name.replace("-", "_")] = "" if shared else package.replace("-", "_")

    def _crate(self, path: str, name: str) -> str | None:
        """Returns the root of the crate that a file means by a name."""
        folders = [str(one) for one in PurePosixPath(path).parents]
        own: dict[str, str] = next((self._aliases[one] for one in folders if one in self._aliases), {})
        called = own.get(name, name)
        if not called:  # as its workspace says
            around = (self._shared_aliases[one] for one in folders if one in self._shared_aliases)
            called = next(around, {}).get(name, name)
        return self._crates.get(called or name)

    def _take_root(self, path: PurePosixPath) -> None:
        whole = f"/{path}"
        if whole.endswith(tuple(f"/{root}" for root in _ROOTS)):
            self._roots.add(str(path))
            if path.name == "lib.rs" and path.parent.parent.name:
                # Without a manifest a crate is called like its folder.
                self._crates.setdefault(path.parent.parent.name.replace("-", "_"), str(path))
        for folder in _ROOT_FOLDERS:
            beside = path.parent if path.name != "main.rs" else path.parent.parent
            if f"/{beside}".endswith(f"/{folder}"):
                self._roots.add(str(path))

    def _module_tree(self, imports: Sequence[Sequence[str]]) -> dict[str, str]:
        """Returns maps each file that another one names as its module to that one."""
        parents: dict[str, str] = {}
        for path, number in self._by_path.items():
            for word in imports[number] if imports else ():
                if word.startswith("mod:") and (found := self._module(path, word[4:])) is not None and found != path:
                    parents.setdefault(found, path)
                    if "=" in word:
                        self._written[path, word[4:].partition("=")[0]] = found
        return parents

    def _folder(self, path: str) -> PurePosixPath:
        """Returns the folder that a file's modules lie in."""
        file = PurePosixPath(path)
        is_root = path in self._roots and path not in getattr(self, "_parents", {})
        return file.parent if file.name in ("mod.rs", "lib.rs", "main.rs") or is_root else file.parent / file.stem

    def _module(self, path: str, name: str) -> str | None:
        name, _, written = name.partition("=")
        if written:
            found = joined(PurePosixPath(path).parent, written)
            return found if found in self._by_path else None
        if (path, name) in self._written:
            return self._written[path, name]
        folders = [self._folder(path)]
        file = PurePosixPath(path)
        if path in self._roots and folders[0] == file.parent:
            folders.append(file.parent / file.stem)
        elif path in self._roots:
            folders.append(file.parent)
        for folder in folders:
            for found in (joined(folder, f"{name}.rs"), joined(folder, f"{name}/mod.rs")):
                if found in self._by_path:
                    return found
        return None

    def _links(self, number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        for word in wanted:
            inline = word[0] == "~"
            for found in self._find(str(path), word.removeprefix("~"))[:MOST]:
                if found != number:
                    yield found, Strength.MENTION if inline else Strength.IMPORT

    def _find(self, path: str, wanted: str) -> list[int]:
        if wanted.startswith("mod:"):
            found = self._module(path, wanted[4:])
            return [] if found is None else [self._by_path[found]]
        head, *rest = [part for part in wanted.split("::") if part] or [""]
        root = self._root_of(path)
        if head == "crate":
            return [] if root is None else self._below(root, rest)
        if head == "self":
            return self._below(path, rest) if rest and rest[0] != "*" else []
        if head == "super":
            base: str | None = self._parent(path)
            while rest[:1] == ["super"] and base is not None:
                base, rest = self._parent(base), rest[1:]
            return [] if base is None else self._below(base, rest)
        if self._module(path, head) is not None:
            return self._below(path, [head, *rest])
        crate = self._crate(path, head)
        return [] if crate is None or crate == root else self._below(crate, rest)

    def _below(self, path: str, names: Sequence[str]) -> list[int]:
        """Returns the file of the deepest module on a path that begins in a file, or that file itself."""
        for name in names:
            found = self._module(path, name)
            if found is None or found == path:
                break
            path = found
        return [self._by_path[path]]

    def _parent(self, path: str) -> str | None:
        if path in self._parents:
            return self._parents[path]
        file = PurePosixPath(path)
        folder = file.parent.parent if file.name == "mod.rs" else file.parent
        names = (f"{folder}.rs", *(f"{folder}/{name}.rs" for name in ("mod", "lib", "main")))
        return next((name for name in names if name in self._by_path and name != path), None)

    def _root_of(self, path: str) -> str | None:
        seen = {path}
        while (parent := self._parents.get(path)) is not None and parent not in seen:
            seen.add(parent)
            path = parent
        if path in self._roots:
            return path
        for folder in PurePosixPath(path).parents:
            for name in ("lib.rs", "main.rs"):
                root = str(folder / name)
                if root in self._by_path:
                    return root
        return None


def _tables(value: Any) -> list[dict[str, Any]]:
    return [one for one in value.values() if isinstance(one, dict)] if isinstance(value, dict) else []


INLINE = re.compile(r"\bcrate::(?:\w+::)*\w+")
"A path within an expression."
