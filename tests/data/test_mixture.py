"""Mixtures: shares of the tokens over a run, every source accounted for, and the same again from the same seed."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.conversations import GOOD, tokenizer, write

from engine.config import DataSection, TrainingSection
from engine.data.dataset import Dataset, build_dataset
from engine.data.packing import Layout
from engine.data.report import describe
from engine.data.stages import StagedWindows, plan_stages
from engine.data.window_source import count_updates, plan_updates
from engine.data.windows import Windows
from engine.errors import EliteError


def synthetic(sizes: list[list[int]], shares: list[float] | None, context: int) -> Windows:
    """Windows over counting numbers; the documents of the sources alternate in the stream."""
    lengths = [
        (source, length)
        for row in itertools.zip_longest(*sizes)
        for source, length in enumerate(row)
        if length is not None
    ]
    starts = np.cumsum([0, *(length for _, length in lengths)])
    layout = Layout(
        documents=starts[:-1],
        files=starts[:-1],
        definitions=np.empty(0, dtype=np.int64),
        sources=None if shares is None else np.array([source for source, _ in lengths]),
    )
    return Windows(np.arange(starts[-1], dtype=np.uint32), context, layout, shares=shares)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[list[int]], list[float], int]:
    count = draw(st.integers(1, 4))
    sizes = [draw(st.lists(st.integers(2, 300), min_size=1, max_size=30)) for _ in range(count)]
    raw = [draw(st.floats(0.05, 1.0)) for _ in range(count)]
    return sizes, [share / sum(raw) for share in raw], draw(st.sampled_from([16, 64, 200]))


@given(mixtures(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_prefix_of_a_run_has_the_shares_within_a_window(
    made: tuple[list[list[int]], list[float], int], seed: int
) -> None:
    sizes, shares, context = made
    windows = synthetic(sizes, shares, context)
    owner = np.repeat(
        [s for row in itertools.zip_longest(*sizes) for s, n in enumerate(row) if n is not None],
        [n for row in itertools.zip_longest(*sizes) for n in row if n is not None],
    )
    for window in windows:
        assert len(set(owner[window.ids])) == 1
    together = np.sort(np.concatenate([window.ids for window in windows]))
    assert len(np.unique(together)) == len(together)
    order = np.concatenate([windows.epoch_order(seed, epoch) for epoch in range(4)])
    taken, seen = np.zeros(len(shares)), [Counter[int]() for _ in shares]
    for index in order.tolist():
        source = int(owner[windows[index].ids[0]])
        taken[source] += windows.length(index)
        seen[source][index] += 1
        assert (np.abs(taken - np.array(shares) * taken.sum()) <= len(shares) * context).all()
        # Each source's windows are seen alike: none a second time before all were seen once.
        of_source = [seen[source][other] for other in windows.by_source[source].tolist()]
        assert max(of_source) - min(of_source) <= 1
    # A pass has the tokens of a pass without shares, within a window of each source.
    assert abs(taken.sum() / 4 - windows.token_count) <= len(shares) * context + 0.25 * windows.token_count


@given(mixtures(), st.integers(0, 3), st.sampled_from([0.5, 1.0, 2.5]), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_updates_are_a_function_of_seed_and_number(
    made: tuple[list[list[int]], list[float], int], seed: int, epochs: float, done: int
) -> None:
    sizes, shares, context = made
    training = TrainingSection(seed=seed, epochs=epochs, tokens_per_update=3 * context)
    whole = list(plan_updates(synthetic(sizes, shares, context), training, context))
    assert whole == list(plan_updates(synthetic(sizes, shares, context), training, context))
    assert count_updates(synthetic(sizes, shares, context), training, context) == len(whole)
    assert whole[-1].epoch == pytest.approx(epochs, abs=0.51 if len(whole) < 3 else 0.3)
    longer = TrainingSection(seed=seed, epochs=epochs + 1, tokens_per_update=3 * context)
    again = list(plan_updates(synthetic(sizes, shares, context), longer, context))
    number = min(done, len(whole) - 1)
    assert [update.windows for update in again[:number]] == [update.windows for update in whole[:number]]


def test_one_source_with_a_share_is_as_without() -> None:
    sizes = [[40, 3, 200, 17, 90]]
    with_share, without = synthetic(sizes, [1.0], 64), synthetic(sizes, None, 64)
    for epoch in range(3):
        assert with_share.epoch_order(5, epoch).tolist() == without.epoch_order(5, epoch).tolist()


def test_stages_keep_the_shares() -> None:
    sizes, shares = [[400] * 30, [100] * 20], [0.25, 0.75]
    long = synthetic(sizes, shares, 400)
    staged = StagedWindows([long.with_context(100), long])
    updates = plan_stages(staged, [60, 30], TrainingSection(tokens_per_update=400, seed=1))
    owner = np.repeat([0, 1] * 20 + [0] * 10, [400, 100] * 20 + [400] * 10)
    taken = np.zeros(2)
    visits = np.zeros(staged.stages[0].stream_tokens, dtype=int)
    for update in updates:
        for index in update.windows:
            ids = staged[index].ids
            taken[owner[ids[0]]] += len(ids)
            visits[ids] += 1
    assert taken / taken.sum() == pytest.approx(shares, abs=0.02)
    # 9,000 tokens of 12,000, and 27,000 of 2,000.
    assert visits[owner == 0].max() <= 2
    assert 11 <= visits[owner == 1].min() <= visits[owner == 1].max() <= 16


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    code = tmp_path / "code"
    code.mkdir()
    for number in range(12):
        (code / f"m{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 4)
    draw = np.random.RandomState(0)
    chats = [
        {"messages": [{"role": "user", "content": f"{n} " + "x " * draw.randint(1, 60)}, *GOOD[1:]]} for n in range(40)
    ]
    texts = [{"text": f"prose {n} " * 9} for n in range(10)]
    return {
        "repositories": [str(code)],
        "datasets": [str(write(tmp_path / "chats.jsonl", chats)), str(write(tmp_path / "prose.jsonl", texts))],
        "near_duplicates": "keep",
        "documents": "file",
    }


def build(tmp_path: Path, sources: dict[str, Any], context: int = 128, **options: Any) -> Dataset:
    data = DataSection(**{**sources, **options})
    return build_dataset(data, tokenizer=tokenizer(), context=context, cache=tmp_path / "cache")


def test_the_report_counts_each_source(tmp_path: Path, sources: dict[str, Any]) -> None:
    plain = build(tmp_path, sources)
    mixed = build(tmp_path, sources, mixture=["code=2", "chats.jsonl=1", "prose=1"])
    assert mixed.summary.store == plain.summary.store
    report = describe(mixed)
    rows = {row.name: row for row in report.sources}
    assert list(rows) == ["code", "chats.jsonl", "prose"]
    assert [row.share for row in report.sources] == [0.5, 0.25, 0.25]
    assert sum(row.tokens for row in report.sources) == report.train_tokens
    assert sum(row.loss_tokens + row.held_out_loss_tokens for row in report.sources) == report.loss_tokens
    assert sum(row.documents for row in report.sources) == len(mixed.summary.files) - mixed.summary.held_out_files
    assert [row.tokens for row in describe(plain).sources] == [row.tokens for row in report.sources]
    assert {row.share for row in describe(plain).sources} == {None}
    # What a pass visits, counted from its windows.
    store, tokens, labels = mixed.store, Counter[str](), Counter[str]()
    names = [
        ("code" if f.language == "Python" else "prose" if "prose" in f.path else "chats.jsonl") for f in store.files
    ]
    owner = np.repeat(names, [file.tokens for file in store.files])
    every = [mixed.train.epoch_order(0, epoch) for epoch in range(20)]
    for index in np.concatenate(every).tolist():
        window, places = mixed.train[index], mixed.train.places(index)
        (name,) = set(owner[places].tolist())
        tokens[name] += len(window)
        labels[name] += window.targets
    for name, row in rows.items():
        assert tokens[name] / tokens.total() == pytest.approx(row.share, abs=0.01)
        assert tokens[name] / 20 == pytest.approx(row.passes * row.tokens, rel=0.1)
        assert labels[name] / tokens[name] == pytest.approx(row.loss_tokens / row.tokens, rel=0.05)
    held_out = [[window.ids.tolist() for window in one.held_out] for one in (plain, mixed)]
    assert held_out[0] == held_out[1]
    assert "50.0% of the tokens are from code" in " ".join(mixed.summary.notes)


def test_conversations_in_a_mixture_are_whole_and_apart(tmp_path: Path, sources: dict[str, Any]) -> None:
    dataset = build(tmp_path, sources, 400, mixture=["code=0.7", "datasets=0.3"])
    assert max(dataset.store.conversations()) < 400
    starts = {0, *dataset.store.offsets().tolist()}
    for index, window in enumerate(dataset.train):
        places = dataset.train.places(index)
        talks = [dataset.store.files[int(np.searchsorted(dataset.store.offsets(), p, "right")) - 1] for p in places]
        for start in window.starts:
            if talks[start].language == "Conversation":
                assert int(places[start]) in starts


@pytest.mark.parametrize(
    ("mixture", "problem"),
    [
        (["code=1"], "it gives no share to .*chats.jsonl"),
        (["code=1", "chats=1", "prose=1", "rows=1"], "'rows' is no source of this run"),
        (["code=0", "datasets=1"], "the share of code is '0', not a number above 0"),
        (["code=x", "datasets=1"], "the share of code is 'x', not a number above 0"),
        (["code=inf", "datasets=1"], "not a number above 0"),
        (["code=nan", "datasets=1"], "not a number above 0"),
        (["code=1", "code=2", "datasets=1"], "it names a source twice"),
        (["history=1", "code=1", "datasets=1"], "'history' is no source"),
    ],
)
def test_mixtures_that_cannot_be_are_refused_on_one_line(
    tmp_path: Path, sources: dict[str, Any], mixture: list[str], problem: str
) -> None:
    with pytest.raises(EliteError, match=problem) as caught:
        build(tmp_path, sources, mixture=mixture)
    assert caught.value.code == "mixture-invalid"
    assert "\n" not in str(caught.value)


def test_pairs_have_no_shares(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    data = DataSection(datasets=[str(write(tmp_path / "pairs.jsonl", rows))], mixture=["pairs=1"])
    with pytest.raises(EliteError, match="pairs of preferences"):
        build_dataset(data, tokenizer=tokenizer(), context=64, cache=tmp_path, preferences=True)


def test_pairs_are_visited_once_a_pass(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}", "chosen": f"a{n}", "rejected": "b"} for n in range(30)]
    data = DataSection(datasets=[str(write(tmp_path / "pairs.jsonl", rows))])
    train = build_dataset(data, tokenizer=tokenizer(), context=64, cache=tmp_path, preferences=True).train
    training = TrainingSection(tokens_per_update=64, epochs=1)
    visited = [index for update in plan_updates(train, training, 64) for index in update.windows]
    assert sorted(visited) == list(range(len(train)))
