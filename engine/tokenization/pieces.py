"""Cuts a long text into pieces, so that processing it takes bounded memory."""

from __future__ import annotations

_PIECE = 1 << 20
"Characters per piece."


def cut(text: str) -> list[str]:
    """Cuts text into pieces of at most _PIECE characters, after line ends where possible. They concatenate to it."""
    pieces = []
    start = 0
    while len(text) - start > _PIECE:
        end = text.rfind("\n", start, start + _PIECE) + 1
        if end <= start:
            end = start + _PIECE
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces
