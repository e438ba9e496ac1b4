"""Resolves imports of JavaScript and TypeScript by relative paths, tsconfig's paths, and a workspace's packages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from engine.data.imports.rules import Files, ImportRules, Repository, Strength, joined

_ENDINGS = (
    ".ts",
    ".tsx",
    ".mts",
    ".cts",
    ".js",
    ".jsx",
    ".mjs",
    ".cjs",
    ".d.ts",
    ".d.mts",
    ".d.cts",
    ".vue",
    ".svelte",
)
_WRITTEN = re.compile(r"(\.d)?\.[cm]?[jt]sx?$")
_BUILT = frozenset({"dist", "lib", "build", "out", "esm", "cjs", "es", "types"})
"Folders that a build writes; what an entry names there stands in the sources under the same name."
_SOURCES = ("src", "source", "lib", "")
_DEEPEST = 8
"Files that a tsconfig extends in turn, and objects within objects of `exports`."
_COMMENTS = re.compile(r'"(?:[^"\\\n]|\\.)*"?|//[^\n]*|/\*[^*]*(?:\*(?!/)[^*]*)*(?:\*/)?')
_LAST_COMMAS = re.compile(r'"(?:[^"\\\n]|\\.)*"?|,(?=\s*[}\]])')
_HERE = "${configDir}"
_MAPS = ("deno.json", "deno.jsonc", "import_map.json", "importmap.json")
_DEPENDENCIES = ("dependencies", "devDependencies", "peerDependencies", "optionalDependencies")
_ALIAS = re.compile(r"(?:workspace|npm):(@?[^@\s]+)@|(?:file|link|portal):(\S+)")
"A dependency under another name than its package's: of that name, or in that folder."


class JavaScriptRules(ImportRules):
    """The endings and entries that bundlers try."""

    def __init__(self, files: Files, repository: Repository) -> None:
        self._by_path = {str(path): number for number, path in files}
        self._json = {
            name: read
            for name, text in repository.manifests.items()
            if name.endswith((".json", ".jsonc")) and (read := _read(text)) is not None
        }
        self._packages: dict[str, tuple[PurePosixPath, dict[str, Any]]] = {}
        self._configs: dict[str, list[tuple[PurePosixPath, dict[str, Any]]]] = {}
        self._maps: dict[str, dict[str, Any]] = {}
        "Folder → the entries of its import maps."
        self._aliases: dict[str, dict[str, re.Match[str] | None]] = {}
        "A dependency that some package.json gives to another package → folder → that one, None for a plain version."
        for name, read in sorted(self._json.items()):
            path = PurePosixPath(name)
            if path.name == "package.json" and isinstance(read.get("name"), str):
                self._packages.setdefault(read["name"], (path.parent, read))
            elif path.name.startswith(("tsconfig", "jsconfig")):
                self._configs.setdefault(str(path.parent), []).append((path, read))
            elif path.name in _MAPS and isinstance(read.get("imports"), dict):
                self._maps.setdefault(str(path.parent), {}).update(read["imports"])
        self._take_aliases()

    def _take_aliases(self) -> None:
        said = [
            (str(PurePosixPath(name).parent), dependency, _ALIAS.match(version) if isinstance(version, str) else None)
            for name, read in self._json.items()
            if PurePosixPath(name).name == "package.json"
            for kind in reversed(_DEPENDENCIES)
            for dependency, version in (read[kind].items() if isinstance(read.get(kind), dict) else ())
        ]
        for _, dependency, alias in said:
            if alias is not None:
                self._aliases[dependency] = {}
        for folder, dependency, alias in said:
            if dependency in self._aliases:
                self._aliases[dependency][folder] = alias

    def _links(self, number: int, path: PurePosixPath, wanted: Sequence[str]) -> Iterator[tuple[int, Strength]]:
        for word in wanted:
            # An import of types is gone when the program runs: people close cycles with it.
            strength = Strength.MENTION if word.startswith("type:") else Strength.IMPORT
            found = self._find(path, word.removeprefix("type:"))
            if found is not None and found != number:
                yield found, strength

    def _find(self, path: PurePosixPath, wanted: str) -> int | None:
        if wanted.startswith("."):
            place = joined(path.parent, wanted)
            found = self._file(place)
            return self._by_root_dirs(path, place) if found is None else found
        found = self._by_config(path, wanted)
        found = self._by_map(path, wanted) if found is None else found
        if found is None and wanted.startswith(("@/", "~/")):
            # The source folder is the nearest one called so, else the repository's own.
            above = [folder for folder in path.parents if folder.name in ("src", "app")]
            found = self._first([*(str(folder / wanted[2:]) for folder in above), wanted[2:]])
        return self._by_package(path, wanted) if found is None else found

    def _first(self, bases: Sequence[str]) -> int | None:
        return next((found for base in bases if (found := self._file(base)) is not None), None)

    def _file(self, base: str) -> int | None:
        if not base and not self._by_path:
            return None
        stem = _WRITTEN.sub("", base)
        for name in (base, *(root + ending for root in dict.fromkeys((base, stem)) for ending in _ENDINGS)):
            if name in self._by_path:
                return self._by_path[name]
        for ending in _ENDINGS:
            name = f"{base}/index{ending}" if base else f"index{ending}"
            if name in self._by_path:
                return self._by_path[name]
        package = self._json.get(f"{base}/package.json")
        return self._entry(PurePosixPath(base), package, ".") if package is not None and base else None

    # --- tsconfig.json -------------------------------------------------------------------------------------

    def _by_config(self, path: PurePosixPath, wanted: str) -> int | None:
        for folder in path.parents:
            for config, read in self._configs.get(str(folder), ()):
                found = self._by_options(config, read, wanted)
                if found is not None:
                    return found
        return None

    def _by_root_dirs(self, path: PurePosixPath, place: str) -> int | None:
        """Looks for a file in the folders that its tsconfig lays over one another (`rootDirs`)."""
        for folder in path.parents:
            for config, read in self._configs.get(str(folder), ()):
                options = read.get("compilerOptions")
                named = options.get("rootDirs") if isinstance(options, dict) else None
                roots = [joined(config.parent, root) for root in named or () if isinstance(root, str)]
                below = next((place[len(root) + 1 :] for root in roots if root and place.startswith(f"{root}/")), None)
                if below is not None:
                    return self._first([f"{root}/{below}" for root in roots])
        return None

    def _by_map(self, path: PurePosixPath, wanted: str) -> int | None:
        """Looks into the import maps of the folders above: those of Deno, or such as pages name."""
        if not self._maps:
            return None
        # The longest entry alone counts, and may mean another place than a file.
        keys = [wanted, *(wanted[: end + 1] for end in reversed(range(len(wanted))) if wanted[end] == "/")]
        for folder in path.parents:
            entries = self._maps.get(str(folder), {})
            if (key := next((each for each in keys if each in entries), None)) is not None:
                value = entries[key]
                local = isinstance(value, str) and value.startswith(".")
                return self._file(joined(folder, value + wanted[len(key) :])) if local else None
        return None

    def _by_options(self, config: PurePosixPath, read: dict[str, Any], wanted: str) -> int | None:
        for base, paths in self._options(config, read, 0):
            for pattern, targets in sorted(paths.items(), key=lambda item: -len(item[0])):
                head, star, tail = pattern.partition("*")
                fits = wanted.startswith(head) and wanted.endswith(tail) and len(wanted) >= len(head) + len(tail)
                if not isinstance(targets, list) or not (fits if star else wanted == pattern):
                    continue
                middle = wanted[len(head) : len(wanted) - len(tail)] if star else ""
                written = [(t, base) for t in targets if isinstance(t, str)]
                # Counted from the file that is read first, not from the one that it extends.
                written = [
                    (t.removeprefix(_HERE + "/"), config.parent) if t.startswith(_HERE) else (t, b) for t, b in written
                ]
                bases = [joined(folder, t.replace("*", middle, 1)) for t, folder in written]
                if (found := self._first(bases)) is not None:
                    return found
        return None

    def _options(
        self, config: PurePosixPath, read: dict[str, Any], depth: int
    ) -> Iterator[tuple[PurePosixPath, dict[str, Any]]]:
        """Yields the folders that paths count from, with the paths; those of a file before those of what it extends."""
        options = read.get("compilerOptions")
        options = options if isinstance(options, dict) else {}
        base, paths = options.get("baseUrl"), options.get("paths")
        root = PurePosixPath(joined(config.parent, base)) if isinstance(base, str) else config.parent
        if isinstance(paths, dict):
            yield root, paths
        if isinstance(base, str):
            yield root, {"*": ["*"]}
        extended = read.get("extends")
        for name in extended if isinstance(extended, list) else [extended]:
            if isinstance(name, str) and name.startswith(".") and depth < _DEEPEST:
                whole = joined(config.parent, name)
                for each in (whole, f"{whole}.json"):
                    if each in self._json:
                        yield from self._options(PurePosixPath(each), self._json[each], depth + 1)
                        break

    # --- package.json --------------------------------------------------------------------------------------

    def _by_package(self, path: PurePosixPath, wanted: str) -> int | None:
        if wanted.startswith("#"):
            for folder in path.parents:
                package = self._json.get(str(folder / "package.json"))
                if package is not None and isinstance(package.get("imports"), dict):
                    return self._exported(folder, package["imports"], wanted)
            return None
        parts = wanted.split("/")
        count = 2 if wanted.startswith("@") else 1
        name = "/".join(parts[:count])
        found = self._aliased(path, name) if name in self._aliases else self._packages.get(name)
        if found is None:
            return None
        folder, package = found
        return self._entry(folder, package, "/".join([".", *parts[count:]]))

    def _aliased(self, path: PurePosixPath, name: str) -> tuple[PurePosixPath, dict[str, Any]] | None:
        """Returns the package that the nearest package.json with the dependency calls so."""
        given = self._aliases[name]
        folder = next((each for each in path.parents if str(each) in given), None)
        alias = None if folder is None else given[str(folder)]
        if folder is None or alias is None:
            return self._packages.get(name)
        if alias[1]:
            return self._packages.get(alias[1])
        place = joined(folder, alias[2])
        read = self._json.get(f"{place}/package.json" if place else "package.json")
        return None if read is None else (PurePosixPath(place), read)

    def _entry(self, folder: PurePosixPath, package: dict[str, Any], sub: str) -> int | None:
        """Returns the source file that a package offers under "." or "./x"."""
        exports = package.get("exports")
        if isinstance(exports, dict):
            with_paths = any(isinstance(key, str) and key.startswith(".") for key in exports)
            found = self._exported(folder, exports if with_paths else {".": exports}, sub)
            if found is not None:
                return found
        elif isinstance(exports, str) and sub == "." and (found := self._source(folder, exports)) is not None:
            return found
        if sub == ".":
            for key in ("source", "module", "main", "types", "typings"):
                value = package.get(key)
                if isinstance(value, str) and (found := self._source(folder, value)) is not None:
                    return found
            return self._first([joined(folder, f"{root}/index") for root in _SOURCES])
        return self._first([joined(folder, f"{root}/{sub}") for root in ("", *_SOURCES)])

    def _exported(self, folder: PurePosixPath, exports: dict[str, Any], sub: str) -> int | None:
        for pattern, target in sorted(exports.items(), key=lambda item: -len(item[0])):
            head, star, tail = pattern.partition("*")
            if pattern != sub and not (star and sub.startswith(head) and sub.endswith(tail) and len(sub) > len(head)):
                continue
            middle = sub[len(head) : len(sub) - len(tail)] if star else ""
            for leaf in _leaves(target, 0):
                found = self._source(folder, leaf.replace("*", middle))
                if found is not None:
                    return found
        return None

    def _source(self, folder: PurePosixPath, entry: str) -> int | None:
        found = self._file(joined(folder, entry))
        if found is not None:
            return found
        parts = [part for part in entry.split("/") if part not in ("", ".")]
        while parts and parts[0] in _BUILT:
            parts = parts[1:]
            found = self._first([joined(folder, "/".join([root, *parts])) for root in _SOURCES])
            if found is not None:
                return found
        return None


def _leaves(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth < _DEEPEST and isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner, depth + 1)


def _read(text: str) -> dict[str, Any] | None:
    """Reads JSON with comments and commas behind the last item; returns None for anything but an object."""
    try:
        for pattern in (_COMMENTS, _LAST_COMMAS):
            text = pattern.sub(lambda found: found[0] if found[0][0] == '"' else "", text)
        read = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None
