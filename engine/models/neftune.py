"""NEFTune (arXiv 2310.05914): uniform noise on the embeddings while training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def add_embedding_noise(model: Any, alpha: float, context: int) -> None:
    """Adds noise of norm alpha / sqrt(3) a window, on average, to what the embedding returns in training mode.

    Each number is drawn from ±alpha / sqrt(n d). The paper's n is the sequence at hand; here it is the context of the
    run, so that a window gets the same noise whether it passes whole or tile by tile.

    Args:
        model: A causal language model, with or without an adapter.
        alpha: The paper's; 5 there.
        context: Tokens a window.
    """
    embedding: nn.Module = model.get_input_embeddings()

    def disturb(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if not module.training:
            return output
        reach = alpha / (context * output.shape[-1]) ** 0.5
        return output + torch.empty_like(output).uniform_(-reach, reach)

    embedding.register_forward_hook(disturb)
