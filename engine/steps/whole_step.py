"""The interface of a step, which computes the gradient of some windows' loss, and the whole-sequence implementation.

Implementations of a step differ in memory and time, but all compute the same. They add the gradient of
`scale` times the sum of the cross-entropies of all targets to the `.grad` of the trained fp32 weights.
The loop owns everything else (gradient accumulation, clipping, the optimiser, checkpoints), so that a step that
streams a long window through the GPU in tiles can replace this one without a change elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.attention.packed import packed_attention
from engine.data.windows import Window, joined
from engine.models.adapter import without_adapter
from engine.models.layers import decoder_layers
from engine.models.lm_head import piece_of, split_head, summed_cross_entropy
from engine.models.mode import ModelMode
from engine.models.recurrent_kernels import serve
from engine.models.recurrent_mixers import recurrent_mixers, routed
from engine.models.rope_tables import keep_tables_exact, tables_by_document
from engine.models.router_balance import RouterBalance
from engine.models.wide_gradients import WideGradients
from engine.steps.padding import ModelInputs, model_inputs
from engine.streaming.document_pieces import PackedMixers
from engine.streaming.loss import token_losses

__all__ = [
    "ScoringStep",
    "StepAbandonedError",
    "StepMonitor",
    "StepResult",
    "TrainingStep",
    "WholeSequenceStep",
    "Window",
]


@dataclass(frozen=True, kw_only=True)
class PreferenceFigures:
    """Means over preference pairs (engine.steps.preference_step)."""

    loss: float
    margin: float
    "Reward of the chosen side less that of the rejected one: beta times what the policy gained over the reference."
    accuracy: float
    "Share of the pairs with a margin above zero; zero counts as half."


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Summed loss and number of targets of a step."""

    summed: float | Tensor
    "`loss_sum`, or a scalar of it on the device, which may still be computing it."
    tokens: int
    "Targets summed over: one fewer than tokens in each document of each window, or those of them that are learnt."
    preferences: PreferenceFigures | None = None
    "Of a step over preference pairs."

    @cached_property
    def loss_sum(self) -> float:
        """Sum of the training losses (cross-entropies, smoothed if configured), each times its token's weight, in nats.

        Unscaled; may be infinite or NaN. Waits for the device.
        """
        return float(self.summed)

    @property
    def waits(self) -> bool:
        """Whether `loss_sum` has to wait for the device."""
        return isinstance(self.summed, Tensor)


class StepAbandonedError(Exception):
    """Raised on a stop request in mid-step. The gradients are incomplete and must be discarded."""


class StepMonitor(Protocol):
    """Receives a step's progress and requests its stop. Both calls are cheap enough for every tile."""

    def progress(self, stage: str, done: int, total: int, *, layer: int | None = None, tile: int | None = None) -> None:
        """Reports that `done` of `total` units of a stage ("forward", "loss", "backward") are done."""

    def stop_requested(self) -> bool:
        """Whether the step should raise StepAbandonedError as soon as possible."""


class TrainingStep(Protocol):
    """An implementation of the step."""

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """Adds the gradient of `scale` times loss_sum to the trained weights' `.grad`, and returns the loss_sum.

        Args:
            windows: At least one; their lengths may differ.
            scale: 1 / (targets of the whole update), times the loss scale of fp16 where there is one.
            monitor: Receives the progress, and may request a stop.

        Raises:
            StepAbandonedError: the monitor requested a stop.
        """

    def loss(self, window: Window) -> float:
        """Computes the sum of the cross-entropies of one window, each times its weight, without dropout or gradient."""


class TokenScores(NamedTuple):
    """How well a model predicts each token of a window after its first. Both have the shape (tokens - 1,)."""

    losses: npt.NDArray[np.float32]
    "Cross-entropies in nats; 0 at the first token of each document and at others that are not predicted."
    likeliest: npt.NDArray[np.int64]
    "Ids of the tokens that the model thinks likeliest; they mean nothing where none is predicted."


class ScoringStep(Protocol):
    """A step implementation that scores a window token by token."""

    def token_scores(self, window: Window) -> TokenScores:
        """Predicts each token of a window after its first from those before it, without dropout."""


def count_targets(windows: Sequence[Window]) -> int:
    """Counts the predicted tokens, which are all but each document's first, or those of them that are learnt."""
    return sum(window.targets for window in windows)


def groups_of(windows: Sequence[Window], most: int) -> Iterator[Sequence[Window]]:
    """Yields the windows in order, up to `most` neighbours at a time."""
    for start in range(0, len(windows), most):
        yield windows[start : start + most]


