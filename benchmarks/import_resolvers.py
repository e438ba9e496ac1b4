"""Resolves the imports of each language for benchmarks/import_order.py.

Each has one rule, which shares no code with engine.data.imports: text is read letter by letter, and a definition is
what a line says. Languages whose files name paths stand here, those whose files name definitions in name_resolvers.py.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.name_resolvers import (
    Pair,
    Texts,
    csharp,
    elixir,
    jvm,
    perl,
    php,
    swift,
    terraform,
    without_comments,
    words,
)


def ruby(texts: Texts) -> set[Pair]:
    """Paths that are required, relative, or autoloaded; and class names that one file alone defines."""
    pairs = set()
    for name, text in texts.items():
        folder = posixpath.dirname(name)
        for relative, path in re.findall(r"(?m)^\s*require(_relative)?[ (]+['\"]([\w./-]+)['\"]", text):
            file = path.removesuffix(".rb") + ".rb"
            near = [posixpath.normpath(posixpath.join(folder, file))]
            roots = [f"{root}/{file}" for root in ("lib", "test", "spec")]
            found = [each for each in (near if relative else roots) if each in texts and each != name]
            pairs |= {(name, each) for each in found if len(found) == 1}
        for path in re.findall(r"autoload[ (]+:\w+\s*,\s*['\"]([\w./-]+)['\"]", text):
            if f"lib/{path}.rb" in texts:
                pairs.add((name, f"lib/{path}.rb"))
    codes = {name: without_comments(text, ("#",), None, "'\"") for name, text in texts.items()}
    definers: dict[str, set[str]] = defaultdict(set)
    for name, code in codes.items():
        for kind in re.findall(r"(?m)^\s*class\s+(?:[A-Z]\w*::)*([A-Z]\w*)", code):
            definers[kind].add(name)
    for name, code in codes.items():
        for word in words(code) - {"File", "Set", "Table"}:  # Ruby has its own
            if len(definers.get(word, ())) == 1 and definers[word] != {name}:
                pairs.add((name, *definers[word]))
    return pairs


def lua(texts: Texts) -> set[Pair]:
    pairs = set()
    for name, text in texts.items():
        for module in re.findall(r"(?m)^[^-\n]*\brequire\s*\(?\s*['\"]([\w.\-/]+)['\"]", text):
            path = module.replace(".", "/")
            ends = (f"{path}.lua", f"{path}/init.lua")
            found = [each for each in texts if each in ends or each.endswith(tuple(f"/{end}" for end in ends))]
            if len(found) == 1 and found != [name]:
                pairs.add((name, found[0]))
    return pairs


def zig(texts: Texts) -> set[Pair]:
    pairs = set()
    for name, text in texts.items():
        for path in re.findall(r'(?m)^(?!\s*//)[^"\n]*@import\("([^"]+\.zig)"\)', text):
            found = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            if found in texts and found != name:
                pairs.add((name, found))
    return pairs


def proto(texts: Texts) -> set[Pair]:
    pairs = set()
    for name, text in texts.items():
        for path in re.findall(r'(?m)^import\s+(?:public\s+|weak\s+)?"([^"]+)";', text):
            found = [each for each in texts if f"/{each}".endswith(f"/{path}")]
            if len(found) == 1 and found != [name]:
                pairs.add((name, found[0]))
    return pairs


def go(texts: Texts, root: Path) -> set[Pair]:
    modules = {}
    for manifest in root.rglob("go.mod"):
        if found := re.search(r"(?m)^module\s+(\S+)", manifest.read_text("utf-8", "replace")):
            modules[found[1]] = posixpath.relpath(manifest.parent, root).removeprefix(".")
    folders: dict[str, list[str]] = defaultdict(list)
    for name in texts:
        if not name.endswith("_test.go"):
            folders[posixpath.dirname(name)].append(name)
    pairs = set()
    packages: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    codes = {name: without_comments(text, ("//",), ("/*", "*/"), '"`') for name, text in texts.items()}
    for name, code in codes.items():
        package = re.search(r"(?m)^package\s+(\w+)", code)
        for each in re.findall(r"(?m)^(?:func|type|var|const)\s+([A-Za-z_]\w*)", code):
            packages[posixpath.dirname(name), package[1] if package else ""][each].add(name)
    for name, text in texts.items():
        folder = posixpath.dirname(name)
        block = "\n".join(a or b for a, b in re.findall(r"(?m)^import\s*(?:\(([^)]*)\)|(.*))", text))
        for path in re.findall(r'"([^"]+)"', block):
            for module, where in modules.items():
                if path == module or path.startswith(module + "/"):
                    target = "/".join(filter(None, (where, path[len(module) + 1 :])))
                    pairs |= {(name, other) for other in folders.get(target, ()) if target != folder}
        package = re.search(r"(?m)^package\s+(\w+)", codes[name])
        own = packages[folder, package[1] if package else ""]
        for word in set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", codes[name])):
            homes = own.get(word, set())
            tests_only = not name.endswith("_test.go") and any(each.endswith("_test.go") for each in homes)
            if len(homes) == 1 and homes != {name} and not tests_only:
                pairs.add((name, *homes))
    return pairs


def rust(texts: Texts, root: Path) -> set[Pair]:
    """`mod a;`, and the first steps of `use crate::…`, `use super::…` and `use name::…`."""
    crates = {}
    for manifest in root.rglob("Cargo.toml"):
        folder = posixpath.relpath(manifest.parent, root)
        found = re.search(r'(?ms)^\[package\].*?^name\s*=\s*"([^"]+)"', manifest.read_text("utf-8", "replace"))
        library = posixpath.normpath(posixpath.join(folder, "src/lib.rs"))
        if found and library in texts:
            crates[found[1].replace("-", "_")] = library
    pairs, parent = set(), {}
    for name, text in texts.items():
        stem, folder = posixpath.basename(name)[:-3], posixpath.dirname(name)
        for module in re.findall(r"(?m)^\s*(?:pub(?:\([^)]*\))? )?mod (\w+);", text):
            for base in (folder, f"{folder}/{stem}".lstrip("/")):
                if (
                    base == folder
                    and stem not in ("lib", "main", "mod", "tests")
                    and f"{folder}/{stem}" in {posixpath.dirname(each) for each in texts}
                ):
                    continue
                for path in (f"{base}/{module}.rs", f"{base}/{module}/mod.rs"):
                    if path.lstrip("/") in texts and path.lstrip("/") != name:
                        pairs.add((name, path.lstrip("/")))
                        parent[path.lstrip("/")] = name
    children = defaultdict(dict)
    for child, above in parent.items():
        step = posixpath.basename(child)[:-3]
        children[above][posixpath.basename(posixpath.dirname(child)) if step == "mod" else step] = child

    def top(name: str) -> str:
        seen = {name}
        while name in parent and parent[name] not in seen:
            name = parent[name]
            seen.add(name)
        return name

    for name, text in texts.items():
        for path in re.findall(r"(?m)^(?:pub(?:\([^)]*\))? )?use ((?:\w+::)+\w*)", text):
            first, *steps = path.split("::")
            at = {"crate": top(name), "super": parent.get(name)}.get(first, crates.get(first))
            for step in steps:
                if at is None or step not in children[at]:
                    break
                at = children[at][step]
            if at is not None and at != name:
                pairs.add((name, at))
    return pairs


def typescript(texts: Texts, root: Path) -> set[Pair]:
    """Relative imports, names of the workspace's packages, and the paths of the nearest tsconfig.json."""
    packages = {}
    for manifest in root.rglob("package.json"):
        if "node_modules" not in manifest.parts:
            try:
                read = json.loads(manifest.read_text("utf-8", "replace"))
            except ValueError:
                continue
            if isinstance(read, dict) and isinstance(read.get("name"), str):
                packages[read["name"]] = posixpath.relpath(manifest.parent, root)
    aliases: dict[str, dict[str, list[str]]] = {}
    for config in root.rglob("tsconfig.json"):
        text = re.sub(r"(?m)^\s*//.*$", "", config.read_text("utf-8", "replace"))
        try:
            options = json.loads(re.sub(r",(\s*[}\]])", r"\1", text)).get("compilerOptions", {})
        except ValueError:
            continue
        base = posixpath.normpath(posixpath.join(posixpath.relpath(config.parent, root), options.get("baseUrl", ".")))
        aliases[posixpath.relpath(config.parent, root).removeprefix(".")] = {
            key: [posixpath.normpath(posixpath.join(base, each)) for each in values]
            for key, values in options.get("paths", {}).items()
        }

    def at(path: str) -> str | None:
        path = posixpath.normpath(path)
        stem = re.sub(r"\.[cm]?jsx?$", "", path)
        ends = (".ts", ".tsx", ".mts", ".cts", ".js", ".jsx", ".mjs", ".d.ts", "/index.ts", "/index.tsx", "/index.js")
        return next((each for each in (path, *(stem + end for end in ends)) if each in texts), None)

    def alias(name: str, wanted: str) -> str | None:
        folder = posixpath.dirname(name)
        while True:
            for key, values in aliases.get(folder, {}).items():
                head, star, _ = key.partition("*")
                if (star and wanted.startswith(head)) or wanted == key:
                    for value in values:
                        if found := at(value.replace("*", wanted[len(head) :])):
                            return found
            if not folder:
                return None
            folder = posixpath.dirname(folder)

    pairs = set()
    for name, text in texts.items():
        for wanted in re.findall(r"(?m)^(?:import|export)\b[^'\";]*?from\s*['\"]([^'\"]+)['\"]", text) + re.findall(
            r"(?m)^(?:import\s*|(?:const|let|var) [^=\n]*=\s*require\()['\"]([^'\"]+)['\"]", text
        ):
            found = None
            if wanted.startswith("."):
                found = at(posixpath.join(posixpath.dirname(name), wanted))
            elif not (found := alias(name, wanted)):
                for package, folder in packages.items():
                    if wanted == package or wanted.startswith(package + "/"):
                        rest = wanted[len(package) + 1 :]
                        found = next(
                            (f for base in ("src", "") if (f := at(posixpath.join(folder, base, rest or "index")))),
                            None,
                        )
            if found and found != name:
                pairs.add((name, found))
    return pairs


