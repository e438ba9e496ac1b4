"""Encodes rendered conversations to token ids, and says which of these the model writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.tokenization.pieces import cut
from engine.tokenization.plain_text import Part

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.tokenization.chat_turns import Piece
    from engine.tokenization.plain_text import PlainText


@dataclass(frozen=True, eq=False)
class EncodedConversation:
    """A conversation as tokens.

    Attributes:
        ids: Shape (tokens,).
        learnt: Whether the model writes each token. Shape (tokens,).
        turns: First token behind each answer, ascending.
        weights: Factor of the loss of each token that the model writes. Shape (tokens,). None: 1 of each.
        shortened: Whether output of tools was left out.
    """

    ids: npt.NDArray[np.uint32]
    learnt: npt.NDArray[np.bool_]
    turns: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64] | None = None
    shortened: bool = False


def encode_conversations(text: PlainText, conversations: Sequence[Sequence[Piece]]) -> list[EncodedConversation]:
    """Encodes conversations together, on all cores.

    Control tokens are those that a template writes. What lies between them is encoded as text, whatever it spells, and
    apart where the model begins or ends: it continues a prompt whose tokens do not change any more.

    Args:
        text: Encodes text without control tokens.
        conversations: Pieces of each.
    """
    ids = {name: token for token, name in reversed(text.control.items())}
    parts: list[Part] = []
    plans: list[list[tuple[int | slice, Piece]]] = []
    for pieces in conversations:
        plan: list[tuple[int | slice, Piece]] = []
        for number, piece in enumerate(pieces):
            if piece.control:
                plan.append((ids[piece.text], piece))
                continue
            # Half of a character outside the basic plane, which JSON may spell out, is no text.
            words = piece.text if piece.text.isascii() else piece.text.encode("utf-8", "replace").decode()
            if number and pieces[number - 1].control and text.strips[ids[pieces[number - 1].text]][1]:
                words = words.lstrip()
            if number + 1 < len(pieces) and pieces[number + 1].control and text.strips[ids[pieces[number + 1].text]][0]:
                words = words.rstrip()
            begins = number == 0 or (text.begins_anew and not piece.continues)
            start = len(parts)
            parts += [Part(some, begins and place == 0) for place, some in enumerate(cut(words)) if some]
            plan.append((slice(start, len(parts)), piece))
        plans.append(plan)
    encoded = text.encode(parts)
    return [_joined(plan, encoded) for plan in plans]


def _joined(
    plan: Sequence[tuple[int | slice, Piece]], encoded: Sequence[npt.NDArray[np.uint32]]
) -> EncodedConversation:
    ids: list[npt.NDArray[np.uint32]] = [np.empty(0, dtype=np.uint32)]
    learnt: list[npt.NDArray[np.bool_]] = [np.empty(0, dtype=bool)]
    weights: list[npt.NDArray[np.float64]] = [np.empty(0)]
    turns: list[int] = []
    length = 0
    for part, piece in plan:
        found = [np.array([part], dtype=np.uint32)] if isinstance(part, int) else encoded[part]
        count = sum(map(len, found))
        if piece.turn and length:
            turns.append(length)
        ids += found
        learnt.append(np.full(count, piece.answer))
        weights.append(np.full(count, piece.weight))
        length += count
    of_tokens = np.concatenate(weights) if any(piece.weight != 1 for _, piece in plan) else None
    places = np.unique(np.array(turns, dtype=np.int64))
    return EncodedConversation(np.concatenate(ids), np.concatenate(learnt), places, of_tokens)
