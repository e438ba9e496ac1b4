"""LM head and cross-entropy, computed in chunks of tokens.

fp32 logits of 32K tokens over a vocabulary of 152K take 20 GB. Only the sum of the cross-entropies is needed, so the
logits of one chunk exist at a time, in the forward and in the backward.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from engine.models.layers import layer_list
from engine.models.loss_chunk import loss_chunk

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def split_head(model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    """Returns the decoder (token ids → final hidden states, after its norm) and the head (hidden states → logits).

    The head is the last linear layer alone where the model's logits are its output. Elsewhere (Granite and Cohere scale
    them, Gemma 2 caps them) it is all that the model does after its decoder.
    """
    decoder, last = _decoder(model), model.get_output_embeddings()
    return decoder, last if _is_alone(model, decoder, last) else WholeHead(model, last)


def _decoder(model: PreTrainedModel) -> nn.Module:
    """Returns the model without its head; Llama 4's text model names another module than it has."""
    return layer_list(model)[0] if model.base_model is model else model.base_model


class WholeHead(nn.Module):
    """What a model does after its decoder, by its own forward.

    Args:
        model: The causal language model. It is not a part of this module.
        last: Its last linear layer, which is.
    """

    def __init__(self, model: PreTrainedModel, last: nn.Module) -> None:
        super().__init__()
        self._model = (model,)
        self.last = last
        apart = {id(p) for part in (_decoder(model), last) for p in part.parameters()}
        # Of what stands between the decoder and the last layer, as in ModernBERT: it may be trained.
        self.between = nn.ParameterList(p for p in model.parameters() if id(p) not in apart)

    @property
    def weight(self) -> Tensor:
        """Of the last linear layer, (vocabulary, hidden)."""
        return self.last.weight  # type: ignore[return-value]

    @property
    def out_features(self) -> int:
        """Words of the vocabulary. Said by the layer: ZeRO-3 leaves an empty tensor in a weight's place."""
        return int(_linear(self.last).out_features)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits, (..., vocabulary), of final hidden states (..., hidden)."""
        (model,) = self._model
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        with _answering(_decoder(model), rows):
            logits: Tensor = model(inputs_embeds=rows, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], -1)


@torch.no_grad()
def _is_alone(model: PreTrainedModel, decoder: nn.Module, last: nn.Module) -> bool:
    """Whether a model's logits are its last linear layer's output for its final hidden states. No weight is read."""
    width = _linear(last).in_features
    own = torch.Generator().manual_seed(0)  # training's numbers stay as they are
    hidden, logits = torch.randn((1, 2, width), generator=own), torch.randn((1, 2, 8), generator=own)
    seen: list[Tensor] = []

    def answer(x: Tensor) -> Tensor:
        seen.append(x)
        return logits.clone()

    with _answering(decoder, hidden), _replaced(last, answer):
        found = model(inputs_embeds=hidden, use_cache=False).logits
    return len(seen) == 1 and torch.equal(seen[0], hidden) and torch.equal(found, logits)


def _linear(head: nn.Module) -> nn.Linear:
    """Returns the linear layer of a head; PEFT wraps one that is tied to an embedding with trained rows."""
    wrapper: Any = head
    found: nn.Linear = getattr(wrapper, "original_module", wrapper)
    return found


def piece_of(head: nn.Module) -> int:
    """Returns the tokens of a loss chunk, as the plan counts them."""
    return loss_chunk(int(_linear(head).out_features))


def summed_cross_entropy(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    piece: int | None = None,
    label_smoothing: float = 0.0,
    coefficients: Tensor | None = None,
    labelled: Tensor | None = None,
) -> Tensor:
    """Sums the cross-entropy over tokens, in nats, fp32 or wider, differentiable in `hidden` and the head's weights.

    Args:
        hidden: Final hidden states. Shape (n, d).
        head: Maps (p, d) to logits (p, vocabulary).
        targets: The token that follows each position. Shape (n,), int64.
        piece: Tokens per chunk; any value gives the same sum up to rounding. None means `piece_of(head)`.
        label_smoothing: Probability moved from the target to the whole vocabulary (arXiv 1512.00567).
        coefficients: Factor of each token's cross-entropy, of any sign. Shape (n,). None for 1.
        labelled: Ascending positions whose logits are computed, at least those with a target. Shape (k,), int64. None
            for all.
    """
    piece = piece or piece_of(head)
    if labelled is not None:
        # Gathered once: the gradient of every slice is as long as what it was taken from.
        hidden, targets = hidden[labelled], targets[labelled]
        coefficients = None if coefficients is None else coefficients[labelled]
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    # The backward of a single chunk starts with its logits, so recomputing them would save nothing.
    recompute = torch.is_grad_enabled() and hidden.shape[0] > piece
    for start in range(0, hidden.shape[0], piece):
        part = slice(start, start + piece)
        given = hidden[part], head, targets[part], label_smoothing, None if coefficients is None else coefficients[part]
        total = total + (checkpoint(_piece_loss, *given, use_reentrant=False) if recompute else _piece_loss(*given))
    return total


def _piece_loss(
    hidden: Tensor, head: nn.Module, targets: Tensor, label_smoothing: float, coefficients: Tensor | None
) -> Tensor:
    logits = head(hidden)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    how = "sum" if coefficients is None else "none"
    losses = functional.cross_entropy(wide, targets, reduction=how, label_smoothing=label_smoothing)
    return losses if coefficients is None else (losses * coefficients.to(losses.dtype)).sum()


@contextlib.contextmanager
def _answering(decoder: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Makes the decoder return these hidden states, (batch, tokens, hidden), for any input within the context."""
    with _replaced(decoder, lambda *_, **__: _output_class()(last_hidden_state=hidden)):
        yield


@functools.cache
def _output_class() -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Output(BaseModelOutputWithPast):  # type: ignore[misc]
        """A decoder's output. What only some families' have is None."""

        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return Output


@contextlib.contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own
