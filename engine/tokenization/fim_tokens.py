"""Finds the tokens that a tokenizer has for fill-in-the-middle."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine import regular_file

_KINDS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder2, Granite
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
)


@dataclass(frozen=True)
class FimTokens:
    """Ids of the tokens before the prefix, the suffix and the middle."""

    prefix: int
    suffix: int
    middle: int


def find_tokens(token_to_id: Callable[[str], int | None]) -> FimTokens | None:
    """Finds the fill-in-the-middle tokens of a tokenizer; None if it has none."""
    for names in _KINDS:
        ids = [found for name in names if (found := token_to_id(name)) is not None]
        if len(ids) == len(names):
            return FimTokens(*ids)
    return None


def has_tokens(path: Path) -> bool | None:
    """Tells whether a tokenizer.json has tokens for fill-in-the-middle; None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _has_tokens(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _has_tokens(path: Path, _size: int, _changed: int) -> bool | None:
    try:
        stored = regular_file.read_object(path, follow=True, bounded=False)
        vocabulary = stored["model"]["vocab"]
        names = set(vocabulary if isinstance(vocabulary, dict) else (row[0] for row in vocabulary))
        names |= {token["content"] for token in stored.get("added_tokens", ())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return find_tokens(lambda name: 0 if name in names else None) is not None
