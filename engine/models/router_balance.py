"""The auxiliary loss that keeps a model's routers from choosing always the same experts, from sums over tokens.

With C_e the number of times that expert e is chosen and P_e the sum of its probabilities, both over all tokens and
layers, of which there are T rows, the loss is E Σ_e (C_e / T) (P_e / T) for E experts (Switch Transformers, arXiv
2101.03961, equations 4 to 6, as transformers computes it where `output_router_logits` is set). C has no gradient, so
that of P_e is E C_e / T²: once all rows were counted, each token's gradient follows from its own probabilities.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from engine.errors import EliteError
from engine.errors.model import MODEL_FAMILY_UNSUPPORTED
from engine.models.layers import decoder_layers

_FUNCTION = "load_balancing_loss_func"


class BalanceSums:
    """C, P and T of a sequence.

    Args:
        experts: Number of experts.
        chosen: Experts that a token passes through.
        device: Device of the logits.
    """

    def __init__(self, experts: int, chosen: int, device: torch.device) -> None:
        self._experts, self._chosen = experts, chosen
        self.counts = torch.zeros(experts, dtype=torch.float64, device=device)
        self.probabilities = torch.zeros_like(self.counts)
        self.rows = 0

    def add(self, logits: Tensor) -> Tensor:
        """Adds the rows of a layer's router, (tokens, experts); returns `probabilities_of` them."""
        found = probabilities_of(logits)
        chosen = logits.detach().topk(self._chosen, dim=-1).indices.reshape(-1)
        self.counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float64))
        self.probabilities += found.detach().double()
        self.rows += len(logits)
        return found

    def loss(self) -> Tensor:
        """The auxiliary loss of all rows, a scalar."""
        return (self.slope() * self.probabilities).sum()

    def slope(self) -> Tensor:
        """Gradient of the loss with respect to P, (experts,)."""
        return self._experts * self.counts / max(self.rows, 1) ** 2


def probabilities_of(logits: Tensor) -> Tensor:
    """Sums a router's probabilities over tokens, (tokens, experts) to (experts,), differentiable."""
    return torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)).sum(0)


class RouterBalance:
    """The auxiliary loss of a model.

    Args:
        model: A transformers causal language model without an adapter around it.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED, for a family whose auxiliary loss is another.
    """

    def __init__(self, model: Any) -> None:
        self.coefficient = float(model.router_aux_loss_coef)
        self._experts, self._chosen = int(model.num_experts), int(model.num_experts_per_tok)
        recorder = (getattr(model, "_can_record_outputs", None) or {})["router_logits"]
        self._kind, self._index = recorder.target_class, recorder.index
        self._routers = [
            part for layer in decoder_layers(model) for part in layer.modules() if type(part) is self._kind
        ]

    @classmethod
    def of(cls, model: Any) -> RouterBalance | None:
        """Returns the auxiliary loss of a model whose configuration asks for it, None for others.

        Raises:
            EliteError: MODEL_FAMILY_UNSUPPORTED.
        """
        if not getattr(model.config, "output_router_logits", False):
            return None
        try:
            if _is_known(type(model)):
                return cls(model)
        except (AttributeError, KeyError, TypeError):
            pass
        raise _unsupported(model.config, "the auxiliary loss of its routers", "it is not the one that is known here")

    def sums(self, device: torch.device) -> BalanceSums:
        """Makes empty sums."""
        return BalanceSums(self._experts, self._chosen, device)

    def loss_of(self, layers: Sequence[Tensor], rows: slice) -> Tensor:
        """The auxiliary loss of some rows of every layer's logits, (tokens, experts); a differentiable scalar."""
        sums = self.sums(layers[0].device)
        probabilities = torch.stack([sums.add(logits[rows]) for logits in layers]).sum(0)
        return (sums.slope().to(probabilities.dtype) * probabilities).sum()

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Within it, the logits of every router that runs, of shape (tokens, experts), are appended to its list."""
        seen: list[Tensor] = []

        def note(_: nn.Module, __: Any, output: Any) -> None:
            logits = output[self._index] if isinstance(output, (tuple, list)) else output
            seen.append(logits.reshape(-1, logits.shape[-1]))

        hooks = [router.register_forward_hook(note) for router in self._routers]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()


def _is_known(kind: type) -> bool:
    """Whether a family's auxiliary loss is Qwen3's: transformers repeats the function in each family's module."""
    from transformers.models.qwen3_moe import modeling_qwen3_moe

    own = getattr(sys.modules[kind.__module__], _FUNCTION)
    return inspect.getsource(own) == inspect.getsource(modeling_qwen3_moe.load_balancing_loss_func)


def refuse_auxiliary_loss(config: Any, feature: str) -> None:
    """Refuses a model whose configuration asks for the auxiliary loss, where no sums over all tokens are made.

    Raises:
        EliteError: MODEL_FAMILY_UNSUPPORTED.
    """
    if getattr(config, "output_router_logits", False):
        raise _unsupported(config, feature, "it does not sum what the auxiliary loss of its routers needs")


def _unsupported(config: Any, feature: str, problem: str) -> EliteError:
    return MODEL_FAMILY_UNSUPPORTED(
        family=config.model_type,
        feature=feature,
        problem=problem,
        supported="models whose config.json has output_router_logits false",
    )


class _Attached(Function):
    """Passes y through, and in the backward pass gives P the gradient that is known by then."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, probabilities: Tensor, sums: BalanceSums, factor: list[float]) -> Tensor:
        ctx.sums, ctx.factor, ctx.dtype = sums, factor, probabilities.dtype
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, (ctx.sums.slope() * ctx.factor[0]).to(ctx.dtype), None, None


def attached(y: Tensor, probabilities: Tensor, sums: BalanceSums, factor: list[float]) -> Tensor:
    """Returns y, whose backward pass also adds the gradient of factor · the auxiliary loss through `probabilities`.

    Args:
        y: Any output that comes after the router.
        probabilities: The router's sum over these tokens, (experts,).
        sums: Sums that are complete when the backward pass begins.
        factor: One number, which is set by then.
    """
    found: Tensor = _Attached.apply(y, probabilities, sums, factor)  # type: ignore[no-untyped-call]
    return found
