"""How sequences are cut: pure arithmetic, by property."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.mask_tiles import Shape
from engine.config.hosts import Host, join_command, read_hostfile
from engine.data.windows import Window
from engine.distributed.shards import blocks, rows_of, segments
from engine.errors import EliteError
from engine.steps.data_parallel import shares


def pairs_of(block):
    for r in range(block.queries):
        for t in range(block.keys):
            if block.shape is Shape.FULL or (t <= r if block.shape is Shape.CAUSAL else t >= r):
                yield block.query + r, block.key + t


@settings(max_examples=60)
@given(
    context=st.integers(1, 70),
    ranks=st.integers(1, 5),
    order=st.sampled_from(["zigzag", "contiguous"]),
    tile=st.integers(1, 20),
    key_block=st.integers(1, 40),
    window=st.one_of(st.none(), st.integers(1, 80)),
    cuts=st.sets(st.integers(1, 69)),
)
def test_every_pair_is_seen_once(context, ranks, order, tile, key_block, window, cuts):
    starts = [0, *sorted(cut for cut in cuts if cut < context)]
    kept = segments(context, ranks, order)
    assert sorted(p for one in kept for s in one for p in range(s.start, s.stop)) == list(range(context))
    position = [{s.row + i: s.start + i for s in one for i in range(s.stop - s.start)} for one in kept]
    seen = []
    for own in range(ranks):
        found = blocks(
            kept[own], kept, tile=tile, key_block=max(tile, key_block), window=window, document_starts=starts
        )
        for owner, of_owner in enumerate(found):
            seen += [(position[own][q], position[owner][k]) for block in of_owner for q, k in pairs_of(block)]
    document = [max(start for start in starts if start <= i) for i in range(context)]
    expected = [(q, k) for q in range(context) for k in range(document[q], q + 1) if window is None or q - k < window]
    assert sorted(seen) == expected


def test_zigzag_is_even_and_contiguous_is_not():
    def work(order):
        kept = segments(4096, 4, order)
        found = [blocks(one, kept, tile=256, key_block=512, window=None, document_starts=[0]) for one in kept]
        return [sum(b.queries * b.keys for turn in of for b in turn) for of in found]

    assert max(work("zigzag")) < 1.15 * min(work("zigzag"))
    assert max(work("contiguous")) > 4 * min(work("contiguous"))
    assert {rows_of(one) for one in segments(4096, 4, "zigzag")} == {1024}


@given(lengths=st.lists(st.integers(2, 200), min_size=1, max_size=20), ranks=st.integers(1, 6))
def test_windows_are_shared_out_once_and_evenly(lengths, ranks):
    windows = [Window(np.zeros(length, dtype=np.int64)) for length in lengths]
    taken = shares(windows, ranks)
    assert sorted(i for one in taken for i in one) == list(range(len(lengths)))
    if len(lengths) >= ranks:
        assert all(taken)


def test_an_endless_hostfile_is_refused():
    with pytest.raises(EliteError, match="hostfile"):
        read_hostfile(Path("/dev/zero"), 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no host"),
        ("a slots=0", "line 1"),
        ("a slots=2\nb slots=3", "unlike"),
        ("a\na", "twice"),
        ("a; rm -rf /", "line 1"),
    ],
)
def test_a_bad_hostfile_is_refused(tmp_path, text, problem):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(EliteError, match=problem) as caught:
        read_hostfile(path, 1)
    assert caught.value.exit_code == 2


def test_a_hostfile_names_hosts_and_slots(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nnode-a slots=8\n\nnode-b slots=8 # far\n")
    hosts = read_hostfile(path, 1)
    assert hosts == [Host("node-a", 8), Host("node-b", 8)]
    command = join_command(hosts, 1, 29500, "/shared/runs/a run", "python")
    assert "--nnodes 2 --node-rank 1 --nproc-per-node 8 --master-addr node-a" in command
    assert command.endswith("'/shared/runs/a run'")
