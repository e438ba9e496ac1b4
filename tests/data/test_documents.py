from __future__ import annotations

import os
from pathlib import Path

from support.repositories import Write

from engine.data.collect import SourceFile
from engine.data.documents import Document, path_line, read_document
from engine.data.safe_files import Folder


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
