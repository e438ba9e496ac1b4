"""Ring attention (arXiv 2310.01889): each process holds a slice of the sequence, and keys and values travel round.

Process r owns the r-th slice. While it attends to the keys and values that it holds, they are on their way to the
next process. Blocks from later slices are passed on unseen (attention is causal); the partial results are merged as
those of one device's blocks are (engine/attention/blockwise.py). In the backward pass the gradients of keys and
values travel with them, and are complete when they are back at home.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from engine.attention.backend import AttentionBackend
from engine.attention.blockwise import merge
from engine.attention.select import select_backend

IMPLEMENTATION = "elite_ring"
"""Name under which transformers finds the function."""


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, backend: AttentionBackend, group: ProcessGroup | None = None
) -> Tensor:
    """Causal attention of this process's queries over the keys of its own and all earlier slices; differentiable.

    Args:
        q: (1, heads, slice, head_dim); slices are equally long.
        k, v: (1, kv_heads, slice, head_dim).
        scale: Multiplies q kᵀ.
        backend: Kernel of one block.
        group: The ring; None is every process.
    """
    result: Tensor = _RingAttention.apply(q, k, v, scale, backend, group)  # type: ignore[no-untyped-call]
    return result


class _RingAttention(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, backend: AttentionBackend, group: ProcessGroup | None
    ) -> Tensor:
        rank, size = distributed.get_rank(group), distributed.get_world_size(group)
        wide = torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros_like(q, dtype=wide)
        logsumexp = q.new_full(q.shape[:3], -torch.inf, dtype=wide)
        held = [k.contiguous(), v.contiguous()]
        for turn in range(size):
            owner = (rank - turn) % size
            arriving, transfer = _pass_on(held, group) if turn + 1 < size else (held, [])
            if owner <= rank:
                block = backend.forward(q, held[0], held[1], causal=owner == rank, scale=scale)
                merge(out, logsumexp, *block)
            _finish(transfer)
            held = arriving
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, logsumexp)
        ctx.scale, ctx.backend, ctx.group = scale, backend, group
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, logsumexp = ctx.saved_tensors
        rank, size = distributed.get_rank(ctx.group), distributed.get_world_size(ctx.group)
        wide = torch.promote_types(q.dtype, torch.float32)
        dq = torch.zeros_like(q, dtype=wide)
        held = [k.contiguous(), v.contiguous()]
        sums = [torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v)]
        for turn in range(size):
            owner = (rank - turn) % size
            arriving, transfer = _pass_on(held, ctx.group)
            if owner <= rank:
                block = ctx.backend.backward(
                    grad_out, q, held[0], held[1], out, logsumexp, causal=owner == rank, scale=ctx.scale
                )
                dq += block[0]
                sums[0] += block[1]
                sums[1] += block[2]
            _finish(transfer)
            # The sums follow their keys: after `size` turns both are at home again.
            sums, transfer = _pass_on(sums, ctx.group)
            _finish(transfer)
            held = arriving
        return dq.to(q.dtype), sums[0].to(k.dtype), sums[1].to(v.dtype), None, None, None


def _pass_on(tensors: list[Tensor], group: ProcessGroup | None) -> tuple[list[Tensor], list[Any]]:
    """Starts to send tensors to the next process and to receive the previous one's."""
    rank, size = distributed.get_rank(group), distributed.get_world_size(group)
    if size == 1:
        return tensors, []
    after, before = (rank + 1) % size, (rank - 1) % size
    arriving = [torch.empty_like(tensor) for tensor in tensors]
    operations = [
        *(distributed.P2POp(distributed.isend, t, group=group, group_peer=after) for t in tensors),
        *(distributed.P2POp(distributed.irecv, t, group=group, group_peer=before) for t in arriving),
    ]
    return arriving, distributed.batch_isend_irecv(operations)


def _finish(transfer: list[Any]) -> None:
    for request in transfer:
        request.wait()


def use_ring_attention(model: Any, group: ProcessGroup | None = None) -> None:
    """Makes a model's layers attend round the ring.

    Each process then calls the model on its own slice, with the slice's `position_ids` in the whole sequence, and
    takes the loss of its own tokens; gradients of weights are summed over the processes.

    Args:
        model: A transformers causal language model without sliding windows.
        group: The ring; None is every process.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    def attend(
        module: nn.Module,  # noqa: ARG001 - transformers' signature
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG001 - causal by slices
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        backend = select_backend(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3])
        return ring_attention(query, key, value, scale=scale, backend=backend, group=group).transpose(1, 2), None

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
    model.config._attn_implementation = IMPLEMENTATION