def dart(texts: Texts, root: Path) -> set[Pair]:
    """Directives up to the first other statement, word by word; packages by the name: line of pubspec.yaml."""
    packages: dict[str, str] = {}
    for manifest in root.rglob("pubspec.yaml"):
        for line in manifest.read_text("utf-8", "replace").splitlines():
            if line.startswith("name:"):
                package = line[5:].strip().strip("'\"")
                # One that is there several times counts for none.
                packages[package] = "?" if package in packages else posixpath.relpath(manifest.parent, root)
    pairs = set()
    for name, text in texts.items():
        directive = ""
        for line in text.splitlines():
            stripped = line.partition(" //")[0].strip()
            if directive or stripped.startswith(("import ", "export ", "part ")):
                directive += " " + stripped
                if not stripped.endswith(";"):
                    continue
                quoted = directive.replace('"', "'").split("'")[1::2]
                for uri in quoted if " part of " not in directive else ():
                    target = posixpath.normpath(posixpath.join(posixpath.dirname(name), uri))
                    if uri.startswith("package:"):
                        package, _, rest = uri[8:].partition("/")
                        target = posixpath.normpath(posixpath.join(packages.get(package, "?"), "lib", rest))
                    if target in texts and target != name:
                        pairs.add((name, target))
                directive = ""
    return pairs


