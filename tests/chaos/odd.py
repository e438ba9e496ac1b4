"""Odd values and words, and files with parts changed: what somebody else's program, or a bad disk, may have written."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 10**400, 1e308, -1e308, 1e-320, 0.5, -0.0, "", "x",
    "\x1b[31m[bold]x", "\x1b]0;title\x07", "a" * 5000, "\u202e\u200b\ud800", "[/]", [], {}, [1], {"a": 1}, [[[]]],
)  # fmt: skip
WORDS = (
    "", "0", "-1", "1e999", ".nan", "nan", "1e-320", "9" * 20, "1" + "0" * 5000, "true", "null", "[]", "{}", "{a: b}",
    "'x'", '"\\u0000"', "\x1b[31mred", "[bold]x[/bold]", "a" * 10_000, "1_000", "0x10", "~nobody/x", "$HOME", "%s%n",
    "2026-01-01", "!!python/object/apply:os.system ['id']", "&a [*a]", "\ud800", "é", "[" * 3000, "1:30:00", "a=b",
    "--", "-", "@file", "nope/nope", "/dev/null/x", "/proc/none",
)  # fmt: skip
"""Safe wherever something may be written: a path below the present folder, or one that cannot exist."""
READ_WORDS = (*WORDS, "auto", "demo", "/dev/zero", "/dev/null", "/proc/self/fd", "../../../etc/passwd", "~", ".")
"""For what is only read."""

_FRAGMENTS = (
    b"- ", b": ", b"{", b"}", b"[", b"]", b"!!python/object/apply:os.system", b"&a *a", b"\x00", b"\xff\xfe", b"\n\n",
    b"null", b"1e999", b"-1", b"'", b'"', b"\t", b"%YAML 9", b"<<: *x", b"?", b"\xf0\x9f\x92\xa9", b"9" * 24,
)  # fmt: skip
_NO_OBJECTS = (b"", b"[", b"[" * 30_000, b'{"a":' * 50_000, b"null", b"[]", b"1e999", b"\0", b"\xff\xfe{}", b'"x"')


def odd(value: Any, rng: random.Random) -> Any:
    """The value with one part removed, repeated, or replaced by something odd."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        chance = rng.random()
        if chance < 0.12:
            del value[key]
        elif chance < 0.5 and isinstance(value[key], (dict, list)):
            value[key] = odd(value[key], rng)
        else:
            value[key] = copy.deepcopy(rng.choice(ODD))
        return value
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        value[place] = odd(value[place], rng)
        return value
    return copy.deepcopy(rng.choice(ODD))


def word(rng: random.Random, words: tuple[str, ...] = READ_WORDS) -> str:
    """An odd argument, as a shell may pass it: surrogates are bytes that are no UTF-8, and there is no NUL."""
    text = rng.choice(words) + (rng.choice(WORDS) if rng.random() < 0.15 else "")
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape").replace("\0", "")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: flipped, inserted, removed, repeated, cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at:at] = rng.choice(_FRAGMENTS)
        elif kind == 2:
            del changed[at : at + rng.randint(1, 40)]
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randint(1, 60)]
        elif kind == 4:
            del changed[at:]
        else:
            changed[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(changed)


def odd_json(original: bytes, rng: random.Random) -> bytes:
    """A JSON document with odd parts, or bytes that are none."""
    chance = rng.random()
    if chance < 0.08:
        return rng.choice(_NO_OBJECTS)
    if chance < 0.2:
        return mutate(original, rng)
    value = json.loads(original)
    for _ in range(rng.randint(1, 3)):
        value = odd(value, rng)
    return json.dumps(value).encode()


def odd_header(original: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is odd, too long, or cut off."""
    length = struct.unpack("<Q", original[:8])[0]
    header, tensors = original[8 : 8 + length], original[8 + length :]
    chance = rng.random()
    if chance < 0.6:
        header = odd_json(header, rng)
        return struct.pack("<Q", len(header)) + header + tensors
    if chance < 0.8:
        return mutate(original[: 8 + length], rng) + tensors
    said = rng.choice([0, 1, length - 3, length + 1, 2**40, 2**63, 2**64 - 1])
    return struct.pack("<Q", said) + original[8 : rng.randrange(8, len(original))]


DAMAGES = ("emptied", "zeroed", "truncated", "gone", "a folder", "a FIFO", "a link to a device", "a link to nothing",
           "a link to itself", "unreadable")  # fmt: skip
"""What may have become of a whole file."""


def damage(path: Path, kind: str) -> None:
    """Does one of `DAMAGES` to a file or, where it can be, a folder."""
    size = path.stat().st_size
    if kind == "unreadable":
        path.chmod(0)
        return
    if kind in ("emptied", "zeroed", "truncated") and path.is_file():
        content = path.read_bytes()
        path.write_bytes({"emptied": b"", "zeroed": bytes(size)}.get(kind, content[: len(content) // 2]))
        return
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind in ("a folder", "emptied"):
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind.startswith("a link"):
        path.symlink_to({"a link to a device": "/dev/zero", "a link to nothing": "nowhere"}.get(kind, path.name))
