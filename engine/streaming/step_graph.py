"""Whole short steps as CUDA graphs, one for each padded length and number of documents.

A step of 8,192 tokens of a small model is some ten thousand kernels, which Python launches in more time than a fast GPU
needs to compute them. A graph launches them at once, in the memory that its capture took. Before its first use a graph
has to give the loss and the gradient of the ordinary step.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.attention.backend import AttentionBackend
from engine.attention.select import documents_backend
from engine.attention.tokens_first import TokensFirst
from engine.errors import EliteError
from engine.streaming.lone_tile import DeviceDocuments, LoneInputs, lone_step, refusal
from engine.streaming.step import StepOutcome
from engine.streaming.streamed_model import StreamedModel

MOST_GRAPHS = 12
_MOST_FAILURES = 2
_FEWEST_DOCUMENTS = 4
_ORDINARY_STEPS = 2
"""Ordinary steps of a shape before its capture. The first compiles kernels; a shape that is rare is not captured."""
_ROOM = 1.25
"""Free GPU memory that a capture needs, in units of what a step's tensors have taken at most."""
_LOSS_TOLERANCE, _GRADIENT_TOLERANCE = 2e-3, 0.1
"""Relative differences that 16-bit arithmetic explains; another attention kernel makes as much."""

_REFUSED = "short steps do not run as CUDA graphs"

Key = tuple[int, int]
"""Tokens, and documents that there is room for; 1 for a single document."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ShortSequence:
    """A sequence on the host, all tensors (tokens,) int64."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    starts: Sequence[int]
    "First position of each document."


class _Buffers:
    """Inputs of a graph on the device, copied there at once from pinned memory."""

    def __init__(self, key: Key, device: torch.device) -> None:
        tokens, documents = key
        self._host = torch.empty(3 * tokens + documents + 1, dtype=torch.long, pin_memory=device.type == "cuda")
        self._device = torch.empty_like(self._host, device=device)
        self._scale = torch.empty((), dtype=torch.float32, device=device)
        self._ends = torch.empty(documents + 1, dtype=torch.int32, device=device)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        self._tokens = tokens

    def inputs(self, alone: AttentionBackend, packed: TokensFirst | None) -> LoneInputs:
        """Returns the device's tensors as inputs; their attention is computed by `packed`, else for one document."""
        ids, labels, positions = self._device[: 3 * self._tokens].view(3, self._tokens)
        documents = alone if packed is None else DeviceDocuments(packed, self._ends, self._tokens)
        return LoneInputs(
            ids=ids,
            labels=labels,
            positions=positions,
            scale=self._scale,
            documents=documents,
            borders=(0, self._tokens),
        )

    def fill(self, sequence: ShortSequence, scale: float) -> None:
        """Copies a sequence to the device, after the steps that were launched before."""
        ends = [*sequence.starts, self._tokens]
        ends += [self._tokens] * (len(self._ends) - len(ends))
        if self._copied is not None:
            self._copied.synchronize()  # the copy of the sequence before may still wait for the step before that
        torch.cat([sequence.ids, sequence.labels, sequence.positions, torch.tensor(ends)], out=self._host)
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        self._ends.copy_(self._device[3 * self._tokens :])
        self._scale.fill_(scale)


