"""Proves the model of a local folder, and keeps the proof."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoConfig

from engine.errors.model import MODEL_DIRECTORY_INVALID, MODEL_FAMILY_UNSUPPORTED
from engine.models.proofs import Proof, keep_proof
from engine.models.wrappers import text_settings
from engine.verify.family_proof import prove_family


def prove_folder(folder: Path) -> Proof:
    """Proves a model's configuration; the proof is kept in the user's cache.

    Raises:
        EliteError: MODEL_DIRECTORY_INVALID, where its config.json cannot be read; MODEL_FAMILY_UNSUPPORTED, where
            transformers has no causal language model for it.
    """
    path = folder / "config.json"
    try:
        settings = text_settings(json.loads(path.read_text(encoding="utf-8")))
        family = str(settings.get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        problem = f"its config.json cannot be read ({error})"
        raise MODEL_DIRECTORY_INVALID(path=folder, problem=problem) from error
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config(decoder=True)
        config.to_dict()  # which fails where a part of it is of another kind
    except MemoryError:
        raise
    except Exception as error:  # of any kind, by what config.json holds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MODEL_FAMILY_UNSUPPORTED(
            family=family, feature="transformers", problem=lines[0].rstrip("."), supported="the models that it knows"
        ) from error
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    try:
        proof = prove_family(config, settings)
    finally:
        torch.set_num_threads(threads)
    keep_proof(proof)
    return proof
