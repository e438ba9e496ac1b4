"""Tiles and pages that are really copied: each reader's and each page's promise, on its own, whatever the schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.blockwise import attend, attend_backward
from engine.attention.cpu import CpuFlash
from engine.attention.mask_tiles import causal_pieces
from engine.streaming import copies
from engine.streaming.kv_cache import HostKvCache, KvShape
from engine.streaming.tiles import PinnedTiles, TileReader
from tests.support.side_streams import SCHEDULES, simulated

CPU = torch.device("cpu")
ROWS, TILE, WIDTH = 23, 5, 3
TILES = -(-ROWS // TILE)


def test_a_slot_keeps_its_tile_until_another_one_is_read():
    """The order of a layer's backward pass over ranks: a tile is fetched ahead, and read last."""
    with simulated("to the device early, home early"):
        streams = copies.copy_streams(CPU)
        array = PinnedTiles(ROWS, WIDTH, torch.float32, TILE, streams)
        for tile in range(TILES):
            array.write(tile, torch.full((TILE, WIDTH), float(tile))[: ROWS - tile * TILE])
        reader = TileReader(WIDTH, torch.float32, TILE, CPU)
        reader.prefetch(array, 0)
        for tile in reversed(range(TILES)):
            reader.prefetch(array, tile)
            found = reader.read(array, tile)
            for other in range(TILES):
                reader.prefetch(array, other)
            assert (found == tile).all()


@settings(max_examples=150)
@given(data=st.data())
def test_what_was_read_is_what_was_written(data):
    """Any order of fetches, reads and writes in which no tile is written that is on its way."""
    with simulated(data.draw(st.sampled_from(list(SCHEDULES)))):
        streams = copies.copy_streams(CPU)
        arrays = [PinnedTiles(ROWS, WIDTH, torch.float32, TILE, streams) for _ in range(2)]
        reader = TileReader(WIDTH, torch.float32, TILE, CPU)
        kept, number = {}, 0

        def write(array, tile):
            nonlocal number
            number += 1
            value = torch.full((min(TILE, ROWS - tile * TILE), WIDTH), float(number))
            arrays[array].write(tile, value)
            kept[array, tile] = number

        for array in range(2):
            for tile in range(TILES):
                write(array, tile)
        lent, asked = None, set()
        places = st.tuples(st.integers(0, 1), st.integers(0, TILES - 1))
        for what, place in data.draw(st.lists(st.tuples(st.sampled_from(["fetch", "read", "write"]), places))):
            if lent is not None:
                assert (lent[0] == lent[1]).all()
            if what == "fetch":
                reader.prefetch(arrays[place[0]], place[1])
                asked.add(place)
            elif what == "read":
                lent = reader.read(arrays[place[0]], place[1]), kept[place]
                assert lent[0].shape[0] == min(TILE, ROWS - place[1] * TILE)
                asked.discard(place)
            elif place not in asked:
                write(*place)


def dense_attention(q, k, v, window, documents, scale):
    """By the definition, in fp64: the whole matrix of scores, and a mask."""
    groups = q.shape[1] // k.shape[1]
    i = torch.arange(q.shape[2])
    of = (i[:, None] >= torch.tensor(documents)).sum(1)
    mask = (of[:, None] == of) & (i[:, None] >= i) & (i[:, None] - i < (window or len(i)))
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return torch.softmax((q @ k.mT * scale).masked_fill(~mask, float("-inf")), -1) @ v


@settings(max_examples=80)
@given(data=st.data())
def test_pages_give_the_gradients_of_dense_attention(data):
    """Any window, tile, page and documents; two layers one after the other, then a shorter sequence."""
    n = data.draw(st.integers(2, 48), "context")
    tile, page = data.draw(st.integers(1, 20), "tile"), data.draw(st.integers(1, 24), "page")
    window = data.draw(st.none() | st.integers(1, 50), "window")
    documents = sorted({0, *data.draw(st.lists(st.integers(0, n - 1), max_size=3), "documents")})
    kv_heads = data.draw(st.sampled_from([1, 2]), "kv_heads")
    backend, wide = CpuFlash(), torch.float64
    with simulated(data.draw(st.sampled_from(list(SCHEDULES)), "schedule")):
        store = HostKvCache(
            n, KvShape(kv_heads=kv_heads, key_dim=8, value_dim=8, dtype=wide), CPU, copies.copy_streams(CPU), page
        )
        for layer, length in enumerate((n, n, max(1, n // 2))):
            generator = torch.Generator().manual_seed(layer)
            q, k, v, g = (
                torch.randn(1, heads, length, 8, dtype=wide, generator=generator)
                for heads in (2, kv_heads, kv_heads, 2)
            )
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            starts = [d for d in documents if d < length]
            expected = dense_attention(*leaves, window, starts, 0.3)
            expected.backward(g)

            def arguments(start, length=length, starts=starts):
                stop = min(start + tile, length)
                pieces = causal_pieces(start, stop, key_block=page, window=window, document_starts=starts)
                how = {"start": start, "pieces": list(pieces), "earlier": store, "backend": backend, "scale": 0.3}
                return slice(start, stop), how

            outputs = {}
            for start in range(0, length, tile):
                rows, how = arguments(start)
                own = [x[:, :, rows] for x in (q, k, v)]
                store.append(start, *own[1:])
                outputs[start] = attend(*own, **how)
                assert torch.allclose(outputs[start][0], expected[:, :, rows], atol=1e-10)
            store.zero_gradients()
            for start in reversed(range(0, length, tile)):
                rows, how = arguments(start)
                own = [x[:, :, rows] for x in (q, k, v)]
                assert torch.allclose(attend(*own, **how)[0], outputs[start][0], atol=1e-10)  # where nothing is stashed
                dq, dk, dv = attend_backward(g[:, :, rows], *own, *outputs[start], **how)
                later_dk, later_dv = store.gradients(rows.start, rows.stop)
                for found, leaf in zip((dq, dk + later_dk, dv + later_dv), leaves, strict=True):
                    assert torch.allclose(found, leaf.grad[:, :, rows], atol=1e-10)


def test_a_page_is_read_as_it_was_announced():
    with simulated("by chance"):
        store = HostKvCache(
            32, KvShape(kv_heads=1, key_dim=4, value_dim=4, dtype=torch.float32), CPU, copies.copy_streams(CPU), 8
        )
        store.append(0, *torch.ones(2, 1, 1, 32, 4))
        store.expect([(0, 8), (8, 16)])
        store.kv_cache(2, 5)
        with pytest.raises(RuntimeError, match="not the next"):
            store.kv_cache(16, 24)
        with pytest.raises(RuntimeError, match="not within a page"):
            store.kv_cache(6, 12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_simulation_shows_what_is_read_too_early_or_overwritten_too_early(schedule):
    late_device, late_home = SCHEDULES[schedule]
    with simulated(schedule):
        streams = copies.copy_streams(CPU)
        slot, home = torch.zeros(4), torch.arange(4.0)
        event = copies.begin_copy(streams.to_device, [(slot, home)])
        assert late_device in (0.5, slot.isnan().all())
        home.fill_(9.0)
        copies.wait_for(event)
        assert late_device == 0.5 or (slot == 9.0).all() == bool(late_device)
        value = torch.ones(4)
        event = copies.begin_copy(streams.to_host, [(home, value)])
        assert late_home in (0.5, home.isnan().all())
        copies.begin_copy(streams.to_device, [(slot, home)], [event]).synchronize()
        assert (slot == 1.0).all()
