"""The last matrix product and the loss, in pieces.

Logits of n tokens are n rows of one fp32 number a word: 20 GB at 32K tokens and 152K words. Only the sum of the
cross-entropies is wanted, so the logits of one piece exist at a time, in the forward and in the backward.
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
    """The decoder (token ids → final hidden states, after its norm) and the head (hidden states → logits)."""
    return model.base_model, model.get_output_embeddings()


def piece_of(head: nn.Module) -> int:
    """Tokens whose logits exist at once, as the plan counts them."""
    return loss_chunk(int(head.out_features))  # type: ignore[arg-type]


def summed_cross_entropy(
    hidden: Tensor, head: nn.Module, targets: Tensor, piece: int | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Sum over tokens of the cross-entropy, in nats, fp32, differentiable in `hidden` and the head's weights.

    Args:
        hidden: Final hidden states. Shape (n, d).
        head: Maps (p, d) to logits (p, vocabulary).
        targets: The token that follows each position. Shape (n,), int64.
        piece: Tokens whose logits exist at once; any value gives the same sum up to rounding. None: `piece_of(head)`.
        label_smoothing: Probability that all words share instead of the right one (arXiv 1512.00567).
    """
    piece = piece or piece_of(head)
    total = hidden.new_zeros((), dtype=torch.float32)
    # The backward of an only piece starts with its logits: computing them again would save nothing.
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

    A few families scale or cap their logits after the head; their loss cannot be taken in pieces this way. The layers
    do not run: weights may wait on the host while fused kernels, which need a GPU, are in place already.

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
    """Within it, the decoder returns these hidden states, (batch, tokens, hidden), whatever it is asked."""
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
