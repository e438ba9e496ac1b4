"""Sources as tokens: texts, those that are rearranged for fill-in-the-middle, and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.data.chats import Chats, encode_continued
from engine.data.conversations import LANGUAGE as CONVERSATION
from engine.data.conversations import Conversation
from engine.data.documents import path_line
from engine.data.fim import cut_points
from engine.data.history import LANGUAGE as DIFF
from engine.data.languages import NOTEBOOK
from engine.data.reading import ReadFile
from engine.data.rows import TEXT, Row
from engine.tokenization.encoder import Encoder

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.data.collect import SourceFile
    from engine.tokenization.chat_encoder import EncodedConversation


@dataclass(frozen=True, eq=False)
class Encoded:
    """A source as tokens. Arrays are of shape (tokens,), but for the places that are good for a cut."""

    ids: npt.NDArray[np.uint32]
    places: npt.NDArray[np.int64]
    learnt: npt.NDArray[np.bool_] | None = None
    weights: npt.NDArray[np.float64] | None = None
    shortened: bool = False


@dataclass(frozen=True)
class Making:
    """How sources become tokens."""

    encoder: Encoder
    chats: Chats | None
    fim: float
    cut: int | None
    "Tokens above which the output of tools in conversations is shortened."


def encode_sources(
    batch: Sequence[tuple[ReadFile, str | Conversation]], rates: Sequence[float], making: Making
) -> list[Encoded]:
    """Encodes sources, in their order, with the share of fill-in-the-middle of each."""
    made: dict[int, Encoded] = {}
    continued: list[tuple[int, Conversation]] = []
    chats: list[tuple[int, Conversation]] = []
    documents = []
    for number, ((item, content), rate) in enumerate(zip(batch, rates, strict=True)):
        if isinstance(content, Conversation):
            sides = [content] if content.rejected is None else [content, content.rejected]
            (continued if content.is_continued else chats).extend((number, side) for side in sides)
        else:
            documents.append((number, (path_line(item.file), content, _middle(item, content, rate))))
    encoder = making.encoder
    for (number, (_, text, middle)), ids in zip(
        documents, encoder.encode_middles([document for _, document in documents]), strict=True
    ):
        # What is rearranged has no place that is good for a cut.
        lines = batch[number][0].definitions[: 0 if middle else None]
        file = batch[number][0].file
        weights = np.full(len(ids), file.weight) if isinstance(file, Row) and file.weight != 1 else None
        made[number] = Encoded(ids, encoder.lines_to_tokens(ids, text, lines), weights=weights)
    found = encode_continued(encoder, [one for _, one in continued])
    if making.chats is not None:
        found += making.chats.encode([one for _, one in chats], making.cut)
    for (number, _), encoded in zip((*continued, *chats), found, strict=True):
        if number in made:  # the rejected side follows the chosen one
            made[number] = _both(made[number], encoded)
        else:
            made[number] = Encoded(encoded.ids, encoded.turns, encoded.learnt, encoded.weights, encoded.shortened)
    return [made[number] for number in range(len(batch))]


def _both(chosen: Encoded, rejected: EncodedConversation) -> Encoded:
    """Both sides of a preference one after the other, with the border between them as the only place for a cut."""
    assert chosen.learnt is not None
    return Encoded(
        np.concatenate([chosen.ids, rejected.ids]),
        np.array([len(chosen.ids)], dtype=np.int64),
        np.concatenate([chosen.learnt, rejected.learnt]),
        shortened=chosen.shortened or rejected.shortened,
    )


def may_be_rearranged(file: SourceFile) -> bool:
    """Tells whether fill-in-the-middle may rearrange a source by its kind: files, and rows that name one of code."""
    prose = isinstance(file, Row) and file.language == TEXT
    return not prose and file.language not in (CONVERSATION, DIFF, NOTEBOOK)


def _middle(item: ReadFile, text: str, rate: float) -> tuple[int, int] | None:
    if not rate or not may_be_rearranged(item.file):
        return None
    return cut_points(text, path_line(item.file), item.digest, rate)
