"""Where the weights of the decoder layers wait, and how those of one layer become ready for use.

Layer-major order touches a layer's weights three times a step whatever the context, so they may wait in a slow
or packed form: on the host (two layers on the device at a time, the next on its way while one computes;
ZeRO-Offload, arXiv 2101.06840), or in 4 bits, expanded once a pass instead of once a tile (QLoRA, arXiv
2305.14314).
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
    """Makes the weights of one decoder layer at a time ready on the compute device."""

    @abstractmethod
    def enter(self, layer: int) -> None:
        """Layer `layer` is computed from now on; no other is."""

    def prefetch(self, layer: int) -> None:  # noqa: B027 - only streamed weights travel
        """Layer `layer` will be entered next."""

    def leave(self) -> None:  # noqa: B027 - only streamed weights are copied
        """No layer is computed for now, and the weights may change."""

    def close(self) -> None:  # noqa: B027 - only streamed weights change the model
        """Leaves the model as it was found."""


class ResidentWeights(LayerWeights):
    """All layers on the device as they are."""

    def enter(self, layer: int) -> None:
        """Nothing to do."""


class StreamedWeights(LayerWeights):
    """Layers on the host, packed in one pinned buffer each; two buffers on the device.

    The parameters' `data` points into a device buffer while their layer is entered, and into the host buffer before
    and after: the model stays a valid host model. fp32 parameters that are trained (an adapter's) do not travel.
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
        """Memory that weights take on the device, however many layers there are."""
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
        # Comes after what is computed with the buffer's last layer, as every copy does.
        self._arrived[layer] = number, copies.begin_copy(self._streams.to_device, [(target, host)])

    def _idle_buffer(self) -> int:
        """The buffer that the layer being computed does not use."""
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
        """See LayerWeights. Copies of weights that are trained are stale after the next update."""
        if self._trained:
            self.close()
            self._arrived.clear()

    def close(self) -> None:
        """See LayerWeights."""
        if self._entered is not None:
            _point(self._parameters[self._entered], self._host[self._entered])
            self._entered = None


def travels(parameter: nn.Parameter) -> bool:
    """Whether a decoder layer's parameter waits on the host: the model's own do, an adapter's fp32 ones do not."""
    return not parameter.requires_grad or parameter.dtype != torch.float32


_ALIGNMENT = 256  # of each parameter in a buffer, in bytes; what tensor cores and copies like


def _offsets(parameters: Sequence[nn.Parameter]) -> list[int]:
    """Byte offset of each parameter, and the total."""
    offsets = [0]
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return offsets


def _pack(parameters: Sequence[nn.Parameter], *, pinned: bool) -> Tensor:
    """Moves parameters into one host buffer, and points them there."""
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
