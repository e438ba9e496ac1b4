"""The OOM error of a streamed step, which names the largest allocation and a smaller plan."""

from __future__ import annotations

import errno

import torch
from torch import nn

from engine.errors import EliteError
from engine.errors.training import OUT_OF_MEMORY
from engine.plan.stream_plan import StreamPlan
from engine.plan.window_ring import ring_for
from engine.streaming.decoder import Decoder

_GIB = 2**30
_CPU_ALLOCATOR_WORDS = ("can't allocate memory", "not enough memory")


def full_place(error: BaseException) -> str | None:
    """Names the full memory, "GPU", "host" or "disk"; None for any other error.

    torch's CPU allocator has no exception of its own and raises RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return "GPU"
    if isinstance(error, MemoryError) or any(words in str(error) for words in _CPU_ALLOCATOR_WORDS):
        return "host"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    return None


def out_of_memory(
    place: str, phase: str, model: nn.Module, decoder: Decoder, plan: StreamPlan, context: int
) -> EliteError:
    """Returns the typed error for the home that was full, "GPU", "host" or "disk"."""
    on_gpu = place == "GPU"
    here = _homes_in(place, decoder.embedding.weight.device)
    between = _largest_between(decoder, plan, context, here)
    largest = _largest_on_gpu(model, decoder, plan, context) if on_gpu else between
    pageable = plan.kv_home == "gpu" and ring_for(decoder.widest_window, plan.tile, context) is None
    remedy = _smaller_plan(place, plan, here, pageable=pageable)
    return OUT_OF_MEMORY(place=place, phase=phase, largest=largest, remedy=remedy)


def _largest_on_gpu(model: nn.Module, decoder: Decoder, plan: StreamPlan, context: int) -> str:
    config, shape, item = decoder.config, decoder.attention_shape, decoder.embedding.weight.element_size()
    weights = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters() if p.is_cuda}
    parts = {
        "the weights": sum(weights.values()),
        "one tile's activations": 6 * min(plan.tile, context) * getattr(config, "intermediate_size", 0) * item,
        "a piece of logits": 3 * min(plan.loss_piece, context) * config.vocab_size * item,
    }
    ring = ring_for(decoder.widest_window, plan.tile, context)
    if plan.kv_home == "gpu" or ring is not None:
        rows = context if ring is None else ring.rows
        parts["keys, values and their gradients"] = 2 * rows * shape.kv_heads * shape.head_dim * (item + 4)
    return _largest(parts)


def _homes_in(place: str, device: torch.device) -> tuple[str, ...]:
    """Lists the homes whose data a full memory holds: on a CPU, "gpu" is host memory too."""
    return ("host", "gpu") if place == "host" and device.type != "cuda" else (place.lower(),)


def _largest_between(decoder: Decoder, plan: StreamPlan, context: int, here: tuple[str, ...]) -> str:
    shape, item, layers = decoder.attention_shape, decoder.embedding.weight.element_size(), len(decoder.layers)
    kept = -(-layers // plan.checkpoint_every) + plan.checkpoint_every
    parts = {}
    if plan.hidden_home in here or not any(home in here for home in plan.homes):
        parts["hidden states"] = kept * context * decoder.hidden_size * item * plan.activation_bits // 16
    elif plan.gradient_home in here:
        parts["the gradient stream"] = context * decoder.hidden_size * item
    if plan.stash and plan.stash_home in here:
        parts["the attention stash"] = layers * context * shape.heads * (shape.head_dim * item + 4)
    return _largest(parts)


def _largest(parts: dict[str, int]) -> str:
    name = max(parts, key=lambda part: parts[part])
    return f"{name} ({parts[name] / _GIB:.2f} GiB)"


def _smaller_plan(place: str, plan: StreamPlan, here: tuple[str, ...], *, pageable: bool) -> str:
    """Lists the settings of a smaller plan.

    `here` lists the homes in the full memory. `pageable` says whether keys and values on the host would free GPU
    memory; rings of windows stay on the GPU.
    """
    steps = []
    if place in ("host", "disk"):
        other = "disk" if place == "host" else "host"
        if plan.stash and plan.stash_home in here:
            steps.append(f"stash_home={other}")
        if plan.hidden_home in here:
            steps.append(f"hidden_home={other}")
        elif plan.gradient_home in here:
            steps.append(f"gradient_home={other}")
        if plan.stash and plan.stash_home in here:
            steps.append("stash=false")
        if plan.hidden_home in here:
            steps.append(f"checkpoint_every={plan.checkpoint_every * 2}")
    else:
        if pageable:
            steps.append("kv_home=host")
        if plan.tile > 256:
            steps.append(f"tile={plan.tile // 2}")
        if not plan.streams_weights:
            steps.append("weights=streamed" if plan.four_bit_weights else "weights=nf4 or streamed")
    return "use " + ", or ".join(steps) if steps else "use a smaller model or a shorter context"
