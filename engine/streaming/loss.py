"""Cross-entropy of a tile, chunk by chunk, without a tokens × vocabulary tensor (arXiv 2410.10989, 2411.09009)."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

IGNORED = -100
"""Label of a position that predicts nothing."""
_DENSE = 0.875
"""Share of labelled positions above which the head is applied to all. Gathering would cost more than it saves."""


class _Chunk(NamedTuple):
    """Positions whose logits exist at once, and how their loss is computed (the arguments of `loss_and_gradient`)."""

    hidden: Tensor
    labels: Tensor
    head: nn.Module
    scale: float | Tensor
    label_smoothing: float
    factors: Tensor | None
    "The coefficients of these positions."


def _torch_cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, coefficients: Tensor | None = None
) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    how = "sum" if coefficients is None else "none"
    losses = F.cross_entropy(wide, labels, ignore_index=IGNORED, reduction=how, label_smoothing=label_smoothing)
    return losses if coefficients is None else (losses * coefficients.to(losses.dtype)).sum()


@cache
def _has_fused_cross_entropy(device_type: str) -> bool:
    if device_type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        return kernel_is_right(torch.device(device_type))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError, ValueError, subprocess.SubprocessError):  # Triton needs a C compiler
        return False


def kernel_is_right(device: torch.device) -> bool:
    """Whether the fused loss computes torch's loss and gradient here: no kernel is used before it has shown this."""
    generator = torch.Generator(device).manual_seed(0)
    logits = 5 * torch.randn((6, 1000), generator=generator, device=device)
    labels = torch.tensor([0, 999, IGNORED, 7, 500, IGNORED], device=device)
    leaf = logits.clone().requires_grad_()
    with torch.enable_grad():
        wanted = _torch_cross_entropy(leaf, labels, 0.1)
    (gradient,) = torch.autograd.grad(wanted, leaf)
    loss, found = _gradient_over_logits(logits, _Chunk(logits, labels, nn.Identity(), 1.0, 0.1, None))
    return torch.allclose(loss, wanted, rtol=1e-3) and torch.allclose(found, gradient, rtol=1e-2, atol=1e-4)


def loss_and_gradient(
    hidden: Tensor,
    labels: Tensor,
    head: nn.Module,
    *,
    piece: int,
    scale: float | Tensor,
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
        scale: Multiplies the gradient, not the loss; a scalar tensor where it is known only on the device.
        label_smoothing: Probability that is spread over all tokens instead of the label (arXiv 1512.00567).
        coefficients: Factor of each token's loss and gradient, (tokens,), of any sign; None for 1.
        labelled: Ascending positions whose logits are computed, (positions,), int64: at least those with a label. None
            for all. The head is applied to no other position, whose gradient is zero.

    Returns:
        The sum over the tile in nats, a scalar of fp32 or wider; the gradient, (tokens, hidden), in hidden's dtype.
    """
    compute = _chunk_loss(head, hidden.device.type)
    gradient = torch.empty_like(hidden) if labelled is None else torch.zeros_like(hidden)
    total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    for part in _chunks(hidden.shape[0], piece, labelled):
        factors = None if coefficients is None else coefficients[part]
        loss, gradient[part] = compute(_Chunk(hidden[part], labels[part], head, scale, label_smoothing, factors))
        total += loss
    return total, gradient


def token_losses(
    hidden: Tensor,
    labels: Tensor,
    head: nn.Module,
    *,
    piece: int,
    labelled: Tensor | None = None,
    likeliest: Tensor | None = None,
) -> Tensor:
    """Computes the cross-entropy of each token of a tile, in nats, 0 where IGNORED.

    Arguments are those of `loss_and_gradient`, and

    Args:
        likeliest: Takes the tokens that are likeliest in their places, (tokens,), int64, which mean nothing where
            IGNORED. None: they are not computed, since they take up to half the time of the head's product.

    Returns:
        (tokens,), fp32 or wider.
    """
    losses = torch.zeros(hidden.shape[0], dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    for part in _chunks(hidden.shape[0], piece, labelled):
        logits = head(hidden[part])
        if likeliest is not None:
            likeliest[part] = logits.argmax(-1)
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


def _chunk_loss(head: nn.Module, device_type: str) -> Callable[[_Chunk], tuple[Tensor, Tensor]]:
    """Returns what computes a chunk's loss and gradient, the leanest that the head and the device allow."""
    trains_head = any(p.requires_grad for p in head.parameters())
    alone = isinstance(head, nn.Linear)
    if (trains_head and not alone) or not _has_fused_cross_entropy(device_type):
        return _autograd
    return _fused_any_head if not alone else _fused_trained if trains_head else _fused_frozen


def _autograd(chunk: _Chunk) -> tuple[Tensor, Tensor]:
    leaf = chunk.hidden.detach().requires_grad_()
    loss = _torch_cross_entropy(chunk.head(leaf), chunk.labels, chunk.label_smoothing, chunk.factors)
    (loss * chunk.scale).backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@torch.no_grad()
def _fused_frozen(chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """Handles a frozen head, which needs no graph."""
    loss, grad_logits = _gradient_over_logits(chunk.head(chunk.hidden), chunk)
    weight: Tensor = chunk.head.weight  # type: ignore[assignment]
    return loss, (grad_logits @ weight).mul_(chunk.scale)


def _fused_trained(chunk: _Chunk) -> tuple[Tensor, Tensor]:
    leaf = chunk.hidden.detach().requires_grad_()
    logits = chunk.head(leaf)  # its backward reads the input and the weight but not the logits, which are overwritten
    loss, grad_logits = _gradient_over_logits(logits.detach(), chunk)
    torch.autograd.backward(logits, grad_logits.mul_(chunk.scale))
    assert leaf.grad is not None
    return loss, leaf.grad


def _fused_any_head(chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """Handles a frozen head that is more than a linear layer: one that scales or caps its logits."""
    leaf = chunk.hidden.detach().requires_grad_()
    saved: set[int] = set()

    def seen(tensor: Tensor) -> Tensor:
        saved.add(tensor.untyped_storage().data_ptr())
        return tensor.detach()  # with its graph, a result would keep itself alive if no backward pass follows (an OOM)

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        logits = chunk.head(leaf)
    over = logits.detach().contiguous()
    if over.untyped_storage().data_ptr() in saved:  # the head's backward pass reads what the kernel would overwrite
        over = over.clone()
    loss, grad_logits = _gradient_over_logits(over, chunk)
    torch.autograd.backward(logits, grad_logits)
    assert leaf.grad is not None
    return loss, leaf.grad.mul_(chunk.scale)


def _gradient_over_logits(logits: Tensor, chunk: _Chunk) -> tuple[Tensor, Tensor]:
    """Writes the logits' gradient over the logits; one tensor instead of four."""
    from engine.streaming.cross_entropy_kernel import gradient_over_logits

    with torch.no_grad():
        return gradient_over_logits(logits, chunk.labels, IGNORED, chunk.label_smoothing, chunk.factors), logits
