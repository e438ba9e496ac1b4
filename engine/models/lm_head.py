"""LM head and cross-entropy, computed in chunks of tokens.

fp32 logits of 32K tokens over a vocabulary of 152K take 20 GB. Only the sum of the cross-entropies is needed, so the
logits of one chunk exist at a time, in the forward and in the backward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from engine import errors
from engine.models.loss_chunk import loss_chunk

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def split_head(model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    """Returns the decoder (token ids → final hidden states, after its norm) and the head (hidden states → logits)."""
    return model.base_model, model.get_output_embeddings()


def piece_of(head: nn.Module) -> int:
    """Returns the tokens of a loss chunk, as the plan counts them."""
    return loss_chunk(int(head.out_features))  # type: ignore[arg-type]


def summed_cross_entropy(
    hidden: Tensor, head: nn.Module, targets: Tensor, piece: int | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Sums the cross-entropy over tokens, in nats, fp32, differentiable in `hidden` and the head's weights.

    Args:
        hidden: Final hidden states. Shape (n, d).
        head: Maps (p, d) to logits (p, vocabulary).
        targets: The token that follows each position. Shape (n,), int64.
        piece: Tokens per chunk; any value gives the same sum up to rounding. None means `piece_of(head)`.
        label_smoothing: Probability moved from the target to the whole vocabulary (arXiv 1512.00567).
    """
    piece = piece or piece_of(head)
    total = hidden.new_zeros((), dtype=torch.float32)
    # The backward of a single chunk starts with its logits, so recomputing them would save nothing.
    recompute = torch.is_grad_enabled() and hidden.shape[0] > piece
    for start in range(0, hidden.shape[0], piece):
        part = slice(start, start + piece)
        if recompute:
            total = total + checkpoint(
                _piece_loss, hidden[part], head, targets[part], label_smoothing, use_reentrant=False
            )
        else:
            total = total + _piece_loss(hidden[part], head, targets[part], label_smoothing)
    return total


def _piece_loss(hidden: Tensor, head: nn.Module, targets: Tensor, label_smoothing: float) -> Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="sum", label_smoothing=label_smoothing)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Makes sure that the head alone turns the decoder's output into the model's own logits.

    A few families scale or cap their logits after the head, so their loss cannot be computed in chunks this way. The
    layers do not run, because weights may be on the host while fused kernels, which need a GPU, are already in place.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    decoder, head = split_head(model)
    weight: Tensor = head.weight  # type: ignore[assignment]
    hidden = torch.randn((1, 8, weight.shape[1]), generator=torch.Generator().manual_seed(0)).to(weight)
    with _answering(decoder, hidden), torch.no_grad():
        ids = torch.zeros((1, 8), dtype=torch.long, device=weight.device)
        expected = model(input_ids=ids, use_cache=False).logits
        found = head(hidden)
    if not torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-2):
        raise errors.MODEL_FAMILY_UNSUPPORTED(
            family=model.config.model_type,
            feature="the loss in pieces",
            problem="it changes its logits after the head",
            supported="the models that `engine plan` lists",
        )


@contextlib.contextmanager
def _answering(decoder: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Makes the decoder return these hidden states, (batch, tokens, hidden), for any input within the context."""
    from transformers.modeling_outputs import MoeModelOutputWithPast

    own = decoder.__dict__.get("forward")
    decoder.__dict__["forward"] = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=hidden)
    try:
        yield
    finally:
        if own is None:
            del decoder.__dict__["forward"]
        else:
            decoder.__dict__["forward"] = own
