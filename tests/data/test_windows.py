from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.packing import Cut, Layout
from engine.data.windows import Window, Windows, epoch_order


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, Layout]:
    """A stream's length and what begins where in it: documents of files of definitions."""
    lengths = draw(st.lists(st.lists(st.integers(2, 90), min_size=1, max_size=5), max_size=20))
    files = np.cumsum([0, *(length for document in lengths for length in document)])
    documents = np.cumsum([0, *(sum(document) for document in lengths)])
    definitions = draw(st.sets(st.integers(0, max(int(files[-1]) - 1, 0)), max_size=30))
    newlines = draw(st.none() | st.just(np.arange(7, dtype=np.uint8) // 6))
    return int(files[-1]), Layout(
        documents=documents[:-1].astype(np.int64),
        files=files[:-1].astype(np.int64),
        definitions=np.array(sorted(definitions), dtype=np.int64),
        newlines=newlines,
    )


@given(layout=layouts(), context=st.integers(8, 300), together=st.booleans(), epoch=st.integers(0, 9))
def test_every_token_exactly_once_an_epoch_and_no_document_cut_across(
    layout: tuple[int, Layout], context: int, together: bool, epoch: int
) -> None:
    tokens, places = layout
    windows = Windows(np.arange(tokens, dtype=np.uint32) % 7, context, places, together=together)
    numbered = Windows(
        np.arange(tokens, dtype=np.uint32),
        context,
        Layout(places.documents, places.files, places.definitions),
        together=together,
    )
    assert windows.token_count == numbered.token_count == tokens
    order = numbered.epoch_order(3, epoch)
    assert sorted(order) == list(range(len(numbered)))
    visited = [numbered[int(index)] for index in order]
    assert sorted(np.concatenate([window.ids for window in visited])) == list(range(tokens)) if visited else not tokens
    ends = {int(end) for end in (*places.documents[1:], tokens)}
    for window in visited:
        assert 2 <= len(window) <= context
        assert window.targets >= 1
        for start, stop in zip(window.starts, (*window.starts[1:], len(window)), strict=True):
            part = window.ids[start:stop]
            assert list(np.diff(part)) == [1] * (len(part) - 1)
            assert not {int(token) + 1 for token in part[:-1]} & ends
        assert together or len(window.starts) == 1


@given(
    lengths=st.lists(st.integers(200, 3000), min_size=300, max_size=400),
    context=st.sampled_from([512, 1024]),
    seed=st.integers(0, 2**32 - 1),
)
def test_hardly_a_place_stays_empty(lengths: list[int], context: int, seed: int) -> None:
    starts = np.cumsum([0, *lengths])
    definitions = np.unique(np.random.Generator(np.random.PCG64(seed)).integers(0, starts[-1], starts[-1] // 100))
    layout = Layout(starts[:-1], starts[:-1], definitions.astype(np.int64), np.ones(1, dtype=np.uint8))
    windows = Windows(np.zeros(starts[-1], dtype=np.uint16), context, layout)
    assert windows.figures.waste < 0.02


def test_packed_windows_are_far_fewer_than_documents() -> None:
    starts = np.arange(0, 300_000, 300)
    layout = Layout(starts, starts, np.empty(0, dtype=np.int64))
    stream = np.zeros(300_000, dtype=np.uint16)
    packed = Windows(stream, 4096, layout)
    alone = Windows(stream, 4096, layout, together=False)
    assert (len(packed), len(alone)) == (77, 1000)
    assert packed.figures.padded(4096) == pytest.approx(1 - 300 / 4096)


def test_cuts_come_before_files_then_definitions_then_after_lines() -> None:
    tokens = np.zeros(400, dtype=np.uint16)
    tokens[[150, 198]] = 1  # line ends
    newlines = np.array([0, 1], dtype=np.uint8)

    def second_start(files: list[int], definitions: list[int], lines: bool = True) -> int:
        layout = Layout(
            np.zeros(1, dtype=np.int64),
            np.array([0, *files], dtype=np.int64),
            np.array(definitions, dtype=np.int64),
            newlines if lines else None,
        )
        return len(Windows(tokens, 200, layout)[0])

    assert second_start([198], [199]) == 198
    assert second_start([100], [198]) == 198
    assert second_start([100], [150]) == 199
    assert second_start([100], [150], lines=False) == 200


def test_windows_are_int64_and_end() -> None:
    windows = Windows(np.arange(10, dtype=np.uint16), 4)
    assert [list(window.ids) for window in windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert windows[0].ids.dtype == np.int64
    with pytest.raises(IndexError):
        windows[3]
    with pytest.raises(IndexError):
        windows[-1]
    with pytest.raises(ValueError, match="at least 2"):
        Windows(np.arange(3, dtype=np.uint16), 1)
    assert len(Windows(np.arange(1, dtype=np.uint16), 4)) == 0
    assert len(Windows(np.arange(0, dtype=np.uint16), 4)) == 0


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), targets=st.integers(1, 80))
def test_the_first_targets_of_a_window(lengths: list[int], targets: int) -> None:
    starts = tuple(np.cumsum([0, *lengths])[:-1].tolist())
    window = Window(np.arange(sum(lengths)), starts)
    assert window.targets == sum(lengths) - len(lengths)
    first = window.first_targets(targets)
    assert first.targets == min(targets, window.targets)
    assert list(window.positions()) == [place for length in lengths for place in range(length)]


def test_order_is_of_the_seed_and_the_epoch() -> None:
    assert list(epoch_order(50, 1, 2)) == list(epoch_order(50, 1, 2))
    assert len({tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    # Golden: a resumed run must visit the windows in the same order on any version of numpy.
    assert list(epoch_order(8, 0, 0)) == [3, 2, 1, 6, 0, 7, 4, 5]
    assert list(epoch_order(0, 0, 0)) == []


def test_a_cut_falls_after_a_statement_rather_than_within_its_brackets() -> None:
    # Ids: 0 text, 1 line end, 2 an opening bracket, 3 a closing one, 4 an opening brace, 5 a closing one.
    newlines = np.array([0, 1, 0, 0, 0, 0], dtype=np.uint8)
    depths = np.array([[0, 0, 1, -1, 0, 0], [0, 0, 0, 0, 1, -1]], dtype=np.int8)
    statement = [0, 0, 1]
    call = [0, 2, 1, 0, 0, 1, 0, 0, 1, 3, 1]
    block = [0, 4, 1, 0, 0, 1, 5, 1]
    begin = np.zeros(1, dtype=np.int64)

    def first_part(tokens: list[int], context: int) -> tuple[int, tuple[int, ...]]:
        stream = np.array(tokens, dtype=np.uint16)
        layout = Layout(begin, begin, begin[:0], newlines, depths)
        windows = Windows(stream, context, layout)
        return len(windows[0]), windows.figures.cuts

    filling = statement * 200
    # 9 tokens of 600 may stay empty: the last two line ends lie within the call, the one before it does not.
    length, cuts = first_part([*filling[:597], *call, *filling], 604)
    assert length == 597
    assert cuts[Cut.STATEMENT] > 0
    assert cuts[Cut.LINE] == cuts[Cut.TOKEN] == 0
    # Of two line ends outside of round brackets the one outside of the block.
    assert first_part([*filling[:597], *block, *filling], 603)[0] == 597
    # A call that is longer than what may stay empty is cut after a line.
    length, cuts = first_part([*filling[:30], 0, 2, *(statement * 300), 3, 1], 200)
    assert cuts[Cut.LINE] > 0
