"""Tokens that mark a file's prefix, suffix and middle (Bavarian et al., arXiv 2207.14255)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
