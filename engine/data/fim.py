"""Fill-in-the-middle: a file's middle moved behind what follows it, so that the model learns to write it.

(Bavarian et al., arXiv 2207.14255.) Prefix, suffix and middle stand between the model's own tokens, in the order that
its editors' plug-ins use. Every character stays, once. Whether a file is chosen, and where it is cut, follows from its
path and content alone.
"""

from __future__ import annotations

import hashlib
import random

REVISION = 2
"Raised when files would be cut otherwise; part of every store's key."
LONGEST = 12_000
"Characters. A window's border seldom falls into a file of this length, and then cuts it like any other."
_SHORTEST = 100


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
    begin, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    return begin, end
