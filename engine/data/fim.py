"""Fill-in-the-middle: a file's middle moved behind what follows it, so that the model learns to write it.

(Bavarian et al., arXiv 2207.14255.) Prefix, suffix and middle stand between the model's own tokens, in the order that
its editors' plug-ins use. Every character stays, once. Whether a file is chosen, and where it is cut, follows from its
path and content alone.

Middles are what people ask an editor for: the block below a line, whole lines, or the rest of one. A model that learns
middles cut at two random places of a file learns that they go on for thousands of characters, and no longer ends what
it fills in (docs/embedded-model.md).
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from typing import TYPE_CHECKING

from engine.errors.data import FIM_UNAVAILABLE
from engine.quantities import counted

if TYPE_CHECKING:
    from engine.config import DataSection
    from engine.tokenization.fim_tokens import FimTokens

REVISION = 3
"Raised when files would be cut otherwise; part of every store's key."
LONGEST = 12_000
"Characters. A window's border seldom falls into a file of this length, and then cuts it like any other."
_SHORTEST = 100
_MIDDLE = (4, 2048)
"Least and most characters of a middle; each doubling is as likely."
_BLOCKS, _LINES = 0.4, 0.3
"Shares of the middles that are the block below a line, and that are whole lines; the others begin and end anywhere."
_TRIES = 8
"Lines that are looked at for a block below them."
_INDENT = re.compile(r"[ \t]*")
DEFAULT_SHARE = 0.5
"""Share of the files where none is set. benchmarks/fim_shares.py measured it; half of the files keep their own order,
which windows of a repository need to show imports before their uses."""


def share_of(data: DataSection, tokens: FimTokens | None) -> float:
    """Returns `data.fim`, or the default where it is unset: DEFAULT_SHARE with tokens for it, else 0.

    Args:
        data: Of the run.
        tokens: Those of the model's tokenizer; None if it has none.

    Raises:
        EliteError: FIM_UNAVAILABLE for a share that is set, without tokens.
    """
    if data.fim is None:
        return DEFAULT_SHARE if tokens is not None else 0.0
    if data.fim and tokens is None:
        raise FIM_UNAVAILABLE(rate=data.fim)
    return data.fim


def share_in_words(share: float, files: int) -> str | None:
    """Says which share of how many files is rearranged; None where nothing is."""
    if not (share and files):
        return None
    which = f"{share:.0%} of {counted(files, 'training file')}"
    return f"fill-in-the-middle in {which}, as far as they have {_SHORTEST} to {LONGEST:,} characters"


def cut_points(text: str, name: str, digest: bytes, rate: float) -> tuple[int, int] | None:
    """Where a file's middle begins and ends; None for a file that stays as it is.

    Args:
        text: Of the file.
        name: Its path.
        digest: Of its content.
        rate: Share of files that are chosen.
    """
    if not _SHORTEST <= len(text) <= LONGEST:
        return None
    seed = hashlib.blake2b(digest + name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    draw = random.Random(int.from_bytes(seed, "big"))
    if draw.random() >= rate:
        return None
    kind = draw.random()
    if kind < _BLOCKS and (block := _block(text, draw)) is not None:
        return block
    begin, end = _anywhere(text, draw)
    return (
        (begin, end) if kind >= _BLOCKS + _LINES else _bare(text, _line_start(text, begin), _line_end(text, end), draw)
    )


def _anywhere(text: str, draw: random.Random) -> tuple[int, int]:
    least, most = map(math.log, _MIDDLE)
    length = min(len(text), round(math.exp(draw.uniform(least, most))))
    begin = draw.randrange(len(text) - length + 1)
    return begin, begin + length


def _block(text: str, draw: random.Random) -> tuple[int, int] | None:
    """Returns the lines below a random one that are indented deeper, as of a function or a branch; None without any."""
    for _ in range(_TRIES):
        head = _line_start(text, draw.randrange(len(text)))
        outside = _indent(text, head)
        first = line = _line_end(text, head) + 1
        end = None
        while outside is not None and line < len(text) and line - first <= _MIDDLE[1]:
            inside, after = _indent(text, line), _line_end(text, line)
            if inside is not None:
                if inside <= outside:
                    break
                end = after
            line = after + 1
        if end is not None and end - first <= _MIDDLE[1]:
            return _bare(text, first, end, draw)
    return None


def _bare(text: str, begin: int, end: int, draw: random.Random) -> tuple[int, int]:
    """Leaves the first line's blanks to the prefix in half of the cases, as where a cursor stands behind them."""
    return (min(end, begin + (_indent(text, begin) or 0)) if draw.random() < 0.5 else begin), end


def _line_start(text: str, place: int) -> int:
    return text.rfind("\n", 0, place) + 1


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end


def _indent(text: str, line: int) -> int | None:
    """Returns how many blanks the line at `line` begins with; None for one of blanks alone."""
    found = _INDENT.match(text, line)
    place = line if found is None else found.end()
    return None if place >= len(text) or text[place] in "\r\n" else place - line
