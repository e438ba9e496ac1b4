"""Writes a whole model in Hugging Face's format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from engine import atomic_dir
from engine.tokenization.encoder import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def save_model(model: PreTrainedModel, path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes model and tokenizer with the same end-of-text tokens. The folder appears complete or not at all.

    Raises:
        OSError: the disk is full or not writable.
    """
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    encoder = Encoder(tokenizer)
    for settings in (model.config, model.generation_config):
        if settings is not None:
            settings.eos_token_id = encoder.ends_among(settings.eos_token_id)
    aside.mkdir()  # its parents are not made again
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    atomic_dir.seal(path, aside, {})