@dataclass(frozen=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    buffers: _Buffers
    loss: Tensor
    "Summed loss of the last replay, a scalar on the device."


class StepGraphs:
    """Captured steps of one model.

    Args:
        streamed: The model.
        weights: The trained parameters.
        label_smoothing: Label smoothing of the training loss.
        notify: Called with what was decided, in words.
    """

    def __init__(
        self,
        streamed: StreamedModel,
        weights: Sequence[nn.Parameter],
        label_smoothing: float,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._streamed, self._weights, self._label_smoothing = streamed, list(weights), label_smoothing
        self._notify, self._device = notify, streamed.device
        self._captured: dict[Key, _Captured] = {}
        self._seen: Counter[Key] = Counter()
        self._gradients: list[Tensor] = []
        self._addresses: list[int] = []
        self._pool: Any = None
        self._failed: set[Key] = set()
        self._problem = "only a GPU has graphs" if self._device.type != "cuda" else refusal(streamed)
        if self._problem and self._device.type == "cuda" and streamed.plan.keep_layers:
            notify(f"{_REFUSED}: {self._problem}")

    @property
    def active(self) -> bool:
        """Whether steps are, or may yet be, captured."""
        return not self._problem

    def run(self, sequence: ShortSequence, scale: float, ordinary: Callable[[], StepOutcome]) -> float | Tensor:
        """Adds the gradient of scale × the summed loss to the weights' `.grad`, and returns the summed loss.

        A graph's loss is returned as a scalar on the device, so that the host launches what follows in the meantime.

        Args:
            sequence: The sequence, padded to one of few lengths.
            scale: Factor of the loss before its gradient is taken.
            ordinary: Does the same by the ordinary step.
        """
        if self._problem:
            return ordinary().loss_sum
        if self._addresses != [weight.data_ptr() for weight in self._weights]:
            self._forget()
        key = len(sequence.ids), _room_for(len(sequence.starts))
        if (found := self._captured.get(key)) is not None:
            return self._replay(found, sequence, scale)
        self._seen[key] += 1
        if self._seen[key] <= _ORDINARY_STEPS or key in self._failed or len(self._captured) >= MOST_GRAPHS:
            return ordinary().loss_sum
        return self._capture(key, sequence, scale, ordinary)

    def _replay(self, found: _Captured, sequence: ShortSequence, scale: float) -> Tensor:
        self._own_gradients()
        found.buffers.fill(sequence, scale)
        found.graph.replay()
        return found.loss.to(torch.float64, copy=True)  # the next replay overwrites the graph's own

    def _own_gradients(self) -> None:
        """Makes the graphs' gradient tensors those of the weights, with the sums so far."""
        pairs = list(zip(self._weights, self._gradients, strict=True))
        empty = [own for weight, own in pairs if weight.grad is None]
        if empty:
            torch._foreach_zero_(empty)
        for weight, own in pairs:
            if weight.grad is not None and weight.grad is not own:
                own.copy_(weight.grad)
            weight.grad = own

    # --- capture ----------------------------------------------------------------------------------------------------

    def _capture(self, key: Key, sequence: ShortSequence, scale: float, ordinary: Callable[[], StepOutcome]) -> float:
        # Sums of the update so far may lie in the graphs' own tensors, which the comparison overwrites.
        before = [None if weight.grad is None else weight.grad.clone() for weight in self._weights]
        loss = self._ordinary_alone(ordinary)
        wanted = [weight.grad for weight in self._weights]
        problem, stream = self._too_little_memory(), torch.cuda.current_stream(self._device)
        try:
            if not problem:
                problem = self._capture_and_compare(key, sequence, scale, loss, wanted)
        except torch.OutOfMemoryError:
            problem = "the GPU has no memory for both"
        except (RuntimeError, TypeError, AttributeError, EliteError) as error:
            problem = str(error).strip().partition("\n")[0]
        for weight, gradient, sums in zip(self._weights, wanted, before, strict=True):
            if sums is not None and gradient is not None:
                sums.add_(gradient)
            weight.grad = gradient if sums is None else sums
        if problem:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream in place
            self._give_up(key, problem)
        return loss

    def _ordinary_alone(self, ordinary: Callable[[], StepOutcome]) -> float:
        for weight in self._weights:
            weight.grad = None
        return ordinary().loss_sum

    def _too_little_memory(self) -> str:
        activations = torch.cuda.max_memory_allocated(self._device) - torch.cuda.memory_allocated(self._device)
        if self._captured:  # graphs share their memory
            return ""
        free, _ = torch.cuda.mem_get_info(self._device)
        return "" if free > _ROOM * activations else "the GPU has no memory for both"

    def _capture_and_compare(
        self, key: Key, sequence: ShortSequence, scale: float, loss: float, wanted: Sequence[Tensor | None]
    ) -> str:
        """Captures a step; returns how it differs from the ordinary one, "" if it does not and will be used."""
        if not self._gradients:
            self._gradients = [torch.zeros_like(weight) for weight in self._weights]
            self._addresses = [weight.data_ptr() for weight in self._weights]
            self._pool = torch.cuda.graph_pool_handle()
        for weight, own in zip(self._weights, self._gradients, strict=True):
            weight.grad = own
        backend, packed = self._streamed.workspace.attention.backend, None
        if key[1] > 1 and (packed := documents_backend(self._device, *_shape(self._streamed))) is None:
            return "no attention kernel reads the documents' ends on the GPU"
        buffers = _Buffers(key, self._device)
        buffers.fill(sequence, scale)
        inputs = buffers.inputs(backend, packed)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            summed = lone_step(self._streamed, inputs, self._label_smoothing)
        captured = _Captured(graph, buffers, summed)
        torch._foreach_zero_(self._gradients)
        for weight, own in zip(self._weights, self._gradients, strict=True):
            weight.grad = own
        graph.replay()
        problem = _difference(float(summed), loss, self._gradients, wanted)
        if not problem:
            self._captured[key] = captured
            if len(self._captured) == 1:
                self._notify("short steps run as CUDA graphs")
        return problem

    def _give_up(self, key: Key, problem: str) -> None:
        """Leaves a shape to the ordinary step, and all shapes where others failed too."""
        self._failed.add(key)
        self._notify(f"{_REFUSED} ({key[0]:,} tokens): {problem}")
        if not self._captured and len(self._failed) >= _MOST_FAILURES:
            self._problem = problem
            self._forget()
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()

    def _forget(self) -> None:
        self._captured.clear()
        self._gradients, self._addresses, self._pool = [], [], None

    def close(self) -> None:
        """Frees the graphs and their memory."""
        self._forget()
        self._problem = self._problem or "closed"


def _room_for(documents: int) -> int:
    """Returns the number of documents that a graph has room for, one of few."""
    return 1 if documents == 1 else max(_FEWEST_DOCUMENTS, 1 << (documents - 1).bit_length())


def _shape(streamed: StreamedModel) -> tuple[torch.dtype, int, int, int]:
    decoder = streamed.decoder
    heads = decoder.attention_shape
    return decoder.embedding.weight.dtype, heads.heads, heads.kv_heads, heads.head_dim


def _difference(loss: float, wanted_loss: float, found: Sequence[Tensor], wanted: Sequence[Tensor | None]) -> str:
    if not abs(loss - wanted_loss) <= _LOSS_TOLERANCE * abs(wanted_loss):
        return f"a captured step has a loss of {loss:.4f} instead of {wanted_loss:.4f}"
    pairs = list(_pairs(found, wanted))
    error = torch.stack([(a - b).float().norm() for a, b in pairs]).norm()
    size = torch.stack([b.float().norm() for _, b in pairs]).norm()
    relative = float(error / size)
    return "" if relative <= _GRADIENT_TOLERANCE else f"a captured step has another gradient, by {relative:.1%}"


def _pairs(found: Sequence[Tensor], wanted: Sequence[Tensor | None]) -> Iterator[tuple[Tensor, Tensor]]:
    for a, b in zip(found, wanted, strict=True):
        yield a, torch.zeros_like(a) if b is None else b
