from __future__ import annotations

import pytest
from support.exports import byte_fallback_tokenizer, byte_level_tokenizer, finished_run, save_base

TOKENIZERS = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}


@pytest.fixture(scope="session")
def tokenizers():
    """By llama.cpp's name for them."""
    made = {name: byte_level_tokenizer(numbers) for name, numbers in TOKENIZERS.items()}
    return {**made, "llama": byte_fallback_tokenizer()}


@pytest.fixture(scope="session")
def qwen_run(tmp_path_factory, tokenizers):
    """One run for what does not depend on the model."""
    path = tmp_path_factory.mktemp("qwen")
    return finished_run(path / "out", save_base(path / "base", "qwen2", tokenizers["qwen2"], tied=True))
