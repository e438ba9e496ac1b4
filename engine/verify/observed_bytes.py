"""Bytes per token that a decoder layer holds, counted where it runs without numbers (the meta device).

The lists of engine.plan.activations follow the layers of listed families. A layer that no list describes (gates of
attention, shared experts, further norms) is run at its own widths as the streamed step runs it, and its tensors are
counted as they come and go. What attention kernels hold beside queries, keys and values is not counted here: the
planner knows that for every family.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from engine.attention.rule import chunk_of
from engine.models.fused import is_rms_norm
from engine.models.layer_shapes import LayerBytes
from engine.models.layers import decoder_layers
from engine.models.recurrent_kernels import serve
from engine.models.recurrent_mixers import recurrent_mixers
from engine.streaming.decoder import LAYER_INPUT, SHARED_KV
from engine.streaming.linears import FrozenLinears
from engine.verify.measure import LiveBytes
from engine.verify.observed_kernels import kernels_stand_in

_IMPLEMENTATION = "elite_tui_observed"
_LENGTHS = (1024, 2048)
"""Tokens of the two runs, whose difference is what depends on them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attended:
    """One call of the attention function: its shapes, and the keys that a query sees (None: all before it)."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None

    @property
    def width(self) -> int:
        """Width of a head, of its keys or its values, whichever is wider."""
        return max(self.head_dim, self.value_dim)


def observed_bytes(config: Any, targets: Sequence[str]) -> tuple[list[Attended], tuple[LayerBytes, ...]]:
    """Runs layers without numbers.

    Args:
        config: transformers configuration of a causal language model.
        targets: Names of the linear layers that adapters go on.

    Returns:
        The calls of the attention function, layer by layer; what the largest layer holds, in 16 bits and in 32, and in
        16 bits also with the kernel of engine.models.fused for its norms, with those of engine.models.recurrent_kernels
        for its recurrent mixers, and with both, where it has such parts.
    """
    AttentionInterface.register(_IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(_IMPLEMENTATION, lambda *_, **__: None)
    with _without_numbers():
        calls, narrow = _in_dtype(config, targets, torch.bfloat16)
        _, wide = _in_dtype(config, targets, torch.float32)
    return calls, (*narrow, *wide)


def _in_dtype(config: Any, targets: Sequence[str], dtype: torch.dtype) -> tuple[list[Attended], list[LayerBytes]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=False)
    model.config.use_cache = False
    model.config._experts_implementation = "grouped_mm"  # as on a GPU
    model.config._attn_implementation = _IMPLEMENTATION
    model.requires_grad_(requires_grad=False).train()
    layers = list(_one_of_each(decoder_layers(model)))
    mixers = [mixer for of_layer in recurrent_mixers(layers) for mixer in of_layer]
    serve(mixers)
    # Recorded before the adapters are there, and of the whole model: a layer's arguments depend on its number.
    passed = [_arguments(model, layers, length, dtype) for length in _LENGTHS]
    calls = list(_calls)
    for layer in layers:
        _adapt(layer, targets)
    # In fp32 a norm saves its input itself, whatever computes it.
    narrow = dtype.itemsize == 2
    normed = narrow and any(is_rms_norm(part) for layer in layers for part in layer.modules())
    served = itertools.product((False, True) if mixers and narrow else (False,), (False, True) if normed else (False,))
    return calls, [_with_kernels(layers, passed, dtype, kernels=mixed, norms=norms) for mixed, norms in served]


def _with_kernels(
    layers: Sequence[nn.Module], passed: Sequence[Sequence[_Call]], dtype: torch.dtype, *, kernels: bool, norms: bool
) -> LayerBytes:
    """Counts what the largest layer holds where kernels compute its recurrent mixers, its norms, both or neither."""
    counted = []
    for number, layer in enumerate(layers):
        with kernels_stand_in(layer, mixers=kernels, norms=norms):
            short, long = (_run(layer, *given[number]) for given in passed)
        counted.append([(b - a) // (_LENGTHS[1] - _LENGTHS[0]) for a, b in zip(short, long, strict=True)])
    forward, forward_attention, saved, backward, backward_attention = (max(each) for each in zip(*counted, strict=True))
    return LayerBytes(
        element=dtype.itemsize,
        forward=forward,
        forward_attention=forward_attention,
        saved=saved,
        backward=backward,
        backward_attention=backward_attention,
        kernels=kernels,
        norms=norms,
    )


def _one_of_each(layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Yields the first layer of each set of shapes."""
    seen = set()
    for layer in layers:
        shapes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        if shapes not in seen:
            seen.add(shapes)
            yield layer


