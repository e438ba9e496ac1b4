"""Stores the weights of the decoder layers, and makes one layer's weights resident at a time.

Layer-major order reads a layer's weights three times a step at any context, so they may be offloaded or packed. On the
host (ZeRO-Offload, arXiv 2101.06840), two layers are on the device at a time, and the next is copied while one
computes. In 4 bits (QLoRA, arXiv 2305.14314), codes and scales are copied, and dequantised on the device once a pass
(engine.streaming.linears).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.hardware.pinned_memory import pinned_empty
from engine.hardware.tuning import trim_heap
from engine.streaming import copies
from engine.streaming.copies import CopyStreams


class LayerWeights(ABC):
    """Makes the weights of one decoder layer at a time resident on the compute device."""

    @abstractmethod
    def enter(self, layer: int) -> None:
        """Makes the weights of `layer` resident; only this layer is computed until the next call."""

    def prefetch(self, layer: int) -> None:  # noqa: B027 - only streamed weights are fetched
        """Starts to fetch the weights of `layer`, which will be entered next."""

    def leave(self) -> None:  # noqa: B027 - only streamed weights are copied
        """Leaves the entered layer; the weights may change from now on."""

    def close(self) -> None:  # noqa: B027 - only streamed weights change the model
        """Restores the model."""


class ResidentWeights(LayerWeights):
    """All layers resident on the device."""

    def enter(self, layer: int) -> None:
        """Does nothing, because every layer is resident."""


@dataclass(frozen=True)
class _Offloaded:
    """A tensor of a layer that is offloaded, held in an attribute of its owner."""

    owner: Any
    "A parameter, or bitsandbytes' QuantState of a 4-bit one."
    attribute: str

    @property
    def tensor(self) -> Tensor:
        """The tensor where it is now."""
        found: Tensor = getattr(self.owner, self.attribute)
        return found

    def point_to(self, view: Tensor) -> None:
        """Replaces the tensor by a view of a buffer."""
        setattr(self.owner, self.attribute, view)


class StreamedWeights(LayerWeights):
    """Layers offloaded to the host, packed in one pinned buffer each; two buffers on the device.

    The parameters' `data` points into a device buffer while their layer is entered, and into the host buffer before
    and after, so that the model stays a valid host model; so do the scales of 4-bit parameters. Trained fp32 parameters
    (an adapter's) are not offloaded.
    """

    def __init__(self, layers: Sequence[nn.Module], device: torch.device, streams: CopyStreams | None) -> None:
        self._device, self._streams = device, streams
        parameters = [[p for p in layer.parameters() if travels(p)] for layer in layers]
        self._trained = any(p.requires_grad for own in parameters for p in own)
        self._tensors = [[part for p in own for part in _parts(p)] for own in parameters]
        self._host = [_pack(tensors, pinned=streams is not None) for tensors in self._tensors]
        _share_codes([p.quant_state for own in parameters for p in own if hasattr(p, "quant_state")], device)
        trim_heap()
        largest = max(buffer.numel() for buffer in self._host)
        self._buffers = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(2)]
        self._arrived: dict[int, tuple[int, torch.cuda.Event | None]] = {}
        self._entered: int | None = None

    @property
    def device_bytes(self) -> int:
        """Bytes of the weight buffers on the device, for any number of layers."""
        return sum(buffer.numel() for buffer in self._buffers)

    def prefetch(self, layer: int) -> None:
        """See LayerWeights."""
        if layer in self._arrived or not 0 <= layer < len(self._host):
            return
        number = self._idle_buffer()
        for other, (used, _) in list(self._arrived.items()):
            if used == number:
                del self._arrived[other]
        host = self._host[layer]
        target = self._buffers[number][: host.numel()]
        if self._streams is None:
            target.copy_(host)
            self._arrived[layer] = (number, None)
            return
        # Like every copy, this one comes after the work on the layer that used the buffer before.
        self._arrived[layer] = number, copies.begin_copy(self._streams.to_device, [(target, host)])

    def _idle_buffer(self) -> int:
        """Returns the number of the buffer that the entered layer does not use."""
        if self._entered is None or self._entered not in self._arrived:
            return 0
        return 1 - self._arrived[self._entered][0]

    def enter(self, layer: int) -> None:
        """See LayerWeights."""
        if self._entered is not None and self._entered != layer:
            _point(self._tensors[self._entered], self._host[self._entered])
        self.prefetch(layer)
        number, arrived = self._arrived[layer]
        if arrived is not None:
            copies.wait_for(arrived)
        _point(self._tensors[layer], self._buffers[number])
        self._entered = layer

    def leave(self) -> None:
        """See LayerWeights. Drops the device copies of trained weights, which the next update makes stale."""
        if self._trained:
            self.close()
            self._arrived.clear()

    def close(self) -> None:
        """See LayerWeights."""
        if self._entered is not None:
            _point(self._tensors[self._entered], self._host[self._entered])
            self._entered = None


def travels(parameter: nn.Parameter) -> bool:
    """Whether a decoder layer's parameter is offloaded; the model's own are, an adapter's fp32 ones are not."""
    return not parameter.requires_grad or parameter.dtype != torch.float32


def _parts(parameter: nn.Parameter) -> Iterator[_Offloaded]:
    """Yields what a parameter is stored in: its values, and in 4 bits its scales."""
    yield _Offloaded(parameter, "data")
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        yield _Offloaded(state, "absmax")
        if state.nested:
            yield _Offloaded(state, "offset")
            yield _Offloaded(state.state2, "absmax")


def _share_codes(states: Sequence[Any], device: torch.device) -> None:
    """Makes 4-bit parameters share tables of codes on the device; there are two, of 16 and of 256 values."""
    tables: list[Tensor] = []
    for state in [*states, *(state.state2 for state in states if state.nested)]:
        code = state.code.to(device)
        table = next((known for known in tables if torch.equal(known, code)), None)
        if table is None:
            table = code
            tables.append(code)
        state.code = table


_ALIGNMENT = 256  # bytes, of each tensor in a buffer, for tensor cores and copies


def _offsets(tensors: Sequence[_Offloaded]) -> list[int]:
    """Lists the byte offset of each tensor, and the total."""
    offsets = [0]
    for offloaded in tensors:
        offsets.append(offsets[-1] + -(-offloaded.tensor.nbytes // _ALIGNMENT) * _ALIGNMENT)
    return offsets


def _pack(tensors: Sequence[_Offloaded], *, pinned: bool) -> Tensor:
    """Packs tensors into one host buffer, (bytes,) uint8, and points their owners there."""
    size = _offsets(tensors)[-1]
    buffer = pinned_empty((size,), torch.uint8) if pinned else torch.empty(size, dtype=torch.uint8)
    for offloaded, view in zip(tensors, _views(tensors, buffer), strict=True):
        view.copy_(offloaded.tensor)
        offloaded.point_to(view)
    return buffer


def _views(tensors: Sequence[_Offloaded], buffer: Tensor) -> list[Tensor]:
    views = []
    for offloaded, offset in zip(tensors, _offsets(tensors), strict=False):
        tensor = offloaded.tensor
        views.append(buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
    return views


def _point(tensors: Sequence[_Offloaded], buffer: Tensor) -> None:
    for offloaded, view in zip(tensors, _views(tensors, buffer), strict=True):
        offloaded.point_to(view)
