"""Stores the weights of the decoder layers, and makes one layer's weights resident at a time.

Layer-major order reads a layer's weights three times a step at any context, so they may be offloaded or packed. On the
host (ZeRO-Offload, arXiv 2101.06840), two layers are on the device at a time, and the next is copied while one
computes. In 4 bits (QLoRA, arXiv 2305.14314), they are dequantised once a pass instead of once a tile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.hardware.pinned_memory import pinned_empty
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


class StreamedWeights(LayerWeights):
    """Layers offloaded to the host, packed in one pinned buffer each; two buffers on the device.

    The parameters' `data` points into a device buffer while their layer is entered, and into the host buffer before
    and after, so that the model stays a valid host model. Trained fp32 parameters (an adapter's) are not offloaded.
    """

    def __init__(self, layers: Sequence[nn.Module], device: torch.device, streams: CopyStreams | None) -> None:
        self._device, self._streams = device, streams
        self._parameters = [[p for p in layer.parameters() if travels(p)] for layer in layers]
        self._trained = any(p.requires_grad for parameters in self._parameters for p in parameters)
        self._host = [_pack(parameters, pinned=streams is not None) for parameters in self._parameters]
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
            _point(self._parameters[self._entered], self._host[self._entered])
        self.prefetch(layer)
        number, arrived = self._arrived[layer]
        if arrived is not None:
            copies.wait_for(arrived)
        _point(self._parameters[layer], self._buffers[number])
        self._entered = layer

    def leave(self) -> None:
        """See LayerWeights. Drops the device copies of trained weights, which the next update makes stale."""
        if self._trained:
            self.close()
            self._arrived.clear()

    def close(self) -> None:
        """See LayerWeights."""
        if self._entered is not None:
            _point(self._parameters[self._entered], self._host[self._entered])
            self._entered = None


def travels(parameter: nn.Parameter) -> bool:
    """Whether a decoder layer's parameter is offloaded; the model's own are, an adapter's fp32 ones are not."""
    return not parameter.requires_grad or parameter.dtype != torch.float32


_ALIGNMENT = 256  # bytes, of each parameter in a buffer, for tensor cores and copies


def _offsets(parameters: Sequence[nn.Parameter]) -> list[int]:
    """Lists the byte offset of each parameter, and the total."""
    offsets = [0]
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return offsets


def _pack(parameters: Sequence[nn.Parameter], *, pinned: bool) -> Tensor:
    """Packs parameters into one host buffer, (bytes,) uint8, and points them there."""
    size = _offsets(parameters)[-1]
    buffer = pinned_empty((size,), torch.uint8) if pinned else torch.empty(size, dtype=torch.uint8)
    for parameter, view in zip(parameters, _views(parameters, buffer), strict=True):
        view.copy_(parameter.data)
        parameter.data = view
    return buffer


def _views(parameters: Sequence[nn.Parameter], buffer: Tensor) -> list[Tensor]:
    views = []
    for parameter, offset in zip(parameters, _offsets(parameters), strict=False):
        size = parameter.numel() * parameter.element_size()
        views.append(buffer[offset : offset + size].view(parameter.dtype).view(parameter.shape))
    return views


def _point(parameters: Sequence[nn.Parameter], buffer: Tensor) -> None:
    for parameter, view in zip(parameters, _views(parameters, buffer), strict=True):
        parameter.data = view
