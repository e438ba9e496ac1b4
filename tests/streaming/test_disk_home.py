"""Hidden states on disk: more of them than the memory that the process may have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.streaming.tile_factory import TileFactory
from engine.streaming.tiles import TileReader

ROOT = Path(__file__).parent.parent.parent

# 120,000 tokens in short documents: 4 arrays of hidden states and 3 layers of stash make 0.35 GB.
SCRIPT = """
import resource, sys
import torch
from engine.errors import EliteError
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep
from pathlib import Path
from tests.streaming.models import tiny_model

model = tiny_model("llama")
tokens = torch.randint(0, 97, (120_000,), generator=torch.Generator().manual_seed(1))
limited = False
for home in ("disk", "host"):  # the first limit is for both, and what the first leaves behind is the second's loss
    plan = StreamPlan(tile=4096, key_block=4096, hidden_home=home, stash_home=home)
    with StreamedStep(model, plan, device=torch.device("cpu"), spill_directory=Path(sys.argv[1])) as step:
        step.run(tokens[:4096], document_starts=range(0, 4096, 256))  # everything imported and warm
        model.zero_grad()
        if not limited:
            words = Path("/proc/self/status").read_text().split()
            present = int(words[words.index("VmData:") + 1]) * 1024
            limit = present + 225 * 2**20
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            limited = True
        try:
            step.run(tokens, document_starts=range(0, len(tokens), 256))
        except EliteError as error:
            print(home, "refused", error.code)
        else:
            print(home, "done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA bounds mappings on Linux only")
def test_the_disk_holds_what_memory_does_not(tmp_path):
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["disk done", "host refused out-of-memory"]
    assert not list(tmp_path.iterdir())


def test_files_share_their_buffers(tmp_path):
    """Of thirty arrays four tiles are in host memory, and each reads back what was written last."""
    factory = TileFactory("disk", torch.device("cpu"), None, tmp_path)
    arrays = [factory.array(64, 8, torch.float32, 16) for _ in range(30)]
    reader = TileReader(8, torch.float32, 16, torch.device("cpu"))
    for round_ in range(2):
        for number, array in enumerate(arrays):
            for tile in range(4):
                array.write(tile, torch.full((16, 8), 100.0 * round_ + number + tile / 10))
        for number, array in enumerate(arrays):
            for tile in range(4):
                if tile < 3:
                    reader.prefetch(array, tile)
                    reader.prefetch(array, tile + 1)
                assert torch.equal(reader.read(array, tile), torch.full((16, 8), 100.0 * round_ + number + tile / 10))
    reader.prefetch(arrays[0], 0)
    reader.prefetch(arrays[0], 1)
    reader.reset()  # what nobody fetches gives its buffer back
    assert factory._staging is not None
    assert factory._staging.bytes <= 6 * 16 * 8 * 4
    for array in arrays:
        array.close()
    factory.release()
    assert not list(tmp_path.iterdir())


def test_a_write_that_failed_is_told_at_the_next_read(tmp_path):
    factory = TileFactory("disk", torch.device("cpu"), None, tmp_path)
    array = factory.array(32, 8, torch.float32, 16)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, array._file.fileno())
    os.close(full)
    array.write(0, torch.ones(16, 8))
    with pytest.raises(OSError, match="No space left"):
        array.begin_load(0, torch.empty(16, 8))()
    array.close()
