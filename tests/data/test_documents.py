from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.repositories import Write

from engine.data.collect import SourceFile
from engine.data.documents import Document, decode, path_line, read_document
from engine.data.safe_files import Folder


@given(st.text())
def test_utf8_is_read_as_it_is(text: str) -> None:
    if not text.startswith("\ufeff"):
        assert decode(text.encode(), "Python") == text


@given(st.binary(max_size=200))
def test_what_is_decoded_encodes_to_the_same_bytes(content: bytes) -> None:
    text = decode(content, "C")
    if text is not None and not content.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        assert content in (text.encode(), text.encode("latin-1", "replace"))


@pytest.mark.parametrize(
    ("content", "language", "text"),
    [
        (b"\xef\xbb\xbfx = 1\r\n", "Python", "x = 1\r\n"),
        ("class Ä {}".encode("utf-16"), "C#", "class Ä {}"),
        ("# -*- coding: cp1251 -*-\n# Привет\n".encode("cp1251"), "Python", "# -*- coding: cp1251 -*-\n# Привет\n"),
        (b"# coding: no-such-code\n# \xff\n", "Python", None),
        (b"# coding: zlib\n# \xff\n", "Python", None),
        (
            "/* Größe der Datei in Bytes, höchstens */\n".encode("latin-1"),
            "C",
            "/* Größe der Datei in Bytes, höchstens */\n",
        ),
        ("/* Размер файла */\n".encode("cp1251"), "C", None),
        (b"int x; \x01\xff\n" * 9, "C", None),
        (b"\xff\xfeA", "C", None),
    ],
)
def test_encodings(content: bytes, language: str, text: str | None) -> None:
    assert decode(content, language) == text


def read(root: Path, name: str, limit: int = 10_000) -> Document | str:
    return read_document(Folder(str(root)), SourceFile(root, name, "C", 0), limit)


def test_files_that_turn_out_otherwise(write: Write) -> None:
    root = write(
        {
            "late.c": b"x\n" * 2000 + b"\0",
            "blank.c": " \n" * 50,
            "cyrillic.c": "Привет".encode("koi8-r"),
            "large.c": b"x" * 10_001,
            "good.c": "int x;\n",
        }
    )
    assert [read(root, f"{name}.c") for name in ("late", "blank", "cyrillic", "large", "gone")] == [
        "binary",
        "empty",
        "encoding",
        "too large",
        "missing",
    ]
    good = read(root, "good.c")
    assert isinstance(good, Document)
    assert good.text == "int x;\n"
    os.mkfifo(root / "pipe.c")
    assert read(root, "pipe.c") == "special"


def test_path_lines_are_one_printable_line() -> None:
    name = os.fsdecode(b"a\nb\x1b[31m\xff\xe2\x80\xae.py")
    line = path_line(SourceFile(Path("/r"), f"src/{name}", "Python", 1))
    assert line.isprintable()
    assert line == r"src/a\nb\x1b[31m\udcff\u202e.py"
    line.encode()
