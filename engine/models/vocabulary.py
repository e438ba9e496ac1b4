"""Makes sure that every token id that a text can produce has a row in the model's embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors.model import MODEL_DIRECTORY_INVALID


def check_vocabulary(path: str | Path, tokenizer: Any, rows: int) -> None:
    """Refuses a tokenizer with ids beyond the model's rows.

    Surplus rows are padding. A control token beyond the rows is allowed if nothing emits it; Gemma 3's text models have
    one for images.

    Args:
        path: Path of the model, for the message.
        tokenizer: A fast tokenizer of transformers.
        rows: Rows of the embedding.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID.
    """
    beyond = {number: text for text, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    added = tokenizer.added_tokens_decoder
    control = {number for number in beyond if number in added and added[number].special}
    bad = sorted(number for number in beyond if number not in control or number in _emitted(tokenizer))
    if bad:
        problem = f"its tokenizer has {beyond[bad[0]]!r} as id {bad[0]:,}, and its model has {rows:,} rows"
        raise MODEL_DIRECTORY_INVALID(path=path, problem=problem)


def _emitted(tokenizer: Any) -> set[int]:
    """Returns the control tokens that training and generation emit."""
    from engine.tokenization.encoder import Encoder

    encoder = Encoder(tokenizer)
    fim = encoder.fim
    used = [encoder.end, encoder.file_mark, tokenizer.bos_token_id]
    if fim is not None:
        used += [fim.prefix, fim.suffix, fim.middle]
    return {number for number in used if number is not None}
