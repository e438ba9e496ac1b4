"""Tells whether a model can fill in the middle before its tokenizer is loaded. Imports no torch and no tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.assets import asset
from engine.tokenization.fim_tokens import has_tokens

if TYPE_CHECKING:
    from engine.models.spec import ModelSpec


def can_fill_in(spec: ModelSpec) -> bool | None:
    """Tells whether a model's tokenizer has tokens for fill-in-the-middle; None where nothing here says so.

    The catalogue says it of some models. A tokenizer.json says it of the embedded model and of local directories.
    """
    if spec.fim:
        return True
    if spec.name == "demo":
        return has_tokens(asset("demo-model", "tokenizer.json"))
    return None if spec.path is None else has_tokens(spec.path / "tokenizer.json")
