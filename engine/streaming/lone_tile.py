"""Loss and gradient of a sequence that is one tile, from inputs on the device only, so that a CUDA graph can hold them.

It computes what the stages compute where every layer keeps its graph between the passes (StreamPlan.keep_layers), but
reads nothing on the host: neither where documents begin, nor the loss's scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.attention.backend import AttentionBackend
from engine.attention.packed import AllDocuments
from engine.attention.rule import AttentionRule
from engine.attention.tokens_first import Extent, TokensFirst
from engine.models.layers import expert_weights
from engine.streaming import attention as streamed_attention
from engine.streaming.loss import loss_and_gradient
from engine.streaming.streamed_model import StreamedModel


@dataclass(frozen=True, eq=False, kw_only=True)
class LoneInputs:
    """Inputs of a sequence on the device."""

    ids: Tensor
    "(tokens,), int64."
    labels: Tensor
    "(tokens,), int64."
    positions: Tensor
    "Of each token in its document, (tokens,), int64."
    scale: Tensor
    "Factor of the loss before its gradient is taken; a scalar, fp32."
    documents: AttentionBackend
    "Computes the attention inside the documents, by `forward_documents` for `borders`."
    borders: Sequence[int]


class DeviceDocuments(TokensFirst):
    """Attention inside documents whose ends are on the device; `borders` are ignored.

    Args:
        kernel: Computes it.
        ends: Ends of the documents from 0, (documents + 1,), int32; the last may repeat, for documents of no token.
        tokens: Length of the sequence.
    """

    name = "documents on the device"

    def __init__(self, kernel: TokensFirst, ends: Tensor, tokens: int) -> None:
        self._kernel, self._ends, self._tokens = kernel, ends, tokens

    def unavailable(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """See AttentionBackend."""
        return self._kernel.unavailable(device, dtype, head_dim)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, extent: Extent) -> tuple[Tensor, Tensor]:
        """See TokensFirst."""
        return self._kernel.attend(q, k, v, extent)

    def attend_backward(
        self, grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, extent: Extent
    ) -> Sequence[Tensor]:
        """See TokensFirst."""
        return self._kernel.attend_backward(grad_out, q, k, v, out, logsumexp, extent)

    def extent_of(self, borders: Sequence[int], scale: float, device: torch.device) -> Extent:  # noqa: ARG002
        """See TokensFirst."""
        return Extent(queries=self._tokens, keys=self._tokens, causal=True, scale=scale, ends=self._ends)


def refusal(streamed: StreamedModel) -> str:
    """Returns why a model's sequences cannot be computed from inputs on the device only; "" if they can."""
    decoder, module = streamed.decoder, streamed.module
    if streamed.plan.keep_layers < len(decoder.layers) or streamed.plan.streams_weights:
        return "not every layer keeps its activations"
    if any(decoder.mixers):
        return "layers are recurrent"
    if getattr(decoder.config, "attn_logit_softcapping", None) is not None:
        return "attention scores are capped"
    if decoder.shares_kv or decoder.takes_inputs:
        return "layers share keys and values, or have inputs of their own"
    if any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.modules()):
        return "dropout draws random numbers"
    if any(p.requires_grad and p.dtype != torch.float32 for p in module.parameters()):
        return "trained weights are not fp32"
    if streamed.trains_embedding or any(p.requires_grad for p in decoder.head.parameters()):
        return "embedding or head is trained"
    if streamed.balance is not None:
        return "routers have an auxiliary loss"
    if any(map(expert_weights, decoder.layers)):
        return "tokens choose experts"
    if len(decoder.embedding._forward_hooks):
        return "noise is added to the embedding"
    return ""


class _Attention:
    """The attention of every layer (engine.streaming.attention.AttentionState)."""

    def __init__(self, inputs: LoneInputs) -> None:
        self._inputs = inputs

    def compute(self, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:
        """See AttentionState.

        Raises:
            RuntimeError: a window or a chunk would hide keys; the kernel knows no sinks and no values of another width.
        """
        if rule.reach is not None and rule.reach < q.shape[2]:
            raise RuntimeError(f"a window of {rule.reach} keys is shorter than the sequence")
        if rule.sinks is not None or q.shape[-1] != v.shape[-1]:
            raise RuntimeError("the kernel computes neither sinks nor values of another width than the keys")
        found: Tensor = AllDocuments.apply(q, k, v, self._inputs.borders, rule.scale, self._inputs.documents)  # type: ignore[no-untyped-call]
        return found


def lone_step(streamed: StreamedModel, inputs: LoneInputs, label_smoothing: float) -> Tensor:
    """Adds the gradient of scale × the summed loss to the trained parameters' `.grad`.

    Returns:
        The summed loss in nats, a scalar on the device.
    """
    decoder, lowest = streamed.decoder, streamed.lowest
    with streamed.owned(keep_factors=True):
        positions = inputs.positions[None]
        with torch.no_grad():
            x = decoder.embed(inputs.ids[None], positions)
            arguments = decoder.layer_arguments(x, positions)
        attention, kept = _Attention(inputs), []
        for number, layer in enumerate(decoder.layers):
            streamed.enter(number)
            x = x.detach().requires_grad_(number > lowest)
            with torch.enable_grad(), streamed_attention.one_call(attention, decoder.config, number):
                output: Any = layer(x, **arguments[number])
            y: Tensor = output[0] if isinstance(output, tuple) else output
            kept.append((x, y))
            x = y
        loss, gradient = _loss(streamed, x, inputs, label_smoothing)
        for number in reversed(range(lowest, len(kept))):
            streamed.enter(number)
            x, y = kept.pop()
            torch.autograd.backward(y, gradient)
            if number > lowest:
                assert x.grad is not None
                gradient = x.grad
            del x, y
    return loss


def _loss(streamed: StreamedModel, y: Tensor, inputs: LoneInputs, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Computes the loss of the last layer's output, (1, tokens, hidden), and scale × its gradient."""
    decoder = streamed.decoder
    top = y.detach().requires_grad_()
    with torch.enable_grad():
        normed = decoder.final_norm(top)
    loss, gradient = loss_and_gradient(
        normed[0].detach(),
        inputs.labels,
        decoder.head,
        piece=streamed.plan.loss_piece,
        scale=inputs.scale,
        label_smoothing=label_smoothing,
    )
    torch.autograd.backward(normed, gradient[None])
    assert top.grad is not None
    return loss, top.grad
