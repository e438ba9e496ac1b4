"""Tokens per loss chunk. Imports no torch, because planners use it too."""

from __future__ import annotations

import math

WINDOW_PIECE = 1024
"Least tokens of a loss chunk in the whole step (loss_chunk)."
WINDOW_LOGITS = 2**26
"Logits that may exist at once for a small vocabulary, 256 MiB in fp32."


def loss_chunk(vocabulary: int) -> int:
    """Returns the tokens whose logits exist at once in the whole step (engine.models.lm_head), a power of two.

    A small vocabulary gets longer chunks, because short ones would cost launches and save nothing.
    """
    return max(WINDOW_PIECE, 1 << int(math.log2(max(1, WINDOW_LOGITS // vocabulary))))