def _adapt(layer: nn.Module, targets: Sequence[str]) -> None:
    """Puts adapters of rank 1 on a layer; the planner adds what wider ones hold."""
    here = {name.rpartition(".")[2] for name, _ in layer.named_modules()}
    if names := [name for name in targets if name in here]:
        with torch.device("meta"):
            inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=names), layer)
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


# --- what the model passes to a layer -------------------------------------------------------------------------

_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _arguments(model: Any, layers: Sequence[nn.Module], length: int, dtype: torch.dtype) -> list[_Call]:
    found: dict[int, _Call] = {}

    def note(number: int) -> Any:
        def of_layer(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            # A layer writes what it lends into it, with a graph once it is run again.
            own = {SHARED_KV: dict(named[SHARED_KV])} if named.get(SHARED_KV) is not None else {}
            found[number] = positional, {**named, **own}

        return of_layer

    hooks = [layer.register_forward_pre_hook(note(at), with_kwargs=True) for at, layer in enumerate(layers)]
    width = model.get_input_embeddings().weight.shape[1]
    _calls.clear()
    try:
        with torch.no_grad(), torch.device("meta"):
            ids = torch.empty((1, length), dtype=torch.long)
            inputs: dict[str, Any] = {"inputs_embeds": torch.empty((1, length, width), dtype=dtype)}
            if LAYER_INPUT in inspect.signature(layers[0].forward).parameters:  # which needs the tokens
                inputs = {"input_ids": ids}
            try:
                model.base_model(**inputs, position_ids=ids, use_cache=False)
            except (TypeError, ValueError):
                model.base_model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[number] for number in range(len(layers))]


@contextmanager
def _without_numbers() -> Iterator[None]:
    """Within it, transformers reads no values: no borders of documents, and no groups in the products of experts."""
    from transformers import masking_utils
    from transformers.integrations import moe

    before = masking_utils.find_packed_sequence_indices, moe._grouped_mm
    masking_utils.find_packed_sequence_indices = lambda *_, **__: None
    moe._grouped_mm = _grouped_product
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices, moe._grouped_mm = before


def _grouped_product(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """Allocates what the products of experts do, for widths and dtypes that their kernel does not take."""
    found: Tensor = torch.ops.transformers.grouped_mm_fallback(x.to(weight.dtype), weight, offs=offs)
    return found


# --- a layer's passes -----------------------------------------------------------------------------------------


class _Probe:
    """Notes what is alive when the attention function is called, in either direction."""

    def __init__(self) -> None:
        self.live = LiveBytes("meta")
        self.forward = self.backward = 0


_probe: list[_Probe] = []


class _Attended(Function):
    """Attention of which only what a layer sees exists: its inputs, saved for its gradient, and its output."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if _probe:
            _probe[-1].forward = max(_probe[-1].forward, _probe[-1].live.live)
        ctx.save_for_backward(q, k, v)
        return q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004 - its size is the output's
        if _probe:
            _probe[-1].backward = max(_probe[-1].backward, _probe[-1].live.live)
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors)


_calls: list[Attended] = []


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,
    sliding_window: int | None = None,
    **__: Any,
) -> tuple[Tensor, None]:
    _calls.append(
        Attended(
            heads=query.shape[1],
            kv_heads=key.shape[1],
            head_dim=key.shape[3],
            value_dim=value.shape[3],
            window=sliding_window or chunk_of(module),
        )
    )
    return _Attended.apply(query, key, value), None  # type: ignore[no-untyped-call]


def _run(layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[int, ...]:
    """Bytes of the forward pass at its peak and at its attention, saved ones, and those of the backward pass."""
    name = "hidden_states"
    hidden = positional[0] if positional else named[name]
    gradient = torch.empty_like(hidden)
    linears = FrozenLinears([layer], "")

    def call(x: Tensor) -> Any:
        return layer(x, *positional[1:], **named) if positional else layer(**{**named, name: x})

    try:
        linears.enter(0)
        without = _Probe()
        _probe.append(without)
        with torch.no_grad(), without.live:
            call(hidden)
        _probe.append(with_graph := _Probe())
        with with_graph.live:
            y = call(hidden.detach().requires_grad_())
            y = y[0] if isinstance(y, tuple) else y
            saved = with_graph.live.live
            torch.autograd.backward(y, gradient)
    finally:
        _probe.clear()
        linears.close()
        layer.zero_grad()  # adapters' gradients are made in every run, so that no difference of two runs holds them
    return without.live.peak, without.forward, saved, with_graph.live.peak, with_graph.backward
