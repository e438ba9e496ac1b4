"""Cross-entropy of a tile, chunk by chunk, without a tokens × vocabulary tensor (arXiv 2410.10989, 2411.09009)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

IGNORED = -100
"""Label of a position that predicts nothing."""
_DENSE = 0.875
"""Share of labelled positions above which the head is applied to all. Gathering would cost more than it saves."""


def _torch_cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, coefficients: Tensor | None = None
) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    how = "sum" if coefficients is None else "none"
    losses = F.cross_entropy(wide, labels, ignore_index=IGNORED, reduction=how, label_smoothing=label_smoothing)
    return losses if coefficients is None else (losses * coefficients.to(losses.dtype)).sum()


@cache
def _has_fused_cross_entropy(device_type: str) -> bool:
    return device_type == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def loss_and_gradient(
    hidden: Tensor,
    labels: Tensor,
    head: nn.Module,
    *,
    piece: int,
    scale: float,
    label_smoothing: float = 0.0,
    coefficients: Tensor | None = None,
    labelled: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the summed cross-entropy of a tile, and scale × its gradient with respect to `hidden`.

    A head that requires gradients accumulates scale × its own.

    Args:
        hidden: Input of the language-model head, (tokens, hidden), no graph attached.
        labels: Token to predict at each position, (tokens,); IGNORED where none.
        head: The language-model head, a linear layer.
        piece: Tokens of a chunk, whose logits exist at once.
        scale: Multiplies the gradient, not the loss.
        label_smoothing: Probability that is spread over all tokens instead of the label (arXiv 1512.00567).
        coefficients: Factor of each token's loss and gradient, (tokens,), of any sign; None for 1.
        labelled: Ascending positions whose logits are computed, (positions,), int64: at least those with a label. None
            for all. The head is applied to no other position, whose gradient is zero.

    Returns:
        The sum over the tile in nats, a scalar of fp32 or wider; the gradient, (tokens, hidden), in hidden's dtype.
    """
    trains_head = any(p.requires_grad for p in head.parameters())
    fused = isinstance(head, nn.Linear) and _has_fused_cross_entropy(hidden.device.type)
    of_piece = _autograd_piece if not fused else _fused_trained_piece if trains_head else _fused_piece
    gradient = torch.empty_like(hidden) if labelled is None else torch.zeros_like(hidden)
    total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    for part in _chunks(hidden.shape[0], piece, labelled):
        factors = None if coefficients is None else coefficients[part]
        loss, gradient[part] = of_piece(hidden[part], labels[part], head, scale, label_smoothing, factors)
        total += loss
    return total, gradient


def token_losses(
    hidden: Tensor, labels: Tensor, head: nn.Module, *, piece: int, labelled: Tensor | None = None
) -> Tensor:
    """Computes the cross-entropy of each token of a tile, in nats, 0 where IGNORED.

    Arguments are those of `loss_and_gradient`.

    Returns:
        (tokens,), fp32 or wider.
    """
    losses = torch.zeros(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    for part in _chunks(hidden.shape[0], piece, labelled):
        logits = head(hidden[part])
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses[part] = F.cross_entropy(wide, labels[part], ignore_index=IGNORED, reduction="none").to(losses.dtype)
    return losses


def labelled_positions(labels: Tensor) -> Tensor | None:
    """Finds the positions that the head is applied to, where it pays to leave out the others.

    In a session of an agent a fifth of the tokens are predicted; the logits of the others would be in vain.
    Call it with labels on the CPU: a GPU would have to be waited for.

    Args:
        labels: (tokens,); IGNORED where none.

    Returns:
        Ascending positions with a label, the first position if there is none, (positions,), int64. None: all.
    """
    found = torch.nonzero(labels != IGNORED)[:, 0]
    if len(found) > _DENSE * len(labels):
        return None
    # Without a single chunk a trained head would get no gradient, and ranks would add up gradients that are not there.
    return found if len(found) else torch.zeros(1, dtype=torch.int64, device=labels.device)


def _chunks(tokens: int, piece: int, labelled: Tensor | None) -> Iterator[slice | Tensor]:
    """Yields the positions of each chunk. Gathered ones make chunks of even length, at most `piece`."""
    if labelled is None:
        yield from (slice(start, start + piece) for start in range(0, tokens, piece))
    else:
        yield from labelled.tensor_split(-(-len(labelled) // piece))


def _autograd_piece(
    hidden: Tensor, labels: Tensor, head: nn.Module, scale: float, label_smoothing: float, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    leaf = hidden.detach().requires_grad_()
    loss = _torch_cross_entropy(head(leaf), labels, label_smoothing, factors)
    (loss * scale).backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@torch.no_grad()
def _fused_piece(
    hidden: Tensor, labels: Tensor, head: nn.Module, scale: float, label_smoothing: float, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Handles a frozen head, which needs no graph."""
    loss, grad_logits = _gradient_over_logits(head(hidden), labels, label_smoothing, factors)
    weight: Tensor = head.weight  # type: ignore[assignment]
    return loss, (grad_logits @ weight).mul_(scale)


def _fused_trained_piece(
    hidden: Tensor, labels: Tensor, head: nn.Module, scale: float, label_smoothing: float, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    leaf = hidden.detach().requires_grad_()
    logits = head(leaf)  # its backward reads the input and the weight but not the logits, which are overwritten
    loss, grad_logits = _gradient_over_logits(logits.detach(), labels, label_smoothing, factors)
    torch.autograd.backward(logits, grad_logits.mul_(scale))
    assert leaf.grad is not None
    return loss, leaf.grad


def _gradient_over_logits(
    logits: Tensor, labels: Tensor, label_smoothing: float, factors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Writes the logits' gradient over the logits with liger-kernel's kernel; one tensor instead of four."""
    from liger_kernel.ops.cross_entropy import cross_entropy_forward

    logits.requires_grad_()  # otherwise the kernel computes no gradient
    with torch.no_grad():
        how = "sum" if factors is None else "none"
        loss, _, _, _, grad_logits = cross_entropy_forward(
            logits, labels, None, IGNORED, 0.0, label_smoothing, how, None, return_z_loss=False
        )
        if factors is not None:
            loss = (loss * factors).sum()
            grad_logits.mul_(factors.unsqueeze(1))  # in fp32 or wider, then rounded once
    return loss, grad_logits.detach()
