"""Conversations that are longer than the context: what is cut, and that every label stays."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversations import build, write


def session(draw: random.Random, number: int, outputs: list[int]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"task {number}"}]
    for size in outputs:
        call = {"id": "c", "type": "function", "function": {"name": "run", "arguments": {"c": f"ls {draw.random()}"}}}
        messages.append({"role": "assistant", "content": "I look.", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": "c", "content": "x1 " * size})
    return {"messages": [*messages, {"role": "assistant", "content": f"done {number}"}]}


@pytest.mark.parametrize("context", [300, 333, 509, 1024])
@pytest.mark.parametrize("packing", [True, False])
def test_split_conversations_end_behind_answers_and_keep_every_label(
    tmp_path: Path, context: int, packing: bool
) -> None:
    draw = random.Random(context)
    rows = [session(draw, i, [draw.choice((3, 20, 60)) for _ in range(draw.choice((1, 9, 30)))]) for i in range(30)]
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows), limit=context, overlong="split", packing=packing)
    store = dataset.store
    assert store.learnt is not None
    assert max(store.conversations()) > 4 * context
    sides = (dataset.train, dataset.held_out)
    assert sum(window.targets for side in sides for window in side) == store.loss_tokens() == store.learnt.count()
    ends = {*store.offsets().tolist(), *np.asarray(store.borders).tolist()}
    for side, first in zip(sides, (0, dataset.train.stream_tokens), strict=True):
        for index in range(len(side)):
            assert len(side[index]) <= context
            assert all(first + stop in ends for _, stop in side.spans(index))


def test_many_small_outputs_are_cut_until_a_conversation_fits(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [session(draw, i, [17] * 300) for i in range(3)]
    path = write(tmp_path / "rows.jsonl", rows)
    longest = int(build(tmp_path, path).store.conversations().max())
    bare = write(tmp_path / "bare.jsonl", [session(draw, i, [0] * 300) for i in range(3)])
    assert int(build(tmp_path, bare).store.conversations().max()) < longest * 0.8
    for limit in (longest * 99 // 100, longest * 19 // 20, longest * 9 // 10):
        cut = build(tmp_path, path, limit=limit, overlong="cut-oldest-tool-output")
        assert max(cut.store.conversations()) <= limit
        assert "overlong" not in cut.summary.skipped
