"""Conversations in windows: none is cut that fits, longer ones are refused, dropped, cut or split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.conversations import CALL, GOOD, SAID, TEXT, build, learnt_texts, some, tokenizer, write

from engine.errors import EliteError
from engine.tokenization.encoder import Encoder

LONG = [
    {
        "messages": [
            {"role": "user", "content": f"{TEXT}{i}"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "old output " * 60},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "new output " * 10},
            SAID,
        ]
    }
    for i in range(6)
]


def test_longer_conversations_are_refused_dropped_cut_or_split(tmp_path: Path) -> None:
    short = some({"messages": GOOD}, 10)
    path = write(tmp_path / "rows.jsonl", [*short, *LONG])
    lengths = build(tmp_path, path).store.conversations()
    limit = int(lengths.max()) - 50
    assert sum(lengths > limit) == 6
    with pytest.raises(EliteError) as caught:
        build(tmp_path, path, limit=limit)
    assert caught.value.code == "conversations-overlong"
    assert f"6 of 16 conversations are longer than the context of {limit:,} tokens" in str(caught.value)
    assert "train at tier 1 (4,096 tokens), which holds all" in caught.value.remedy
    dropped = build(tmp_path, path, limit=limit, overlong="drop")
    assert dropped.summary.skipped["overlong"] == 6
    assert sum(len(w.starts) for windows in (dropped.train, dropped.held_out) for w in windows) == 10
    split = build(tmp_path, path, limit=limit, overlong="split")
    assert sum(map(len, (*split.train, *split.held_out))) == sum(lengths)
    assert "are cut into several windows" in split.summary.notes[-1]
    cut = build(tmp_path, path, limit=limit, overlong="cut-oldest-tool-output")
    assert cut.store.shortened == 6
    assert max(cut.store.conversations()) <= limit
    text = Encoder(tokenizer()).decode(cut.store.tokens.tolist())
    assert text.count("characters of output left out") == 6
    assert "old output" not in text
    assert text.count("new output") == 60
    assert sorted(learnt_texts(cut)) == sorted(learnt_texts(split))
    assert build(tmp_path, path, limit=limit, overlong="cut-oldest-tool-output").summary.reused


def test_conversations_that_fit_are_never_cut(tmp_path: Path) -> None:
    draw = np.random.RandomState(0)
    rows = [
        {"messages": [{"role": "user", "content": f"{i} " + "x " * draw.randint(1, 120)}, SAID]} for i in range(120)
    ]
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows))
    longest = int(dataset.store.conversations().max())
    for context in (longest, longest + 7, 2 * longest, 1000):
        windows = dataset.train.with_context(context)
        starts = {0, *np.cumsum(dataset.store.conversations()).tolist()}
        for index, window in enumerate(windows):
            assert len(window) <= context
            places = windows.places(index)
            assert all(int(places[start]) in starts for start in window.starts)
            assert int(places[-1]) + 1 in starts
        assert sum(map(len, windows)) == dataset.summary.train_tokens


def test_answers_to_one_request_stand_on_one_side(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"request {i % 20}"},
                {"role": "assistant", "content": f"answer {i}"},
            ]
        }
        for i in range(100)
    ]
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows))
    sides: dict[int, set[bool]] = {}
    first_held_out = len(dataset.store.files) - dataset.summary.held_out_files
    for place, file in enumerate(dataset.store.files):
        number = int(file.path.rpartition("/")[2])
        sides.setdefault(number % 20, set()).add(place >= first_held_out)
    assert len(sides) == 20
    assert all(len(side) == 1 for side in sides.values())


def test_labels_survive_a_build_that_was_cut_short(tmp_path: Path) -> None:
    from engine.data.store import StoreBuilder, open_store

    draw = np.random.RandomState(0)
    masks = [draw.rand(length) < 0.5 for length in (3, 8, 1, 13, 0, 30, 7)]
    entries = [(f"f{number}", 0, "Conversation", number) for number in range(len(masks))]
    with StoreBuilder(tmp_path, "key", np.dtype("<u2"), masked=True) as builder:
        for number, mask in enumerate(masks[:4]):
            builder.append(np.zeros(len(mask), np.uint32), np.empty(0, np.int64), mask, shortened=number == 1)
        builder.checkpoint()
        builder.append(np.zeros(5, np.uint32), np.empty(0, np.int64), np.ones(5, bool))
    with StoreBuilder(tmp_path, "key", np.dtype("<u2"), masked=True) as builder:
        assert builder.files == 4
        for mask in masks[4:]:
            builder.append(np.zeros(len(mask), np.uint32), np.empty(0, np.int64), mask)
        builder.finish(entries, np.zeros(9, np.uint8))
    store = open_store(tmp_path, "key")
    assert store is not None
    assert store.learnt is not None
    assert store.learnt.among(0, len(store.tokens)).tolist() == np.concatenate(masks).tolist()
    assert store.learnt.count() == np.concatenate(masks).sum()
    assert store.shortened == 1
    for _ in range(20):
        first, last = sorted(draw.randint(0, len(store.tokens) + 1, 2))
        assert (
            store.learnt.of(first, last).among(0, last - first).tolist() == np.concatenate(masks)[first:last].tolist()
        )
