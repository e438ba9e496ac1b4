"""How many tokens' logits exist at once. No torch: planners count with it."""

from __future__ import annotations

import math

WINDOW_PIECE = 1024
"Tokens whose logits exist at once where a window is computed whole, at least (loss_chunk)."
WINDOW_LOGITS = 2**26
"Logits that may exist at once however few the words: 256 MiB in fp32."


def loss_chunk(vocabulary: int) -> int:
    """Tokens whose logits exist at once where a window is computed whole (engine.models.lm_head): a power of two.

    A small vocabulary takes longer pieces: short ones would cost launches and save nothing.
    """
    return max(WINDOW_PIECE, 1 << int(math.log2(WINDOW_LOGITS // vocabulary)))
