"""Opens standard input, output and error where a process was started without them."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO


def open_standard_streams() -> None:
    """Opens each of them that is closed on the null device, for child processes too.

    Otherwise the next file that is opened has its number: what a library prints would end up in a checkpoint, and
    what is read of a terminal would be read of it. Python leaves the streams out (None), which few libraries expect.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(opened, True)  # child processes need them as well
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and not writes_unicode(sys.stdout):
        # As stderr, which escapes what a locale such as ISO-8859-1 lacks.
        codecs.register_error(_PLAIN, _in_ascii)
        sys.stdout.reconfigure(errors=_PLAIN)


_PLAIN = "elite-tui-plain"
_IN_ASCII = (
    {"✓": "+", "✗": "x", "–": "-", "—": "-", "·": "-", "•": "*", "→": ">", "←": "<", "…": "...", "×": "x", "≈": "~"}
    | {"≤": "<=", "≥": ">=", "−": "-", "★": "*", "▲": "^", "●": "*", "○": "o", "█": "#", "━": "-", "─": "-", "│": "|"}
    | {"“": '"', "”": '"', "‘": "'", "’": "'"}
)
"What stands for marks where an encoding lacks them, so that ✓ and ✗ do not look alike; letters become ?."


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replaces characters that an encoding lacks, for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_IN_ASCII.get(char, "?") for char in error.object[error.start : error.end]), error.end


def writes_unicode(stream: TextIO) -> bool:
    """Whether a stream's encoding has all characters."""
    return (stream.encoding or "").lower().replace("-", "").replace("_", "").startswith("utf")