def haskell(texts: Texts) -> set[Pair]:
    """Modules at the path of their name, line by line; one that several packages have counts for none."""
    pairs = set()
    for name, text in texts.items():
        for line in text.splitlines():
            parts = line.split("--")[0].replace("(", " ").split()
            if parts[:1] != ["import"] or "SOURCE" in line:
                continue
            parts = [part for part in parts[1:] if part not in ("qualified", "safe") and not part.startswith('"')]
            path = parts[0].replace(".", "/") + ".hs" if parts else "?"
            found = [each for each in texts if f"/{each}".endswith(f"/{path}")]
            # A shorter name may end another one's path.
            found = [each for each in found if re.search(rf"(?m)^module\s+{re.escape(parts[0])}(?![\w.])", texts[each])]
            if len(found) == 1 and found != [name]:
                pairs.add((name, found[0]))
    return pairs


def shell(texts: Texts) -> set[Pair]:
    """Words behind `source` or `.` whose end is the path of one script alone."""
    pairs = set()
    for name, text in texts.items():
        for line in text.splitlines():
            parts = line.strip().split()
            if len(parts) > 1 and parts[0] in ("source", "."):
                word = parts[1].strip("\"';")
                tail = word[max(word.rfind(sign) for sign in "})$") + 1 :] if set(word) & set("})$") else word
                if "$" in word and not word.endswith("}"):
                    tail = word.rpartition("$")[2].partition("/")[2] if "}" not in tail and ")" not in tail else tail
                tail = re.sub(r"^(?:[^/]*[)}])?(?:\.*/)*", "", tail)
                found = [each for each in texts if tail and f"/{each}".endswith(f"/{tail.lstrip('/')}")]
                if len(found) == 1 and found != [name]:
                    pairs.add((name, found[0]))
    return pairs


RULES: dict[str, tuple[tuple[str, ...], Callable[..., set[Pair]]]] = {
    "C#": ((".cs",), csharp),
    "Dart": ((".dart",), dart),
    "Elixir": ((".ex", ".exs"), elixir),
    "Go": ((".go",), go),
    "Haskell": ((".hs",), haskell),
    "JVM": ((".java", ".kt", ".scala"), jvm),
    "Lua": ((".lua",), lua),
    "PHP": ((".php",), php),
    "Perl": ((".pm", ".pl", ".t"), perl),
    "Proto": ((".proto",), proto),
    "Ruby": ((".rb",), ruby),
    "Rust": ((".rs",), rust),
    "Shell": ((".sh", ".bash"), shell),
    "Swift": ((".swift",), swift),
    "Terraform": ((".tf",), terraform),
    "TypeScript": ((".ts", ".tsx", ".mts", ".cts", ".js", ".jsx", ".mjs"), typescript),
    "Zig": ((".zig",), zig),
}
