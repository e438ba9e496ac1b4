"""Resolves what files say that they import to the files of the repository that are meant.

Text only: no build file is evaluated, and an import that leads outside leads nowhere. Each family of languages has a
module with what its files say (`scan`) and what that means (`ImportRules`); a file may mean several (a package of Go,
a wildcard of Java). Where a language imports no files, whoever mentions a name needs the file that defines it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from engine.data.imports import (
    c,
    dart,
    dotnet,
    elixir,
    go,
    haskell,
    jvm,
    lua,
    perl,
    php,
    proto,
    ruby,
    shell,
    swift,
    terraform,
    zig,
)
from engine.data.imports.javascript import JavaScriptRules
from engine.data.imports.python import PythonRules
from engine.data.imports.rules import ImportRules, Repository, Strength
from engine.data.imports.rust import RustRules
from engine.data.languages import NOTEBOOK

__all__ = ["Strength", "links", "resolve", "scanner"]

_Scan = Callable[[str, PurePosixPath], Iterable[str]]


def resolve(
    names: Sequence[str],
    languages: Sequence[str],
    imports: Sequence[Sequence[str]],
    name: str = "",
    manifests: Mapping[str, str] | None = None,
) -> list[tuple[int, ...]]:
    """Returns, for each file, the numbers of the files that it needs, ascending; arguments as for `links`."""
    return [tuple(sorted(found)) for found in links(names, languages, imports, name, manifests)]


def links(
    names: Sequence[str],
    languages: Sequence[str],
    imports: Sequence[Sequence[str]],
    name: str = "",
    manifests: Mapping[str, str] | None = None,
) -> list[dict[int, int]]:
    """Returns, for each file of one repository, the numbers of those that it needs, with the strength of each link.

    Args:
        names: Paths of the files, within the repository.
        languages: Of the files.
        imports: Of each file, as engine.data.syntax gives them.
        name: Of the repository's folder, which may be a package itself.
        manifests: Path → text of the files that build tools read.
    """
    # Path objects are made as they are needed: all of a large repository's would take hundreds of megabytes.
    plain = {path: text.replace("\r\n", "\n") for path, text in (manifests or {}).items()}
    repository = Repository(imports, name, plain)
    rules: dict[type[ImportRules], ImportRules] = {}
    for family in {_RULES[language] for language in set(languages) & _RULES.keys()}:
        own = (number for number, language in enumerate(languages) if _RULES.get(language) is family)
        rules[family] = family(((number, PurePosixPath(names[number])) for number in own), repository)
    found = []
    for number, (language, wanted) in enumerate(zip(languages, imports, strict=True)):
        meant: dict[int, int] = {}
        if wanted and language in _RULES:
            for other, strength in rules[_RULES[language]].links(number, PurePosixPath(names[number]), wanted):
                if other != number and strength > meant.get(other, 0):
                    meant[other] = int(strength)
        found.append(meant)
    return found


def scanner(language: str) -> _Scan | None:
    """Returns the function that finds a language's imports in a text; None where a grammar does, or none are known."""
    return _SCANS.get(language)


def _jvm(language: str) -> _Scan:
    return lambda text, path: jvm.scan(text, language, path)


_SCANS: Mapping[str, _Scan] = {
    "C": lambda text, _: c.scan(text),
    "C#": lambda text, _: dotnet.scan(text),
    "C++": lambda text, _: c.scan(text),
    "CUDA": lambda text, _: c.scan(text),
    "Dart": lambda text, _: dart.scan(text),
    "Elixir": lambda text, _: elixir.scan(text),
    "Go": lambda text, _: go.scan(text),
    "Groovy": _jvm("Groovy"),
    "Haskell": lambda text, _: haskell.scan(text),
    "Java": _jvm("Java"),
    "Kotlin": _jvm("Kotlin"),
    "Lua": lambda text, _: lua.scan(text),
    "Objective-C": lambda text, _: c.scan(text),
    "Objective-C++": lambda text, _: c.scan(text),
    "PHP": lambda text, _: php.scan(text),
    "Perl": lambda text, _: perl.scan(text),
    "Protocol Buffers": lambda text, _: proto.scan(text),
    "Ruby": lambda text, _: ruby.scan(text),
    "Scala": _jvm("Scala"),
    "Shell": lambda text, _: shell.scan(text),
    "Swift": lambda text, _: swift.scan(text),
    "Terraform": terraform.scan,
    "Zig": lambda text, _: zig.scan(text),
}
_RULES: Mapping[str, type[ImportRules]] = {
    "C": c.CRules,
    "C#": dotnet.DotNetRules,
    "C++": c.CRules,
    "CUDA": c.CRules,
    "Dart": dart.DartRules,
    "Elixir": elixir.ElixirRules,
    "Go": go.GoRules,
    "Groovy": jvm.JvmRules,
    "Haskell": haskell.HaskellRules,
    "Java": jvm.JvmRules,
    "JavaScript": JavaScriptRules,
    NOTEBOOK: PythonRules,
    "Kotlin": jvm.JvmRules,
    "Lua": lua.LuaRules,
    "PHP": php.PhpRules,
    "Perl": perl.PerlRules,
    "Protocol Buffers": proto.ProtoRules,
    "Objective-C": c.CRules,
    "Objective-C++": c.CRules,
    "Python": PythonRules,
    "Ruby": ruby.RubyRules,
    "Rust": RustRules,
    "Scala": jvm.JvmRules,
    "Shell": shell.ShellRules,
    "Swift": swift.SwiftRules,
    "Svelte": JavaScriptRules,
    "Terraform": terraform.TerraformRules,
    "TypeScript": JavaScriptRules,
    "Vue": JavaScriptRules,
    "Zig": zig.ZigRules,
}
