"""Folders of a tiny model."""

from __future__ import annotations

import shutil

import pytest
from support.model_folders import TOKENIZER
from support.tiny import tiny_model

from engine.assets import asset


@pytest.fixture
def make(tmp_path):
    """Makes a folder of a tiny model."""

    def made(family="llama", name="base", **shape):
        path = tmp_path / name
        tiny_model(family, vocab_size=8192, **shape).save_pretrained(path)
        for file in TOKENIZER:
            shutil.copy(asset("demo-model", file), path / file)
        return path

    return made
