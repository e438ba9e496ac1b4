"""NEFTune (arXiv 2310.05914), which adds uniform noise to the embeddings while training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def add_embedding_noise(model: Any, alpha: float, context: int) -> None:
    """Adds noise to the embedding's output in training mode, of norm alpha / sqrt(3) per window on average.

    Each value is drawn uniformly from ±alpha / sqrt(n d). The paper's n is the sequence length; here it is the run's
    context, so that a window gets noise of the same scale in the whole and in the streamed step.

    Args:
        model: A causal language model, with or without an adapter.
        alpha: The paper's alpha, which is 5 there.
        context: Tokens per window.
    """
    embedding: nn.Module = model.get_input_embeddings()

    def disturb(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if not module.training:
            return output
        reach = alpha / (context * output.shape[-1]) ** 0.5
        return output + torch.empty_like(output).uniform_(-reach, reach)

    embedding.register_forward_hook(disturb)
