"""One tile of one real decoder layer on a META that is not there: every tensor is fake, every allocation is counted."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from torch.autograd import Function

from engine.attention.cudnn import CudnnFlash
from engine.attention.select import BackendByWidth
from engine.config import LoraSection
from engine.data.windows import Window
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning, FullTuning
from engine.models.placement import Placement
from engine.models.random import random_model
from engine.plan.stream_plan import StreamPlan
from engine.plan.window_ring import ring_for
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming import attention as streamed_attention
from engine.streaming.decoder import Decoder
from engine.streaming.kv_cache import DeviceKvCache
from engine.streaming.linears import FrozenLinears
from engine.streaming.mixer import KvCollected, Pass
from engine.streaming.saved_attention import SavedAttention
from engine.streaming.tile_attention import AttentionLayers
from engine.streaming.tiles import DeviceTiles, TileReader
from engine.streaming.windowed_kv_cache import WindowedKvCache
from tests.plan.live_bytes import LiveBytes

META = torch.device("meta")


class _Norm(Function):
    """What liger's RMSNorm allocates: the output and one fp32 number a row; the gradient takes its input's place."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        _, weight, _ = ctx.saved_tensors
        return grad, torch.empty_like(weight) if ctx.needs_input_grad[1] else None


class _SwiGlu(Function):
    """What liger's SwiGLU allocates: the product; the gradients take the inputs' places."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        return gate.view_as(gate), up.view_as(up)


class _Rope(Function):
    """What liger's rotary embedding allocates: nothing, but for a contiguous copy where there is none."""

    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        return tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))

    @staticmethod
    def backward(ctx, dq, dk):
        _ = ctx.saved_tensors
        return *(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (dq, dk)), None, None


@contextmanager
def _like_liger(model, family):
    """Replaces what engine.models.fused replaces, by functions that allocate the same."""
    import importlib

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")

    for part in model.modules():
        if type(part).__name__.endswith("RMSNorm"):
            part.forward = lambda x, part=part: _Norm.apply(x, part.weight)
        if type(part).__name__.endswith("MLP"):
            part.forward = lambda x, part=part: part.down_proj(_SwiGlu.apply(part.gate_proj(x), part.up_proj(x)))
    with mock.patch.object(module, "apply_rotary_pos_emb", lambda q, k, cos, sin, **_: _Rope.apply(q, k, cos, sin)):
        yield


def _product_as_on_a_gpu(a, b):
    return a @ b if a.dtype is torch.float32 else torch.mm(a, b, out_dtype=torch.float32)


@dataclass(frozen=True)
class Counted:
    """The most bytes beyond what was there before, in each pass; and those of the layer's store of keys and values."""

    forward: int
    backward: int
    stores: int


def count(spec, plan: StreamPlan, *, fused: bool, dtype=torch.bfloat16, rank: int = 16, targets=("all-linear",)):
    """Runs the last tile of a context of two key blocks and a tile, through one layer; returns what was Counted."""
    compute = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    context = 2 * plan.key_block + plan.tile
    start = context - plan.tile
    base = random_model(spec, Placement(device=META, precision=compute, compute=compute), layers=1)
    model = attach_adapter(base, LoraSection(rank=rank, targets=list(targets)), seed=0).train()
    on_a_gpu = mock.patch("engine.streaming.lora_linear._wide_product", _product_as_on_a_gpu)
    with on_a_gpu, _like_liger(base, spec.family) if fused else nullcontext():
        return _count(model, spec, plan, start, dtype)


