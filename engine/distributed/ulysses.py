"""Ulysses attention (arXiv 2309.14509), where ranks exchange shards of the sequence for shards of the heads.

It needs two all-to-alls a layer instead of a turn for each rank. The number of ranks must divide the query heads and
the KV heads.
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
from engine.errors.distributed import STRATEGY_UNAVAILABLE


class UlyssesExchange:
    """An Exchange for one sequence, by all-to-all.

    Arguments are those of RingExchange; each rank keeps one segment, in order.
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
        self._group, self._backend = group, backend
        self._rows = [rows_of(one) for one in kept]
        self._tile, self._key_block, self._starts = tile, key_block, document_starts
        self._blocks: dict[tuple[int | None, int | None, int], list[Block]] = {}

    def _seen(self, rule: AttentionRule, key_block: int) -> list[Block]:
        key = rule.window, rule.chunk, key_block
        if key not in self._blocks:
            whole = [Segment(0, sum(self._rows), 0)]
            (self._blocks[key],) = blocks(
                whole,
                [whole],
                tile=self._tile,
                key_block=key_block,
                window=rule.window,
                document_starts=rule.borders(self._starts, sum(self._rows)),
            )
        return self._blocks[key]

    def forward(self, q: Tensor, kv: Tensor, rule: AttentionRule) -> Attended:
        """See Exchange.

        Raises:
            EliteError: STRATEGY_UNAVAILABLE, for heads that the ranks cannot share evenly.
        """
        self._refuse_heads(q.shape[1], kv.shape[2])
        whole_q, whole_kv = self._gather(q), self._gather_pair(kv)
        running = RunningAttention(whole_q, self._backend, rule.scale)
        running.see(whole_kv, self._seen(rule, FORWARD_BLOCKS * self._key_block))
        found = running.result()
        sums = found.logsumexp[0].T.unsqueeze(-1)  # (tokens, heads, 1)
        return Attended(self._scatter(found.out), self._scatter(sums).squeeze(-1).T.unsqueeze(0).contiguous())

    def backward(
        self, grad_out: Tensor, q: Tensor, kv: Tensor, attended: Attended, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """See Exchange."""
        sums = self._gather(attended.logsumexp[0].T.unsqueeze(-1)).squeeze(-1).T.unsqueeze(0).contiguous()
        whole = Attended(self._gather(attended.out), sums)
        whole_q, whole_kv = self._gather(q), self._gather_pair(kv)
        dq = torch.zeros(whole_q.shape, dtype=wide(q.dtype), device=q.device)
        seen = self._seen(rule, self._key_block)
        dkv = gradients_of_blocks(self._gather(grad_out), whole_q, whole_kv, whole, dq, seen, self._backend, rule.scale)
        return self._scatter(dq), torch.stack([self._scatter(one) for one in dkv])

    def _refuse_heads(self, queries: int, keys: int) -> None:
        """Refuses layers whose heads the plan did not know: some families have other numbers in some layers."""
        ranks = self._group.size
        if queries % ranks or keys % ranks:
            raise STRATEGY_UNAVAILABLE(
                strategy="ulysses",
                problem=f"{queries} query and {keys} key heads of a layer do not divide by {ranks} ranks",
                remedy="use --set distributed.strategy=ring",
            )

    def _gather_pair(self, kv: Tensor) -> Tensor:
        return torch.stack([self._gather(one) for one in kv])

    def _gather(self, x: Tensor) -> Tensor:
        """Exchanges (own tokens, heads, d) of this rank for (all tokens, its share of the heads, d)."""
        size = self._group.size
        parts = torch.cat([part.reshape(-1) for part in x.chunk(size, dim=1)])
        width = x.shape[1] // size * x.shape[2]
        found = x.new_empty(sum(self._rows) * width)
        mine = self._rows[self._group.rank] * width
        with self._group.waiting():
            distributed.all_to_all_single(
                found, parts, [rows * width for rows in self._rows], [mine] * size, group=self._group.tensors
            )
        return found.view(-1, x.shape[1] // size, x.shape[2])

    def _scatter(self, x: Tensor) -> Tensor:
        """Inverts `_gather`, and exchanges (all tokens, a share of the heads, d) for (own tokens, heads, d)."""
        size, mine = self._group.size, self._rows[self._group.rank]
        width = x.shape[1] * x.shape[2]
        found = x.new_empty(size * mine * width)
        with self._group.waiting():
            distributed.all_to_all_single(
                found,
                x.reshape(-1),
                [mine * width] * size,
                [rows * width for rows in self._rows],
                group=self._group.tensors,
            )
        shares = found.view(size, mine, x.shape[1], x.shape[2]).unbind(0)
        return torch.cat(shares, dim=1)
