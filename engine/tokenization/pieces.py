"""Cuts a long text, so that whatever is done with it takes bounded memory."""

from __future__ import annotations

_PIECE = 1 << 20
"Characters."


def cut(text: str) -> list[str]:
    """Pieces of at most _PIECE characters, cut after line ends where there are any; together they are the text."""
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
