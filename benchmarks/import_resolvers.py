"""Resolves the imports of each language for benchmarks/import_order.py.

Each has one rule, which shares no code with engine.data.imports: text is read letter by letter, and a definition is
what a line says.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

Pair = tuple[str, str]
Texts = dict[str, str]


# --- text --------------------------------------------------------------------------------------------------


def without_comments(text: str, line: tuple[str, ...], block: tuple[str, str] | None, quotes: str) -> str:
    """The text with comments and strings blanked, read letter by letter."""
    out: list[str] = []
    place = 0
    while place < len(text):
        if any(text.startswith(sign, place) for sign in line):
            end = text.find("\n", place)
            place = len(text) if end < 0 else end
        elif block and text.startswith(block[0], place):
            end = text.find(block[1], place + len(block[0]))
            out.append(" ")
            place = len(text) if end < 0 else end + len(block[1])
        elif text[place] in quotes:
            sign = text[place]
            triple = text[place : place + 3] == sign * 3
            close = sign * 3 if triple else sign
            place += len(close)
            while place < len(text) and not text.startswith(close, place):
                if text[place] == "\\" and not triple:
                    place += 1
                elif text[place] == "\n" and not triple and sign != "`":
                    break
                place += 1
            place += len(close)
            out.append('""')
        else:
            out.append(text[place])
            place += 1
    return "".join(out)


def c_like(text: str) -> str:
    return without_comments(text, ("//",), ("/*", "*/"), '"')


def words(code: str) -> set[str]:
    return set(re.split(r"\W+", code))


# --- languages ---------------------------------------------------------------------------------------------


def by_name(texts: Texts, defines: Callable[[str], Iterable[str]], scope: Callable[[str], set[str]]) -> set[Pair]:
    """Pairs by names that one file alone defines; `scope` gives the namespaces that a file sees ("*": all)."""
    codes = {name: c_like(text) for name, text in texts.items()}
    definers: dict[str, set[str]] = defaultdict(set)
    for name, code in codes.items():
        for defined in defines(code):
            definers[defined].add(name)
    spaces = {name: own_space(code) for name, code in codes.items()}
    pairs = set()
    for name, code in codes.items():
        seen = scope(code)
        for word in words(code):
            found = definers.get(word, set())
            if len(found) == 1 and len(word) > 1:
                [definer] = found
                if definer != name and ("*" in seen or spaces[definer] in seen):
                    pairs.add((name, definer))
    return pairs


def own_space(code: str) -> str:
    found = re.search(r"(?m)^\s*(?:namespace|package)\s+(?!object)([\w.]+)", code)
    return found[1] if found else ""


def csharp(texts: Texts) -> set[Pair]:
    everywhere = {m for text in texts.values() for m in re.findall(r"(?m)^\s*global using ([\w.]+);", text)}

    def sees(code: str) -> set[str]:
        own = own_space(code)
        parts = own.split(".")
        around = {".".join(parts[:count]) for count in range(len(parts) + 1)}
        return around | everywhere | set(re.findall(r"(?m)^\s*(?:global )?using (?:static )?([\w.]+);", code))

    return by_name(
        texts,
        lambda code: re.findall(r"\b(?:class|struct|interface|enum|record)\s+([A-Z]\w*)", code),
        sees,
    )


def swift(texts: Texts) -> set[Pair]:
    return by_name(
        texts,
        lambda code: re.findall(r"\b(?:class|struct|enum|protocol|actor|typealias)\s+([A-Z]\w*)", code),
        lambda _: {"*"},
    )


def jvm(texts: Texts) -> set[Pair]:
    """A full name that is imported, or a name of the same package."""
    types = r"\b(?:class|interface|object|trait|enum|record|typealias|@interface)\s+([A-Za-z]\w*)"
    top = r"(?m)^(?:[a-z]+ )*(?:fun|val|var|def)\s+(?:<[^>\n]*>\s*)?(?:[\w<>?, *]+\.)?(\w+)"
    full: dict[str, set[str]] = defaultdict(set)
    codes = {name: c_like(text) for name, text in texts.items()}
    for name, code in codes.items():
        defined = set(re.findall(types, code))
        if not name.endswith(".java"):
            defined |= set(re.findall(top, code))
        for each in defined:
            full[f"{own_space(code)}.{each}"].add(name)
    pairs = set()
    for name, code in codes.items():
        # A small word is a function's name where it is called, and a variable's elsewhere.
        used = {word for word in words(code) if word[:1].isupper()} | set(re.findall(r"(?<![.\w])[a-z]\w*(?=\()", code))
        wanted = {f"{own_space(code)}.{word}" for word in used}
        for line in re.findall(r"(?m)^\s*import\s+(?:static\s+)?(.+)$", code):
            head, brace, rest = line.strip().rstrip(";").partition("{")
            for item in rest.rstrip("}").split(",") if brace else [""]:
                path = (head + re.split(r"=>| as ", item)[0]).replace("`", "").strip().split(" as ")[0]
                parts = path.split(".")
                if parts[-1] in ("*", "_"):
                    space = ".".join(parts[:-1])
                    wanted |= {f"{space}.{word}" for word in words(code)}
                    parts = parts[:-1]
                wanted |= {".".join(parts[:count]) for count in range(2, len(parts) + 1)}
        for each in wanted:
            found = full.get(each, set())
            if len(found) == 1 and found != {name}:
                pairs.add((name, *found))
    return pairs


def php(texts: Texts) -> set[Pair]:
    full: dict[str, set[str]] = defaultdict(set)
    codes = {name: without_comments(text, ("//", "# "), ("/*", "*/"), "'\"") for name, text in texts.items()}
    spaces = {}
    for name, code in codes.items():
        found = re.search(r"(?m)^\s*namespace\s+([\w\\]+)", code)
        spaces[name] = found[1] if found else ""
        for kind in re.findall(r"(?m)^\s*(?:abstract |final |readonly )*(?:class|interface|trait|enum)\s+(\w+)", code):
            full[f"{spaces[name]}\\{kind}".strip("\\")].add(name)
    pairs = set()
    for name, code in codes.items():
        names = {}
        for line in re.findall(r"(?m)^use\s+([\w\\ ]+);", code):
            path, _, alias = line.partition(" as ")
            path = path.strip("\\ ")
            names[alias.strip() or path.rpartition("\\")[2]] = path
        wanted = set(names.values())
        for word in set(re.findall(r"(?<![$\w\\>:])\\?[A-Z][\w\\]*", code)):
            if word.startswith("\\"):
                wanted.add(word[1:])
            elif word.partition("\\")[0] in names:
                head, _, rest = word.partition("\\")
                wanted.add(f"{names[head]}\\{rest}".strip("\\"))
            else:
                wanted.add(f"{spaces[name]}\\{word}".strip("\\"))
        for each in wanted:
            found_in = full.get(each, set())
            if len(found_in) == 1 and found_in != {name}:
                pairs.add((name, *found_in))
    return pairs


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


def terraform(texts: Texts) -> set[Pair]:
    pairs = set()
    folders: dict[str, list[str]] = defaultdict(list)
    for name in texts:
        folders[posixpath.dirname(name)].append(name)
    for folder, names in folders.items():
        where: dict[str, set[str]] = defaultdict(set)
        for name in names:
            code = without_comments(texts[name], ("#", "//"), ("/*", "*/"), "")
            for each in re.findall(r'(?m)^variable "([^"]+)"', code):
                where[f"var.{each}"].add(name)
            for each in re.findall(r'(?m)^module "([^"]+)"', code):
                where[f"module.{each}"].add(name)
            for each in re.findall(r'(?m)^resource "([^"]+)" "([^"]+)"', code):
                where[".".join(each)].add(name)
            for each in re.findall(r'(?m)^data "([^"]+)" "([^"]+)"', code):
                where["data." + ".".join(each)].add(name)
        for name in names:
            code = without_comments(texts[name], ("#", "//"), ("/*", "*/"), "")
            for address in set(re.findall(r"(?<![\w.])(?:data\.)?[a-z]\w*\.[\w-]+", code)):
                found = where.get(address, set())
                if len(found) == 1 and found != {name}:
                    pairs.add((name, *found))
            for source in re.findall(r'source\s*=\s*"(\.[./\w-]*)"', code):
                for other in folders.get(posixpath.normpath(posixpath.join(folder, source)).removeprefix("."), ()):
                    pairs.add((name, other))
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
            found = own.get(word, set())
            tests_only = not name.endswith("_test.go") and any(each.endswith("_test.go") for each in found)
            if len(found) == 1 and found != {name} and not tests_only:
                pairs.add((name, *found))
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


RULES: dict[str, tuple[tuple[str, ...], Callable[..., set[Pair]]]] = {
    "C#": ((".cs",), csharp),
    "Go": ((".go",), go),
    "JVM": ((".java", ".kt", ".scala"), jvm),
    "Lua": ((".lua",), lua),
    "PHP": ((".php",), php),
    "Proto": ((".proto",), proto),
    "Ruby": ((".rb",), ruby),
    "Rust": ((".rs",), rust),
    "Swift": ((".swift",), swift),
    "Terraform": ((".tf",), terraform),
    "TypeScript": ((".ts", ".tsx", ".mts", ".cts", ".js", ".jsx", ".mjs"), typescript),
    "Zig": ((".zig",), zig),
}
