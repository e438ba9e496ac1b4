"""Proofs of the streamed step's options, each against whole-sequence backpropagation, with its savings."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.plan.stream_plan import StreamPlan
from engine.steps.whole_step import WholeSequenceStep
from engine.streaming import attended_tile
from engine.streaming.step import StreamedStep
from engine.verify.measure import counted_calls, mib, peak_bytes, relative_error
from engine.verify.proof import Bench, ProofFailedError, demand, need_gpu, need_library
from engine.verify.small import Unbothered, adapted, gradients, random_tokens, small_model

EXACT = 5e-5
"""Relative difference that fp32 rounding explains on a GPU; a CPU stays near 1e-6."""
_LENGTH, _TILE = 700, 128


def _plan(bench: Bench, **options: Any) -> StreamPlan:
    """Builds a plan of several tiles and blocks, with a kernel that computes in fp32."""
    backend = "efficient" if bench.on_gpu else "cpu"
    return StreamPlan(**{"tile": _TILE, "key_block": 256, "attention": backend, **options})


def _model(bench: Bench, **shape: Any) -> Any:
    home = torch.device("cpu") if shape.pop("on_host", False) else bench.device
    return adapted(small_model(device=home, **shape))


def _whole(bench: Bench, length: int = _LENGTH, **shape: Any) -> dict[str, Tensor]:
    """Returns the gradient by plain backpropagation of the same model over the same window."""
    model = _model(bench, **shape)
    WholeSequenceStep(model, recompute=False).run([random_tokens(length)], 1 / (length - 1), Unbothered())
    return gradients(model)


def _streamed(
    bench: Bench,
    plan: StreamPlan,
    length: int = _LENGTH,
    look: Callable[[StreamedStep], Any] = lambda _: None,
    **shape: Any,
) -> tuple[dict[str, Tensor], Any]:
    """Returns the gradient by the streamed step, and the value of `look` on the step afterwards."""
    model = _model(bench, on_host=plan.streams_weights, **shape)
    tokens = torch.as_tensor(random_tokens(length).ids)
    with StreamedStep(model, plan, device=bench.device, spill_directory=bench.folder) as step:
        step.run(tokens)
        return gradients(model), look(step)


def _peak(bench: Bench, plan: StreamPlan, length: int, **shape: Any) -> tuple[int, float]:
    """Returns the peak bytes of one step on the device beside the model, and the seconds of a second step."""
    model = _model(bench, on_host=plan.streams_weights, **shape)
    tokens = torch.as_tensor(random_tokens(length).ids)
    with StreamedStep(model, plan, device=bench.device, spill_directory=bench.folder) as step:
        peak = peak_bytes(bench.device, lambda: step.run(tokens))
        began = time.perf_counter()
        step.run(tokens)
        return peak, time.perf_counter() - began


def _exact(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    error = relative_error(found, expected)
    demand(error < EXACT, f"the gradient differs by {error:.1e} from whole-sequence backpropagation")
    return f"gradient within {error:.1e} of whole-sequence fp32"


def streamed_backprop(bench: Bench) -> str:
    """The gradient is the same; the device's memory grows far less with the context."""
    same = _exact(_streamed(bench, _plan(bench))[0], _whole(bench))
    shape: dict[str, Any] = {"num_hidden_layers": 6, "intermediate_size": 256}
    homes = {"hidden_home": "host", "kv_home": "host"} if bench.on_gpu else {"hidden_home": "disk"}
    plan = _plan(bench, stash=False, key_block=2048, **homes)
    tiled = [_peak(bench, plan, n, **shape)[0] for n in (512, 1024)]
    whole = [peak_bytes(bench.device, partial(_whole, bench, n, **shape)) for n in (512, 1024)]
    growth = [(peaks[1] - peaks[0]) / 512 for peaks in (whole, tiled)]
    demand(growth[1] < growth[0] / 5, f"{growth[1]:.0f} B a token more, whole windows {growth[0]:.0f}")
    return f"{same}; {growth[1]:,.0f} B a further token instead of {growth[0]:,.0f}"


def paged_kv(bench: Bench) -> str:
    """The gradient is the same with pages on the host; the GPU holds two pages instead of all keys and values."""
    need_gpu(bench, "on a CPU the host is the device, and there is nothing to page")
    expected = _whole(bench)
    same = _exact(_streamed(bench, _plan(bench, kv_home="host"))[0], expected)
    length = 32768
    coarse = {"tile": 512, "key_block": 4096}
    peaks = {home: _peak(bench, _plan(bench, kv_home=home, **coarse), length)[0] for home in ("gpu", "host")}
    demand(peaks["host"] < 0.7 * peaks["gpu"], f"GPU peak {mib(peaks['gpu'])} → {mib(peaks['host'])}")
    return f"{same}; GPU peak at {length:,} tokens {mib(peaks['gpu'])} → {mib(peaks['host'])}"


