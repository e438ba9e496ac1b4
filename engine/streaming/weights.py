"""Stores the weights of the decoder layers, and makes one layer's weights resident at a time.

Layer-major order reads a layer's weights three times a step at any context, so they may be offloaded or packed. On the
host (ZeRO-Offload, arXiv 2101.06840), two layers are on the device at a time, and the next is copied while one
computes. In 4 bits (QLoRA, arXiv 2305.14314), codes and scales are copied, and dequantised on the device once a pass
(engine.streaming.linears). Where the layers do not fit on the host either, they stay mapped to the model's files, and a
thread reads them a layer ahead.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.hardware.pinned_memory import pinned_empty
from engine.hardware.tuning import trim_heap
from engine.models.layer_input_table import move_all_but, stays_on_host
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
    """Layers offloaded to the host or to the model's files; two buffers on the device.

    The parameters' `data` points into a device buffer while their layer is entered, and to its home before and after,
    so that the model stays a valid host model; so do the scales of 4-bit parameters. Trained fp32 parameters (an
    adapter's) are not offloaded.

    Args:
        layers: Decoder layers, on the host.
        device: The compute device.
        streams: Its side streams; None on a CPU.
        mapped: Whether frozen layers stay where they are, mapped to files; otherwise each is packed into one pinned
            buffer.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        device: torch.device,
        streams: CopyStreams | None,
        *,
        mapped: bool = False,
    ) -> None:
        parameters = [[p for p in layer.parameters() if travels(p)] for layer in layers]
        self._trained = any(p.requires_grad for own in parameters for p in own)
        self._tensors = [[part for p in own for part in _parts(p)] for own in parameters]
        sizes = [_offsets(tensors)[-1] for tensors in self._tensors]
        home = _Mapped if mapped else _Pinned
        self._home: _Home = home(self._tensors, streams, max(sizes))
        _share_codes([p.quant_state for own in parameters for p in own if hasattr(p, "quant_state")], device)
        trim_heap()
        self._buffers = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(2)]
        self._arrived: dict[int, tuple[int, Callable[[], None]]] = {}
        self._views: dict[tuple[int, int], list[Tensor]] = {}  # made once: text enters every layer for each token
        self._entered: int | None = None

    @property
    def device_bytes(self) -> int:
        """Bytes of the weight buffers on the device, for any number of layers."""
        return sum(buffer.numel() for buffer in self._buffers)

    def prefetch(self, layer: int) -> None:
        """See LayerWeights."""
        if layer in self._arrived or not 0 <= layer < len(self._tensors):
            return
        number = self._idle_buffer()
        for other, (used, _) in list(self._arrived.items()):
            if used == number:
                del self._arrived[other]
        # Like every copy, this one comes after the work on the layer that used the buffer before.
        self._arrived[layer] = number, self._home.begin_fetch(layer, number, self._buffers[number])

    def _idle_buffer(self) -> int:
        """Returns the number of the buffer that the entered layer does not use."""
        if self._entered is None or self._entered not in self._arrived:
            return 0
        return 1 - self._arrived[self._entered][0]

    def enter(self, layer: int) -> None:
        """See LayerWeights."""
        if self._entered is not None and self._entered != layer:
            self._send_home(self._entered)
        self.prefetch(layer)
        number, wait = self._arrived[layer]
        wait()
        if (views := self._views.get((layer, number))) is None:
            views = self._views[layer, number] = _views(self._tensors[layer], self._buffers[number])
        _point(self._tensors[layer], views)
        self._entered = layer

    def _send_home(self, layer: int) -> None:
        _point(self._tensors[layer], self._home.tensors[layer])

    def leave(self) -> None:
        """See LayerWeights. Drops the device copies of trained weights, which the next update makes stale."""
        if self._trained:
            self._leave_layer()
            self._arrived.clear()

    def _leave_layer(self) -> None:
        if self._entered is not None:
            self._send_home(self._entered)
            self._entered = None

    def close(self) -> None:
        """See LayerWeights."""
        self._leave_layer()
        self._home.close()


class _Home(ABC):
    """Where the layers are between their uses."""

    tensors: list[list[Tensor]]
    "The tensors of each layer, as the model holds them between its uses."

    @abstractmethod
    def begin_fetch(self, layer: int, number: int, buffer: Tensor) -> Callable[[], None]:
        """Starts to fetch a layer into device buffer `number`; returns what waits for it."""

    def close(self) -> None:  # noqa: B027 - only a thread has to end
        """Waits for what was started."""


class _Pinned(_Home):
    """Layers in one pinned host buffer each. Buffers that they are already in are kept."""

    def __init__(self, tensors: Sequence[Sequence[_Offloaded]], streams: CopyStreams | None, largest: int) -> None:  # noqa: ARG002
        self._streams = streams
        self.buffers = [_pack(own, pinned=streams is not None) for own in tensors]
        self.tensors = [[offloaded.tensor for offloaded in own] for own in tensors]

    def begin_fetch(self, layer: int, number: int, buffer: Tensor) -> Callable[[], None]:  # noqa: ARG002
        """See _Home."""
        source = self.buffers[layer]
        target = buffer[: source.numel()]
        if self._streams is None:
            target.copy_(source)
            return _arrived_already
        return functools.partial(copies.wait_for, copies.begin_copy(self._streams.to_device, [(target, source)]))


