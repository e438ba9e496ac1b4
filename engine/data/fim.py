"""Fill-in-the-middle: a file's middle moved behind what follows it, so that the model learns to write it.

(Bavarian et al., arXiv 2207.14255.) Prefix, suffix and middle stand between the model's own tokens, in the order that
its editors' plug-ins use. Every character stays, once. Whether a file is chosen, and where it is cut, follows from its
path and content alone.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from engine.errors.data import FIM_UNAVAILABLE
from engine.quantities import counted

if TYPE_CHECKING:
    from engine.config import DataSection
    from engine.tokenization.fim_tokens import FimTokens

REVISION = 2
"Raised when files would be cut otherwise; part of every store's key."
LONGEST = 12_000
"Characters. A window's border seldom falls into a file of this length, and then cuts it like any other."
_SHORTEST = 100
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
    begin, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    return begin, end