class WholeSequenceStep:
    """Computes a step by ordinary backpropagation, some windows at a time.

    It serves windows whose activations fit, and is the reference for the other implementations.

    Attributes:
        micro_batch: Windows of a microbatch, as documents of one sequence.
        recompute: Whether the backward pass recomputes each layer's activations instead of keeping them (gradient
            checkpointing, arXiv 1604.06174), which takes one more forward and keeps n·d numbers a layer.

    Args:
        model: A causal language model, alone or in an adapter.
        autocast: Makes the context of every forward pass.
        label_smoothing: Label smoothing of the training loss.
        gradients: Collects the gradients of 16-bit parameters (engine.models.master_weights).
        fill_up_to: Longest window, where each is padded to one of few lengths (engine.steps.padding).
    """

    def __init__(
        self,
        model: Any,
        *,
        recompute: bool,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        micro_batch: int = 1,
        label_smoothing: float = 0.0,
        gradients: WideGradients | None = None,
        fill_up_to: int | None = None,
    ) -> None:
        base = without_adapter(model)
        keep_tables_exact(base)
        self._mode = ModelMode(model)
        self._decoder, self._head = split_head(base)
        self._mixers = [mixer for of_layer in recurrent_mixers(decoder_layers(base)) for mixer in of_layer]
        serve(self._mixers)
        self._balance = RouterBalance.of(base)
        self._device = base.device
        self._autocast = autocast
        self._label_smoothing = label_smoothing
        self._base, self._gradients, self._fill_up_to = base, gradients, fill_up_to
        self.recompute, self.micro_batch = recompute, micro_batch
        if recompute:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def run(self, windows: Sequence[Window], scale: float, monitor: StepMonitor) -> StepResult:
        """See TrainingStep."""
        self._mode.train()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        done = 0
        for group in groups_of(windows, self.micro_batch):
            if monitor.stop_requested():
                raise StepAbandonedError
            with self._attending(joined(group)) as inputs:
                with self._balancing() as routed:
                    loss = self._summed_loss(inputs, self._label_smoothing)
                ((loss + self._balance_of(group, routed)) * scale).backward()
            if self._gradients is not None:
                self._gradients.flush()
            loss_sum += loss.detach()
            done += len(group)
            monitor.progress("windows", done, len(windows))
        return StepResult(summed=loss_sum, tokens=count_targets(windows))

    def _balancing(self) -> contextlib.AbstractContextManager[list[Tensor]]:
        return contextlib.nullcontext([]) if self._balance is None else self._balance.recording()

    def _balance_of(self, windows: Sequence[Window], routed: list[Tensor]) -> Tensor | float:
        """The auxiliary loss of the routers, of each window by itself, weighted by its divisor."""
        if self._balance is None:
            return 0.0
        total, start = torch.zeros((), device=self._device), 0
        for window in windows:
            of_window = self._balance.loss_of(routed, slice(start, start + len(window)))
            total = total + self._balance.coefficient * window.divisor * of_window
            start += len(window)
        return total

    def close(self) -> None:
        """Restores the model."""
        if self.recompute:
            self._base.gradient_checkpointing_disable()

    def loss(self, window: Window) -> float:
        """See TrainingStep."""
        with self._mode.evaluating(), torch.no_grad(), self._attending(window) as inputs:
            with self._autocast():
                hidden = self._hidden(inputs)
                losses = token_losses(
                    hidden, inputs.labels, self._head, piece=piece_of(self._head), labelled=inputs.labelled
                )
            factors = inputs.coefficients
            return (losses if factors is None else losses * factors).sum(dtype=torch.float64).item()

    def token_scores(self, window: Window) -> TokenScores:
        """See ScoringStep."""
        with self._mode.evaluating(), torch.no_grad(), self._attending(window) as inputs, self._autocast():
            hidden = self._hidden(inputs)
            likeliest = torch.zeros_like(inputs.labels)
            losses = token_losses(
                hidden,
                inputs.labels,
                self._head,
                piece=piece_of(self._head),
                labelled=inputs.labelled,
                likeliest=likeliest,
            )
        predicted = len(window) - 1
        return TokenScores(losses[:predicted].float().cpu().numpy(), likeliest[:predicted].cpu().numpy())

    @contextlib.contextmanager
    def _attending(self, window: Window) -> Iterator[ModelInputs]:
        """Yields the model's inputs for a window, whose documents do not attend to each other in this context."""
        most = None if self._fill_up_to is None else self._fill_up_to * self.micro_batch
        inputs = model_inputs(window, most, self._device)
        # A single document needs no borders, and its mixers may take a path of their own for training.
        mixers = self._mixers if len(inputs.starts) > 1 else ()
        with (
            packed_attention(self._decoder.config, inputs.starts, len(inputs)),
            tables_by_document(self._decoder, inputs.starts, len(window), len(inputs), self._device),
            routed(mixers, PackedMixers(inputs.starts, len(inputs))),
        ):
            yield inputs

    def _summed_loss(self, inputs: ModelInputs, label_smoothing: float) -> Tensor:
        with self._autocast():
            hidden = self._hidden(inputs)
            return summed_cross_entropy(
                hidden,
                self._head,
                inputs.labels,
                label_smoothing=label_smoothing,
                coefficients=inputs.coefficients,
                labelled=inputs.labelled,
            )

    def _hidden(self, inputs: ModelInputs) -> Tensor:
        """Computes the final hidden states, (tokens, hidden)."""
        positions = None if inputs.positions is None else inputs.positions[None]
        found = self._decoder(input_ids=inputs.ids[None], position_ids=positions, use_cache=False)
        hidden: Tensor = found.last_hidden_state[0]
        return hidden
