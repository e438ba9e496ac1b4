"""Data that the standard library writes as lines of text is cut out; code around it and small tables stay."""

from __future__ import annotations

import base64
import binascii
import random
from collections.abc import Callable

import pytest

from engine.data.documents import edited
from engine.data.encoded import find_encoded, without_encoded

DATA = random.Random(3).randbytes(6000)
AROUND = "".join(f"def f{number}(x):\n    return x * {number} + 1\n\n" for number in range(30))


def rows(write: Callable[[bytes], str], width: int) -> str:
    return "\n".join(write(DATA[place : place + width]) for place in range(0, len(DATA), width))


def numbers(form: str, between: str = ", ") -> str:
    draw = random.Random(4)
    return between.join(form.format(draw.uniform(-1, 1) * 1000) for _ in range(600))


def srecord(piece: bytes) -> str:
    return f"S1{len(piece) + 3:02X}0000{piece.hex().upper()}AA"


FORMS = {
    "uuencode": rows(lambda piece: binascii.b2a_uu(piece).decode().rstrip("\n"), 45),
    "ascii85": base64.a85encode(DATA, wrapcol=76).decode(),
    "base85, quoted": rows(lambda piece: f'    "{base64.b85encode(piece).decode()}",', 52),
    "strings of bytes": rows(lambda piece: f"    {piece!r}", 30),
    "Intel": rows(lambda piece: f":{len(piece):02X}000000{piece.hex().upper()}AA", 16),
    "Motorola": rows(srecord, 16),
    "Rust": rows(lambda piece: "    " + ", ".join(f"0x{byte:02x}u8" for byte in piece) + ",", 12),
    "an assembler": rows(lambda piece: "    .byte " + ", ".join(f"0x{byte:02x}" for byte in piece), 12),
    "another": rows(lambda piece: "    db " + ", ".join(f"0{byte:02x}h" for byte in piece), 12),
    "a third": rows(lambda piece: "    dc.b " + ",".join(f"${byte:02x}" for byte in piece), 12),
    "floats, a line each": numbers("    {:.8e}", ",\n"),
    "floats of C": numbers("{:.6f}f"),
    "rows in brackets": "[[" + numbers("{:.4f}", "], [") + "]]",
    "numbers by columns": numbers("{:10.3f}", "  "),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_in_lines_is_cut_out(form: str) -> None:
    text = f"{AROUND}data = (\n{FORMS[form]}\n)\n{AROUND}"
    left = edited(text, find_encoded(text))
    assert left.startswith(f"{AROUND}data = (\n")
    assert left.endswith(f")\n{AROUND}")
    assert len(left) < 2 * len(AROUND) + 250
    assert without_encoded(f"x = (\n{FORMS[form]}\n)\n", []) is None


def test_what_people_write_and_read_stays() -> None:
    colours = "".join(f'    "\\x1b[{number}m": "colour {number}",\n' for number in range(300))
    letters = "".join(f"    '\\xc3\\x{number:02x}',\n" for number in range(0x80, 0xA0)) * 8
    drawn = "\n".join("+" + "-" * 70 + "+" for _ in range(40))
    table = ", ".join(str(number) for number in range(256))
    names = "\n".join(f"com.example.project.module{number:03d}.ClassOfThatName" for number in range(60))
    steps = "\n".join(f"{number}. Step {number} of the list, which says what to do." for number in range(200))
    for text in (colours, letters, drawn, table, names, steps):
        assert find_encoded(text) == [], text[:60]


def escaped(piece: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in piece)


def addresses(folder: str) -> str:
    draw = random.Random(9)
    keys = (
        "".join(draw.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", k=33))
        for _ in range(60)
    )
    return "".join(f"{folder}/{key[:2]}/{key[2:4]}/{key}.png\n" for key in keys)


STAYS = {
    "PHP's letters": "".join(f'    "\\xC3\\x{code:02X}" => "{chr(65 + code % 26)}",\n' for code in range(0x80, 0xC0)),
    "Python's letters": "".join(f'    b"\\xc3\\x{code:02x}": "x{code}",\n' for code in range(0x80, 0xC0)),
    "pairs": "".join(f'\t{{"\\x{code:02x}", {code}}},\n' for code in range(256)),
    "a key": 'key = b"' + escaped(DATA[:100]) + '"\n',
    "a test's vectors": "".join('    b"' + escaped(DATA[k : k + 8]) + '",\n' for k in range(0, 400, 8)),
    "addresses": addresses("https://images.example.org"),
}


@pytest.mark.parametrize("form", STAYS)
def test_tables_of_short_strings_stay(form: str) -> None:
    assert find_encoded(STAYS[form]) == []


@pytest.mark.parametrize(
    "piece",
    [
        "\\xab\n   ",
        "\\xab" * 63 + "z" * 13,
        "\\xab   \n   ",
        "0x1u8," * 63 + ";",
        "0x1,\n.byte ",
        "01fh," * 63 + ";",
        "$ff,",
        "1.5,",
        "1.5," * 500 + "x",
        "M" + "a" * 60 + "\n",
        ":" + "a" * 20 + "\n",
        "a1A!" * 12 + "\n",
        "\n",
        "\n    ",
    ],
)
def test_made_up_text_takes_time_in_line_with_its_length(piece: str) -> None:
    # No time is asserted: what is quadratic takes minutes here, and the suite's limit ends it.
    text = piece * (1_000_000 // len(piece))
    ends = [place for edit in find_encoded(text) for place in (edit.start, edit.end)]
    assert ends == sorted(ends)