def _count(model, spec, plan, start, dtype) -> Counted:
    decoder = Decoder(model)
    linears = FrozenLinears(decoder.layers, spec.family)
    streamed_attention.register()
    context = start + plan.tile

    def new_array(width, array_dtype):
        return DeviceTiles(context, width, array_dtype, plan.tile, META)

    def new_reader(width, array_dtype):
        return TileReader(width, array_dtype, plan.tile, META)

    def new_kv_cache(shape):
        return DeviceKvCache(context, shape, META)

    def new_windowed(shape, window):
        ring = ring_for(window, plan.tile, context)
        return None if ring is None else WindowedKvCache(ring, shape, META)

    saved = SavedAttention(new_array, new_reader) if plan.stash else None
    blocks = plan.key_block, 4 * plan.key_block
    attention = AttentionLayers(
        decoder.config, BackendByWidth({0: CudnnFlash()}), *blocks, new_kv_cache, saved, new_windowed
    )
    mixer = attention.mixer(0)
    hidden = torch.empty((1, plan.tile, spec.hidden_size), dtype=dtype, device=META)
    gradient = torch.empty_like(hidden)
    positions = torch.arange(plan.tile, device=META).unsqueeze(0)
    with mock.patch("transformers.masking_utils.find_packed_sequence_indices", return_value=None):  # reads numbers
        arguments = decoder.layer_arguments(hidden, positions)[0]
    decoder.config._attn_implementation = streamed_attention.IMPLEMENTATION
    layer, tile = decoder.layers[0], start // plan.tile

    def run(purpose, number, x):
        with mixer.running(purpose, number, slice(number * plan.tile, (number + 1) * plan.tile)):
            return layer(x, **arguments)

    def hold_keys_before():
        for below in mixer.below(tile, tile + 1):
            with torch.no_grad(), suppress(KvCollected):
                run(Pass.COLLECT, below, hidden)

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    try:
        linears.enter(0)
        with LiveBytes("meta") as live:
            live.ignore(hidden, gradient, *model.parameters(), *(p.grad for p in model.parameters() if p.requires_grad))
            with torch.no_grad():  # makes the stores
                y = run(Pass.FORWARD, 0, hidden)
            hold_keys_before()
            peaks = {}
            del y
            before = live.now
            live.restart()
            with torch.no_grad():
                y = run(Pass.FORWARD, tile, hidden)
            peaks["forward"] = live.peak - before
            del y
            linears.want_output(wanted=False)
            if saved is not None:
                saved.read(0, tile)  # makes the readers
            mixer.begin_backward()
            hold_keys_before()
            before = live.now
            live.restart()
            x = hidden.detach().requires_grad_()
            y = run(Pass.GRADIENT, tile, x)
            y = y[0] if isinstance(y, tuple) else y
            torch.autograd.backward(y, gradient)
            peaks["backward"] = live.peak - before
    finally:
        linears.close()
    return Counted(forward=peaks["forward"], backward=peaks["backward"], stores=_held_by(attention))


def _held_by(attention) -> int:
    tensors = (x for cache in attention.caches for x in vars(cache).values() if torch.is_tensor(x))
    return sum(x.untyped_storage().nbytes() for x in tensors)


class _Silent:
    def progress(self, *_, **__):
        pass

    def stop_requested(self):
        return False


def count_window(spec, tokens: int, *, recompute: bool, fused: bool, full: bool = False):
    """Most bytes that one whole window takes on the CPU in 16 bits, beyond what is trained; numbers are real.

    `full`: every weight is trained, and there are no gradients yet.
    """
    cpu = torch.device("cpu")
    base = random_model(spec, Placement(device=cpu, precision="bf16", compute="bf16"))
    tuning = FullTuning(base, cpu) if full else AdapterTuning(attach_adapter(base, LoraSection(), seed=0))
    model = tuning.model.train()
    trained = list(tuning.weights.values())
    if not full:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    gradients = None if tuning.masters is None else tuning.masters.gradients
    step = WholeSequenceStep(model, recompute=recompute, autocast=autocast, gradients=gradients)
    window = Window(torch.randint(0, spec.vocab_size, (tokens + 1,)).numpy())
    with _like_liger(base, spec.family) if fused else nullcontext(), LiveBytes("cpu") as live:
        live.ignore(*model.parameters(), *model.buffers(), *trained, *(p.grad for p in trained if p.grad is not None))
        step.run([window], 1.0 / tokens, _Silent())
    return live.peak