class _Mapped(_Home):
    """Layers mapped to files. A thread reads each into one of two pinned buffers, and starts its copy to the device.

    The system keeps in RAM what it has room for, and reads the rest from the disk each time.
    """

    def __init__(self, tensors: Sequence[Sequence[_Offloaded]], streams: CopyStreams | None, largest: int) -> None:
        self._offloaded, self._streams = tensors, streams
        self.tensors = [[offloaded.tensor for offloaded in own] for own in tensors]
        self._pool: ThreadPoolExecutor | None = None
        self._sent: list[Any] = [None, None]
        self._staging: list[Tensor] = []
        if streams is not None:
            self._staging = [pinned_empty((largest,), torch.uint8) for _ in range(2)]
        if torch.cuda.is_available() and streams is not None:
            # The thread's stream has no work of its own, so that a copy does not wait for the layer being computed.
            self._pool, self._stream = ThreadPoolExecutor(1, "weights"), torch.cuda.Stream()

    def begin_fetch(self, layer: int, number: int, buffer: Tensor) -> Callable[[], None]:
        """See _Home."""
        if self._streams is None:
            self._read(layer, buffer)
            return _arrived_already
        if self._pool is None:
            event = self._send(layer, number, buffer)
            return functools.partial(copies.wait_for, event)
        free = torch.cuda.current_stream().record_event()
        coming = self._pool.submit(self._send_in_thread, layer, number, buffer, free)
        return functools.partial(_wait_for_thread, coming)

    def _read(self, layer: int, buffer: Tensor) -> None:
        for source, view in zip(self.tensors[layer], _views(self._offloaded[layer], buffer), strict=True):
            view.copy_(source)

    def _send(self, layer: int, number: int, buffer: Tensor) -> Any:
        if self._sent[number] is not None:
            self._sent[number].synchronize()  # this staging buffer may still be read
        size = _offsets(self._offloaded[layer])[-1]
        assert self._streams is not None
        self._read(layer, self._staging[number])
        pair = buffer[:size], self._staging[number][:size]
        self._sent[number] = copies.begin_copy(self._streams.to_device, [pair])
        return self._sent[number]

    def _send_in_thread(self, layer: int, number: int, buffer: Tensor, free: torch.cuda.Event) -> Any:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            return self._send(layer, number, buffer)

    def close(self) -> None:
        """See _Home."""
        if self._pool is not None:
            self._pool.shutdown()


def _wait_for_thread(coming: Future[Any]) -> None:
    copies.wait_for(coming.result())


def _arrived_already() -> None:
    """Waits for nothing: on a CPU a layer is fetched at once."""


def travels(parameter: nn.Parameter) -> bool:
    """Whether a decoder layer's parameter is offloaded; the model's own are, an adapter's fp32 ones are not."""
    return not parameter.requires_grad or parameter.dtype != torch.float32


def move_others(model: nn.Module, layers: Sequence[nn.Module], device: torch.device) -> None:
    """Moves everything of a model to the device that `StreamedWeights` of its layers leaves where it is.

    A table that is looked up on the host stays there.
    """
    offloaded = {id(p) for layer in layers for p in layer.parameters() if travels(p)}
    move_all_but(model, device, stays_on_host(model) | offloaded)


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
    if (kept := _packed_before(tensors, pinned=pinned)) is not None:
        return kept
    size = _offsets(tensors)[-1]
    buffer = pinned_empty((size,), torch.uint8) if pinned else torch.empty(size, dtype=torch.uint8)
    for offloaded, view in zip(tensors, _views(tensors, buffer), strict=True):
        view.copy_(offloaded.tensor)
        offloaded.point_to(view)
    return buffer


def _packed_before(tensors: Sequence[_Offloaded], *, pinned: bool) -> Tensor | None:
    """Returns the buffer that an earlier `_pack` left the tensors in; None if they are not in such a one."""
    if not tensors:
        return None
    first, offsets = tensors[0].tensor, _offsets(tensors)
    storage = first.untyped_storage()
    if first.is_cuda or storage.nbytes() != offsets[-1] or (pinned and not first.is_pinned()):
        return None
    base = storage.data_ptr()
    if any(part.tensor.data_ptr() != base + at for part, at in zip(tensors, offsets, strict=False)):
        return None
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (offsets[-1],), (1,))


def _views(tensors: Sequence[_Offloaded], buffer: Tensor) -> list[Tensor]:
    views = []
    for offloaded, offset in zip(tensors, _offsets(tensors), strict=False):
        tensor = offloaded.tensor
        views.append(buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
    return views


def _point(tensors: Sequence[_Offloaded], views: Sequence[Tensor]) -> None:
    for offloaded, view in zip(tensors, views, strict=True):
        offloaded.point_to(view)
