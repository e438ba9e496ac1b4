"""Whether time grows with the input or faster, for every expression and every parser of the project.

    python benchmarks/growth.py                 parsers: repositories, data sets, headers, journals, texts on a screen
    python benchmarks/growth.py --expressions   every compiled expression of the modules, with texts made from itself
    python benchmarks/growth.py --only SECRET   those whose name contains a word

Each runs in a process of its own over texts of one shape: 4 KB, 16 KB, up to 256 KB or a fraction of a second. Prints
those whose time rose by more than sixfold where the text grew fourfold, and a line for each parser: its slowest shape,
that ratio, and the seconds that a megabyte takes or would take. A ratio of four is linear, sixteen is the square.
Exits with 1 where one is over. An expression may be fine in its parser, which bounds what it sees.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import resource
import string
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

SMALLEST, LARGEST = 1 << 12, 1 << 20
LONG_S, MOST_S = 0.3, 20
STEEP = 6.0
Run = Callable[[str], object]

UNITS = (
    "a", "A", "0", " ", "\t", "\n", "\n\n", "a\n", " \n", "a ", "aA", "a.", ".a", "a,", "a-", "a_b", "a:", "::",
    "a::", "/", "a/", "//", "//\n", "/*", "/* ", "/**/", "*", "**/", "#", "#\n", "# a\n", "--", "--[[", "--[=[",
    "<!--", "\"", "'", "`", "\"\"\"", "'''", "\"a\"", "\"a\",", "\"\\", "\\", "\\\\", "\\n", "\\x41", "\\101", "(",
    "((a", "[", "{", "{{", "{%", "}", "()", "[]", "{}", "(a,", "[1,", "{\"a\":", "<", "<a", "<a ", "<|", "<|a|>", "=",
    "a=", "a = ", "=a=", "a=\"", ":", "a: ", "- a\n", "|", "|a", "|-|\n", "|a|b|\n|-|-|\n", "@", "a@", "a@b.",
    "://a:b", "http://a", "0x", "0x1,", "1,", "-1, ", "ff ", "é", "日", "e\u0301", "\ufeff", "\u200b", "import ",
    "import a\n", "import {", "import a,", "from a import ", "from ", "export ", "require(", "require 'a'\n",
    "use a;\n", "use ", "using ", "using a;\n", "package ", "package a\n", "namespace ", "class A ", "class A<",
    "class A : ", "class A extends B, ", "def a\n", "def a():\n", "func a", "func a(", "fun a", "val a = ", "var (\n",
    "type A struct {", "import (", "import (\n\"a\"\n", "include \"", "\n#include <", "mod a;\n", "crate::a::",
    "a.b.c.", "a.b.C ", "A::B ", "@import(\"", "resource \"a\" \"b\" {\n", "source = \"./a\"\n", "var.a ",
    "data.a.b ", "enum A\n", "const a, ", "@file: ", "<?php ", "function a(", "trait A ", "Copyright (c) ",
    "// Copyright\n", "# Licensed\n", "DO NOT EDIT\n", "@generated ", "-----BEGIN ", "diff --git a/a b/a\n",
    "@@ -1 +1 @@\n", "--- a\n+++ a\n", "+a\n", "password=", "token: ", "insert into t values ('a',", "Bearer ",
    "bearer a", "-p a ", "eyJ", "AKIA", "ghp_", "key\": \"", "<think>", "</think>", "```\n", "```", "![a](", "![",
    "](", "<system-reminder>", "<tag>a</tag>", "Human: ", "\n\nAssistant:", "slots=", "a slots=1\n", "a:\n  ", "- - ",
    "&a ", "*a ", "? ", "!!a ", "%a\n", "1e", "1e5", "0.0", "-", "+", "\r", "\r\n", "\x1b[0m", "\x00",
)  # fmt: skip
"""What a text repeats."""


def texts(unit: str, size: int) -> str:
    """Repeats a unit up to a size."""
    return (unit * (size // len(unit) + 1))[:size]


# --- parsers -----------------------------------------------------------------------------------------------


def parsers() -> dict[str, Run]:
    """Returns each parser by name; they import what they need."""
    from elite_tui.format import figures
    from engine.data import charset, contents, encoded, filters, generated, licences, near_duplicates, secrets, syntax
    from engine.data.gitignore import IgnoreRules
    from engine.data.imports import _SCANS, links
    from engine.data.notebooks import cells_as_text
    from engine.data.report import printable
    from engine.errors import one_line
    from engine.evaluation.retrieval import words_of
    from engine.runs.journal import decode_line

    def quiet(run: Run, *expected: type[BaseException]) -> Run:
        def call(text: str) -> object:
            try:
                return run(text)
            except expected:
                return None

        return call

    found: dict[str, Run] = {
        "secrets Python": quiet(lambda text: secrets.find_secrets(text, "Python"), secrets.SearchTooLongError),
        "secrets YAML": quiet(lambda text: secrets.find_secrets(text, "YAML"), secrets.SearchTooLongError),
        "secrets Shell": quiet(lambda text: secrets.find_secrets(text, "Shell"), secrets.SearchTooLongError),
        "masked name": secrets.masked_name,
        "licence header": licences.find_header,
        "generated mark": lambda text: generated.is_generated(text.encode("utf-8", "replace"), "Python"),
        "binary, minified": lambda text: list(
            filters.reasons_by_head(text.encode("utf-8", "replace"), "JavaScript", "a.js")
        ),
        "encoded data": encoded.find_encoded,
        "charset": lambda text: charset.decode(text.encode("utf-8", "replace")),
        "charset latin-1": lambda text: charset.decode(text.encode("latin-1", "replace") + b"\xe9"),
        "language by content": lambda text: contents.language_by_content("a.h", "C", text.encode("utf-8", "replace")),
        "near-duplicates": lambda text: near_duplicates.telling_lines(near_duplicates.distinct_lines(text)),
        ".gitignore": lambda text: IgnoreRules(text.encode("utf-8", "replace")).verdict(
            "src/a/b/c.py", is_folder=False
        ),
        ".gitignore, a long path": lambda text: IgnoreRules(b"*.py\n/a/**/b\n[ab]?\n").verdict(text, is_folder=False),
        ".gitignore, one pattern": lambda text: IgnoreRules(text[:2000].encode("utf-8", "replace")).verdict(
            "a" * 250, is_folder=False
        ),
        "notebook": quiet(lambda text: cells_as_text(notebook(text)), Exception),
        "notebook, broken": quiet(cells_as_text, Exception),
        "printable": printable,
        "one_line": one_line,
        "monitor printable": figures.printable,
        "words of a text": words_of,
        "journal line": lambda text: decode_line(text.encode("utf-8", "replace")),
        "journal text": lambda text: decode_line(json.dumps(EVENT | {"text": text}).encode()),
        "journal": journal,
        "JSON Lines": json_lines,
        "JSON array": json_array,
        "conversation": conversation,
        "chat template": template,
        "configuration": quiet(configuration, Exception),
        "host file": quiet(hosts, Exception),
        ".gitattributes": attributes,
        "git patch": patch,
        "sessions": sessions,
        "safetensors header": safetensors,
        "answer of a model": answer,
        "model config": model_config,
        "plain text": lambda text: __import__("engine.tokenization.plain_text", fromlist=["x"]).is_plain_text(
            text, special=True
        ),
    }
    for language, scan in _SCANS.items():
        path = PurePosixPath("src/a/b.x")
        found[f"imports {language}"] = lambda text, scan=scan: list(scan(text, path))
        found[f"resolved {language}"] = lambda text, scan=scan, language=language: links(
            ["src/a/b.x", "src/c/d.x"], [language] * 2, [list(scan(text, path)), []]
        )
    for language, name in (
        ("Python", "a.py"), ("JavaScript", "a.js"), ("TypeScript", "a.ts"), ("Go", "a.go"), ("Rust", "a.rs"),
        ("C", "a.c"),
        ("C++", "a.cpp"), ("Java", "A.java"), ("Markdown", "a.md"), ("Vue", "a.vue"), ("Ruby", "a.rb"),
        ("Kotlin", "a.kt"),
        ("Shell", "a.sh"), ("SQL", "a.sql"),
    ):  # fmt: skip
        found[f"outline {language}"] = lambda text, language=language, name=name: syntax.outline(
            text, language, PurePosixPath(name)
        )
    return found


EVENT = {"schema": 1, "run": "r", "seq": 3, "time": 1.5, "kind": "LogLine", "level": "info"}


def notebook(text: str) -> str:
    cells = [
        {"cell_type": kind, "source": text[: len(text) // 2].splitlines(keepends=True)} for kind in ("code", "markdown")
    ]
    return json.dumps({"nbformat": 4, "metadata": {}, "cells": cells})


def in_a_file(text: str, name: str, use: Callable[[Path], object]) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8", errors="replace", newline="")
        return use(path)


def journal(text: str) -> object:
    from engine.runs.journal import next_seq, read_events

    return in_a_file(text, "events.jsonl", lambda path: (list(read_events(path)), next_seq(path)))


def rows_of(path: Path) -> object:
    from engine.data.conversations import RowReader
    from engine.data.rows import open_data_set
    from engine.errors import EliteError

    try:
        data = open_data_set(path, "", RowReader({}))
        return [data.read(row) for row in data.rows()]
    except EliteError:
        return None


def json_lines(text: str) -> object:
    lines = "\n".join(json.dumps({"text": piece}) for piece in text.split("\n")) + "\n" + text
    return in_a_file(lines, "a.jsonl", rows_of)


def json_array(text: str) -> object:
    from engine.data.json_arrays import elements

    def read(content: str) -> None:
        try:
            for _ in elements(io.BytesIO(content.encode("utf-8", "replace")), 64 << 20):
                pass
        except ValueError:
            pass

    read(json.dumps([{"text": piece} for piece in text.split("\n")]))
    read("[" + text)
    return None


def conversation(text: str) -> object:
    turns = [{"role": ("user", "assistant")[n % 2], "content": piece} for n, piece in enumerate(text.split("\n"))]
    rows = [{"messages": turns}, {"prompt": text, "completion": text}, {"chosen": text, "rejected": text + "a"},
            {"conversations": text}, {"messages": text}]  # fmt: skip
    return in_a_file("\n".join(json.dumps(row) for row in rows), "a.jsonl", rows_of)


def template(text: str) -> object:
    from engine.tokenization.chat_template import ChatTemplate, RenderError, TemplateSyntaxError

    with contextlib.suppress(RenderError, TemplateSyntaxError):
        ChatTemplate("crafted", text)
    plain = ChatTemplate("plain", "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")
    try:
        return plain.render([{"role": "user", "content": text}], None)
    except RenderError:
        return None


def configuration(text: str) -> object:
    from engine.config import load_mapping

    return in_a_file(text, "config.yaml", load_mapping)


def hosts(text: str) -> object:
    from engine.config import hosts as module

    return in_a_file(text, "hosts", lambda path: module.read_hostfile(path, 8))


def attributes(text: str) -> object:
    from engine.data.gitattributes import Attributes
    from engine.data.safe_files import Folder

    def use(path: Path) -> object:
        return Attributes(Folder(str(path.parent)), [PurePosixPath(path.name)]).of(PurePosixPath("src/a/b.py"))

    return in_a_file(text.replace("\n", " linguist-generated\n"), ".gitattributes", use)


def patch(text: str) -> object:
    from engine.data.history import _patch

    head = [b"m abc\n", b"message\n", b"m\n"]
    body = [
        line.encode("utf-8", "replace") + b"\n"
        for line in ("diff --git a/a b/a\n--- a/a\n+++ b/a\n" + text).split("\n")
    ]
    return _patch([*head, *body], b"m ", b"m")


def sessions(text: str) -> object:
    from engine.data.sessions.formats import read_sessions

    content = "\n".join(
        json.dumps({"type": "user", "message": {"role": "user", "content": piece}}) for piece in text.split("\n")
    )
    return [list(read_sessions(Path("a.jsonl"), data.encode("utf-8", "replace"))) for data in (content, text)]


def safetensors(text: str) -> object:
    from engine.models.safetensors_header import read_header

    def use(path: Path) -> object:
        for head in (text.encode("utf-8", "replace"), json.dumps({"__metadata__": {"a": text}}).encode()):
            path.write_bytes(len(head).to_bytes(8, "little") + head)
            with contextlib.suppress(Exception):
                read_header(path)
        return None

    return in_a_file("", "model.safetensors", use)


def answer(text: str) -> object:
    from engine.evaluation.asking import _FENCE

    return [found.end() for found in _FENCE.finditer(text)]


def model_config(text: str) -> object:
    from engine.models.config_reader import spec_from_config

    try:
        return spec_from_config({"model_type": "llama", "architectures": [text], "hidden_size": text}, name=text)
    except Exception:
        return None


# --- expressions -------------------------------------------------------------------------------------------


def expressions() -> dict[str, Run]:
    """Returns every compiled expression of the modules, each searched from everywhere in a text."""
    import elite_tui
    import engine

    found: dict[str, re.Pattern[Any]] = {}

    def collect(name: str, value: object, depth: int = 0) -> None:
        if isinstance(value, re.Pattern):
            found.setdefault(f"{name} {value.pattern!r:.60}", value)
        elif depth < 4 and isinstance(value, (tuple, list)):
            for item in value:
                collect(name, item, depth + 1)
        elif depth < 4 and isinstance(value, dict):
            for item in value.values():
                collect(name, item, depth + 1)
        elif depth < 3 and hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
            for item in vars(value).values() if hasattr(value, "__dict__") else ():
                collect(name, item, depth + 1)

    for package in (engine, elite_tui):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("__main__"):
                continue
            try:
                content = vars(importlib.import_module(module.name))
            except Exception as error:
                print(f"{module.name} is left out: {error}", file=sys.stderr)
                continue
            for name, value in content.items():
                collect(f"{module.name}.{name}", value)
    return {name: _search(pattern) for name, pattern in found.items()}


def _search(pattern: re.Pattern[Any]) -> Run:
    own = _literals(pattern)

    def run(text: str) -> object:
        data: Any = text.encode("utf-8", "replace") if isinstance(pattern.pattern, bytes) else text
        return sum(1 for _ in pattern.finditer(data))

    run.units = tuple(dict.fromkeys((*own, *(a + b for a in own for b in own if a != b))))[:60]  # type: ignore[attr-defined]
    return run


def _literals(pattern: re.Pattern[Any]) -> list[str]:
    """Returns the literal words of an expression."""
    text = pattern.pattern.decode("latin-1") if isinstance(pattern.pattern, bytes) else pattern.pattern
    words = re.findall(r"[A-Za-z_@#<>=:/\"'`-]{2,}", re.sub(r"\\[a-zA-Z]|\(\?P<\w+>|\(\?[:=!<]+", " ", text))
    signs = [one for one in string.punctuation + " \t\n" if one in text]
    return [*dict.fromkeys(words)][:8] + signs[:8]


# --- measuring ---------------------------------------------------------------------------------------------


def seconds(run: Run, text: str) -> float:
    began = time.process_time()
    run(text)
    return time.process_time() - began


def measure(run: Run, unit: str, largest: int, long: float) -> tuple[float, float, int]:
    """Returns the ratio of the last two sizes, the seconds of the last, and its size."""
    size, former, now = SMALLEST, 0.0, seconds(run, texts(unit, SMALLEST))
    while size < largest and now < long:
        size, former = 4 * size, now
        now = seconds(run, texts(unit, size))
    if former and now > 0.02 and now > STEEP * former:  # another process may have had the processor's caches
        former = max(former, *(seconds(run, texts(unit, size // 4)) for _ in range(2)))
        now = min(now, *(seconds(run, texts(unit, size)) for _ in range(2))) if now < 2 else now
    return (now / former if former > 0.0005 else 4.0), now, size


def swept(run: Run, largest: int, long: float) -> list[tuple[str, float, float, int]]:
    """Measures every shape in a child process, which a shape that takes too long ends."""
    units = [*UNITS, *getattr(run, "units", ())]
    found = []
    while units:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
            try:
                for index, unit in enumerate(units):
                    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + MOST_S, resource.RLIM_INFINITY))
                    os.write(writer, json.dumps([index, *measure(run, unit, largest, long)]).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as lines:
            done = [json.loads(line) for line in lines if line.endswith("]\n")]
        os.waitpid(child, 0)
        found += [(units[index], ratio, took, size) for index, ratio, took, size in done]
        rest = units[len(done) :]
        if rest:
            found.append((rest[0], float("inf"), float(MOST_S), 0))
        units = rest[1:]
    return found


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--expressions", action="store_true")
    arguments.add_argument("--only", default="")
    options = arguments.parse_args()
    over = 0
    for name, run in (expressions() if options.expressions else parsers()).items():
        if options.only.lower() not in name.lower():
            continue
        rows = swept(run, *((LARGEST // 8, LONG_S / 10) if options.expressions else (LARGEST // 8, LONG_S / 2)))
        per_megabyte = [(took * ((1 << 20) / size if size else 1), unit, ratio) for unit, ratio, took, size in rows]
        slowest, unit, ratio = max(per_megabyte)
        steep = [
            (shape, rise, took, size) for shape, rise, took, size in rows if rise > STEEP and (took > 0.02 or not size)
        ]
        over += bool(steep)
        if steep or not options.expressions:
            print(f"{name:44} {len(rows):4} shapes, slowest {unit!r:24} ×{ratio:.1f} {slowest:8.2f} s/MB", flush=True)
        for shape, rise, took, size in sorted(steep, key=lambda row: -row[1])[:6]:
            print(f"    over: {shape!r:40} ×{rise:.1f}, {took:.2f} s for {size:,} characters", flush=True)
    print(f"{over} over")
    return over > 0


if __name__ == "__main__":
    raise SystemExit(main())