def attention_stash(bench: Bench) -> str:
    """The gradient is the same; attention is computed once per tile and layer instead of twice."""
    expected = _whole(bench)
    calls = {}
    for stash in (False, True):
        with counted_calls(attended_tile, "attend") as counted:
            found, _ = _streamed(bench, _plan(bench, stash=stash))
        calls[stash] = counted[0]
    same = _exact(found, expected)
    demand(2 * calls[True] <= calls[False], f"attention forward passes {calls[False]} → {calls[True]}")
    return f"{same}; attention forward passes {calls[False]} → {calls[True]}"


def _stored(step: StreamedStep) -> int:
    return step.streamed.workspace.hidden.stored_bytes


def selective_checkpointing(bench: Bench) -> str:
    """The gradient is the same with only every third layer's input kept."""
    shape: dict[str, Any] = {"num_hidden_layers": 9}
    found, stored = _streamed(bench, _plan(bench, checkpoint_every=3, stash=False), look=_stored, **shape)
    _, every = _streamed(bench, _plan(bench, stash=False), look=_stored, **shape)
    same = _exact(found, _whole(bench, **shape))
    demand(9 * stored == 5 * every, f"hidden states {mib(every)} → {mib(stored)}, expected 5 of 9 arrays")
    return f"{same}; hidden states of 9 layers {mib(every)} → {mib(stored)} (3 kept, 2 computed again)"


def activation_4bit(bench: Bench) -> str:
    """Bytes of hidden states fall; reports the error."""
    need_library("bitsandbytes", "quant")
    expected = _whole(bench)
    found: dict[int, tuple[dict[str, Tensor], int]] = {
        bits: _streamed(bench, _plan(bench, activation_bits=bits), look=_stored) for bits in (16, 8, 4)
    }
    errors = {bits: relative_error(gradient, expected) for bits, (gradient, _) in found.items()}
    bytes_ = {bits: stored for bits, (_, stored) in found.items()}
    # Hidden states are fp32 here: 32 bits → 8 + 32/64 and 4 + 32/64.
    ratios = [bytes_[16] / bytes_[bits] for bits in (8, 4)]
    demand(ratios[0] > 3.7 and ratios[1] > 7, f"hidden states / {ratios[0]:.2f} and / {ratios[1]:.2f}")
    demand(errors[16] < errors[8] < errors[4] < 1, f"gradient errors {errors[8]:.1e} and {errors[4]:.1e}")
    return (
        f"hidden states {mib(bytes_[16])} (fp32) → {mib(bytes_[8])} and {mib(bytes_[4])}; "
        f"largest gradient error {errors[8]:.1%} at 8 bits, {errors[4]:.0%} at 4 (approximate)"
    )


def activation_offload(bench: Bench) -> str:
    """The gradient is the same with hidden states offloaded from the device."""
    shape: dict[str, Any] = {"num_hidden_layers": 12}
    home = "host" if bench.on_gpu else "disk"
    same = _exact(_streamed(bench, _plan(bench, hidden_home=home), **shape)[0], _whole(bench, **shape))
    plans = {where: _plan(bench, hidden_home=where, stash=False, key_block=1024) for where in ("gpu", home)}
    measured = {where: _peak(bench, plan, 1024, **shape) for where, plan in plans.items()}
    peaks = {where: peak for where, (peak, _) in measured.items()}
    seconds = {where: taken for where, (_, taken) in measured.items()}
    demand(peaks[home] < 0.85 * peaks["gpu"], f"device peak {mib(peaks['gpu'])} → {mib(peaks[home])}")
    slower = seconds[home] / seconds["gpu"] - 1
    return f"{same}; device peak {mib(peaks['gpu'])} → {mib(peaks[home])} with the {home} as home, {slower:+.0%} time"


def weight_streaming(bench: Bench) -> str:
    """The gradient is the same with only two layers' weights on the device."""
    shape: dict[str, Any] = {"num_hidden_layers": 8}

    def device_bytes(step: StreamedStep) -> int:
        held = getattr(step.streamed.weights, "device_bytes", None)
        if held is None:
            raise ProofFailedError("every layer's weights are on the device")
        return int(held)

    found, held = _streamed(bench, _plan(bench, weights="streamed"), look=device_bytes, **shape)
    layers = small_model(**shape).get_decoder().layers
    whole = sum(p.numel() * p.element_size() for layer in layers for p in layer.parameters())
    same = _exact(found, _whole(bench, **shape))
    demand(held < 1.1 * whole * 2 / 8, f"layer weights on the device {mib(whole)} → {mib(held)}")
    return f"{same}; layer weights on the device {mib(whole)} → {mib(held)} (2 of 8 layers)"
