"""Patterns of any characters, against git: what .gitignore files leave out, and what attributes say of which files."""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from support.repositories import run_git

from engine.data.gitattributes import Attributes
from engine.data.listing import list_by_git, walk
from engine.data.safe_files import Folder

PIECES = [
    *(
        "a",
        "b",
        "x",
        "*",
        "**",
        "***",
        "?",
        "/",
        "[",
        "]",
        "!",
        "^",
        "-",
        "\\",
        "#",
        ".",
        "é",
        "\t",
        "{",
        "+",
        "(",
        "$",
    ),
    *("\\*", "\\[", "\\ ", "\\\\", "\\/", "[ab]", "[!a]", "[a-c]", "[]a]", "[^]]", "[a-]", "[-a]", "[\\]]", "[a\\-c]"),
    *("[a/b]", "[[:alpha:]]", "[[:punct:]]", "[[:word:]]", "[[:alpha:]", "[[:]", " ", "\x0b", "\xa0", "'", '"'),
]
NAMES = [
    *("a", "b", "x", "ab", "ba", "a b", "a.b", "[", "]", "!a", "^", "-", "\\", "#", "*", "é", "à", "a]", "[ab]", "a "),
    *("\\a", "{a}", "a+", "$", "(a)", "a\tb", "a\t", "A", "\x0b", "a\xa0", '"', "\u3000", "😀"),
]
FOUND = {
    "a range that a backslash begins": ("[a\\-c]", ["a", "b", "c", "-", "\\"]),
    "an escaped bracket": ("[\\]]", ["]", "\\", "]]", "\\]"]),
    "a letter of two bytes": ("?", ["é", "a"]),
    "any other byte": ("[!a]", ["é", "b", "a"]),
    "any two bytes": ("[!a]?", ["é", "ab", "bb"]),
    "a tab at the end": ("a\t", ["a", "a\t"]),
    "a backslash before the last space": ("a\\\\ ", ["a\\", "a\\ ", "a "]),
    "a class that is none": ("[[:word:]]", ["a", "w", "_"]),
    "a class that is not closed": ("[[:alpha:]", ["a", ":", "["]),
    "a slash within brackets": ("b[a/]", ["b", "c/ba", "ba"]),
    "three asterisks": ("***/a", ["a", "b/a", "b/c/a"]),
    "a slash that is escaped": ("\\/a", ["a", "b/a"]),
    "two slashes at the end": ("b//", ["a", "b/a", "c/b/a"]),
    "one behind asterisks": ("**\\/?", ["a/a]/b", "b"]),
    "a path with one": ("b\\/a", ["a", "b/a", "c/b/a"]),
}


def plant(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        if not path.exists() and not any(parent.is_file() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x\n")


@pytest.mark.parametrize(("pattern", "names"), FOUND.values(), ids=FOUND)
def test_a_pattern_excludes_what_it_does_for_git(tmp_path: Path, pattern: str, names: list[str]) -> None:
    plant(tmp_path, names)
    (tmp_path / ".gitignore").write_bytes(pattern.encode() + b"\n")
    found = set(walk(tmp_path))
    run_git(tmp_path, "init", "-q")
    assert found == list_by_git(tmp_path)


def draw_names(draw: random.Random) -> list[str]:
    return ["/".join(draw.choice(NAMES) for _ in range(draw.randint(1, 3))) for _ in range(6)]


def draw_pattern(draw: random.Random) -> str:
    return "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 6)))


@pytest.mark.parametrize("seed", range(3))
def test_any_patterns_exclude_what_they_do_for_git(tmp_path: Path, seed: int) -> None:
    """Many folders with rules of their own, so that git is asked once."""
    draw, rules = random.Random(seed), {}
    for number in range(150):
        folder = tmp_path / f"t{number}"
        plant(folder, draw_names(draw))
        rules[folder.name] = [draw_pattern(draw) for _ in range(draw.randint(1, 2))]
        (folder / ".gitignore").write_bytes("\n".join(rules[folder.name]).encode())
    found = set(walk(tmp_path))
    run_git(tmp_path, "init", "-q")
    expected = list_by_git(tmp_path)
    assert expected is not None
    assert [(path, path in found, rules[path.parts[0]]) for path in found ^ expected] == []


WORDS = (
    "linguist-generated",
    "-linguist-generated",
    "!linguist-generated",
    "linguist-generated=0",
    "text",
    "a=b",
    "mac",
)


@pytest.mark.parametrize("seed", range(3))
def test_any_patterns_have_the_attributes_that_git_gives(tmp_path: Path, seed: int) -> None:
    draw, rules, names = random.Random(seed), {}, []
    for number in range(200):
        lines = []
        for _ in range(draw.randint(1, 2)):
            pattern = draw_pattern(draw)
            if draw.random() < 0.1:
                pattern = '"' + pattern.replace("\\", "\\\\").replace('"', '\\"') + '"'
            else:
                # git takes what follows a blank for a word, and drops lines for it: see the test below.
                pattern = re.sub(r'[ \t"]', "", pattern) or "a"
                pattern = f'"{pattern}"' if draw.random() < 0.1 else pattern
            lines.append(
                pattern + "".join(draw.choice(" \t\r") + draw.choice(WORDS) for _ in range(draw.randint(1, 3)))
            )
        rules[f"t{number}"] = lines
        (tmp_path / f"t{number}").mkdir()
        (tmp_path / f"t{number}" / ".gitattributes").write_bytes("\n".join(lines).encode())
        names += [f"t{number}/{name}" for name in draw_names(draw)]
    run_git(tmp_path, "init", "-q")
    command = ["git", "-C", str(tmp_path), "check-attr", "-z", "--stdin", "linguist-generated"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ATTR_NOSYSTEM": "1"}
    given = "".join(f"{name}\0" for name in names).encode()
    told = subprocess.run(command, input=given, capture_output=True, check=True, env=environment).stdout
    values = told.decode().split("\0")[2::3]
    attributes = Attributes(Folder(str(tmp_path)), [PurePosixPath(folder, ".gitattributes") for folder in rules])
    said = {"set": True, "unset": False, "0": False, "unspecified": None}
    found = [(name, attributes.of(PurePosixPath(name)).get("generated")) for name in names]
    expected = [(name, said[value]) for name, value in zip(names, values, strict=True)]
    wrong = [(mine, rules[mine[0].partition("/")[0]]) for mine, git in zip(found, expected, strict=True) if mine != git]
    assert wrong == []


def test_a_remark_behind_an_attribute_does_not_take_it_back(tmp_path: Path) -> None:
    """As libgit2 reads it, with which GitHub tells generated files."""
    (tmp_path / ".gitattributes").write_text("gen/** linguist-generated # by protoc\n")
    attributes = Attributes(Folder(str(tmp_path)), [])
    assert attributes.of(PurePosixPath("gen/a.py")) == {"generated": True}
