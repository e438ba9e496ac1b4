"""Makes tiny random models of real families, and windows over synthetic text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    LlamaConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)

from engine.data.windows import Window, epoch_order

VOCABULARY = 199
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS: dict[str, type[PretrainedConfig]] = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "phi": PhiConfig,
    "starcoder2": Starcoder2Config,
}


def tiny_model(family: str = "qwen2", seed: int = 0, **shape: Any) -> Any:
    """Makes a model of a few ten thousand fp32 weights."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**{**SHAPE, **shape}), attn_implementation="sdpa")
    model.config.use_cache = False
    return model.requires_grad_(False)


def model_without_tiles() -> Any:
    """A GPT-J with random weights, whose attention is its own code: no tile is streamed through it."""
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 512}
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    return AutoModelForCausalLM.from_config(GPTJConfig(**shape, **tokens, initializer_range=0.1)).eval()


class ListWindows:
    """Windows held in memory, of one document each or as given."""

    def __init__(self, windows: Iterable[Window | ArrayLike]) -> None:
        self._windows = [
            window if isinstance(window, Window) else Window(np.asarray(window, dtype=np.int64)) for window in windows
        ]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:
        return self._windows[index]

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return epoch_order(len(self), seed, epoch)


def patterned_windows(lengths: Sequence[int], seed: int = 0) -> ListWindows:
    """Makes windows of a synthetic language whose next token mostly follows from the last one."""
    random = np.random.RandomState(seed)
    follower = np.random.RandomState(7).permutation(VOCABULARY)
    windows = []
    for length in lengths:
        window = [int(random.randint(VOCABULARY))]
        while len(window) < length:
            surprise = random.rand() < 0.2
            window.append(int(random.randint(VOCABULARY)) if surprise else int(follower[window[-1]]))
        windows.append(window)
    return ListWindows(windows)
