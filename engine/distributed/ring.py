"""Ring attention (arXiv 2310.01889) over streamed tiles, which sends keys and values from rank to rank.

While a rank attends to the keys and values that it holds, it sends them to the next rank. In the backward pass their
gradients follow them. Each rank adds its queries' contribution, and after a full turn the sums are back at their owner.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from engine.attention.backend import AttentionBackend
from engine.attention.rule import AttentionRule
from engine.distributed.exchange import (
    FORWARD_BLOCKS,
    Attended,
    RunningAttention,
    gradients_of_blocks,
    wide,
)
from engine.distributed.shards import Block, Segment, blocks, rows_of
from engine.distributed.torch_process_group import TorchProcessGroup


class RingExchange:
    """An Exchange for one sequence, by ring attention.

    Args:
        group: Ranks of the ring.
        kept: Segments of the sequence that each rank keeps.
        backend: Kernel of one block.
        tile: Most queries in a block.
        key_block: Most keys in a block of the backward pass.
        document_starts: First positions of packed documents.
    """

    def __init__(
        self,
        group: TorchProcessGroup,
        kept: Sequence[Sequence[Segment]],
        backend: AttentionBackend,
        *,
        tile: int,
        key_block: int,
        document_starts: Sequence[int],
    ) -> None:
        self._group, self._kept, self._backend = group, kept, backend
        self._tile, self._key_block, self._starts = tile, key_block, document_starts
        self._blocks: dict[tuple[int | None, int | None, int], list[list[Block]]] = {}

    def _seen(self, rule: AttentionRule, key_block: int) -> list[list[Block]]:
        key = rule.window, rule.chunk, key_block
        if key not in self._blocks:
            self._blocks[key] = blocks(
                self._kept[self._group.rank],
                self._kept,
                tile=self._tile,
                key_block=key_block,
                window=rule.window,
                document_starts=rule.borders(self._starts, sum(map(rows_of, self._kept))),
            )
        return self._blocks[key]

    def forward(self, q: Tensor, kv: Tensor, rule: AttentionRule) -> Attended:
        """See Exchange."""
        rank, size = self._group.rank, self._group.size
        seen = self._seen(rule, FORWARD_BLOCKS * self._key_block)
        running = RunningAttention(q, self._backend, rule.scale)
        held = kv
        for turn in range(size):
            owner = (rank - turn) % size
            transfer = Transfer(self._group)
            following = held
            if turn + 1 < size:
                following = self._like(kv, owner - 1, kv.dtype)
                transfer.start([(held, following)])
            running.see(held, seen[owner])
            transfer.finish()
            held = following
        return running.result()

    def backward(
        self, grad_out: Tensor, q: Tensor, kv: Tensor, attended: Attended, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """See Exchange."""
        rank, size = self._group.rank, self._group.size
        seen, sums_type = self._seen(rule, self._key_block), wide(q.dtype)
        dq = torch.zeros(q.shape, dtype=sums_type, device=q.device)
        held, sums = kv, torch.empty(0)
        for turn in range(size):
            owner = (rank - turn) % size
            transfer = Transfer(self._group)
            pairs: list[tuple[Tensor, Tensor]] = []
            following, arriving = held, sums
            if turn + 1 < size:
                following = self._like(kv, owner - 1, kv.dtype)
                pairs.append((held, following))
            if turn:  # send the sums of the keys that left last turn, receive those of this turn's keys
                arriving = self._like(kv, owner, sums_type)
                pairs.append((sums, arriving))
            transfer.start(pairs)
            part = gradients_of_blocks(grad_out, q, held, attended, dq, seen[owner], self._backend, rule.scale)
            transfer.finish()
            sums = part if turn == 0 else arriving.add_(part)
            held = following
        if size > 1:
            transfer = Transfer(self._group)
            arriving = self._like(kv, rank, sums_type)
            transfer.start([(sums, arriving)])
            transfer.finish()
            sums = arriving
        return dq, sums

    def _like(self, kv: Tensor, owner: int, dtype: torch.dtype) -> Tensor:
        rows = rows_of(self._kept[owner % self._group.size])
        return torch.empty((2, rows, *kv.shape[2:]), dtype=dtype, device=kv.device)


class Transfer:
    """A pending exchange of tensors with both neighbours in the ring; keeps the tensors alive until `finish`."""

    def __init__(self, group: TorchProcessGroup) -> None:
        self._group = group
        self._pairs: Sequence[tuple[Tensor, Tensor]] = ()
        self._requests: list[distributed.Work] = []

    def start(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Starts to send the first tensor of each pair to the next rank, and to receive into the second.

        The tensors may have any shape; each receives one of the same shape and dtype. Every rank passes as many pairs.
        """
        if not pairs:
            return
        group = self._group
        after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
        send = [distributed.P2POp(distributed.isend, x, after, group=group.tensors) for x, _ in pairs]
        receive = [distributed.P2POp(distributed.irecv, x, before, group=group.tensors) for _, x in pairs]
        self._pairs = pairs
        with group.waiting():
            self._requests = distributed.batch_isend_irecv([*send, *receive])

    def finish(self) -> None:
        """Waits until the received tensors may be used and the sent ones freed."""
        with self._group.waiting():
            for request in self._requests:
                request.wait()
        self._pairs, self._requests = (), []
