"""A build that is killed goes on where it was, and gives the same store as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.repositories import Write, module
from tokenizers import Tokenizer

from engine.config import DataSection
from engine.data import dataset as dataset_module
from engine.data.dataset import build_dataset

# Small batches and a checkpoint after each file, and a pause, so that the kill falls into the middle of the build.
BUILD = """
import sys, time
from pathlib import Path
from tokenizers import Tokenizer
from engine.assets import asset
from engine.config import DataSection
from engine.data import dataset, store
store._CHECKPOINT_SECONDS = 0.0
dataset._BATCH_BYTES = 2000
dataset.build_dataset(
    DataSection(repositories=[sys.argv[1]]),
    tokenizer=Tokenizer.from_file(str(asset("demo-model", "tokenizer.json"))),
    context=128,
    cache=Path(sys.argv[2]),
    progress=lambda done, total, what: time.sleep(0.02) if what == "bytes tokenised" else None,
)
"""


def test_kill_in_mid_build(
    write: Write, tmp_path: Path, demo_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write({f"m{i}.py": module(f"m{i}", 90) for i in range(200)})
    data = DataSection(repositories=[str(root)])
    whole = build_dataset(data, tokenizer=demo_tokenizer, context=128, cache=tmp_path / "whole")

    cache = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", BUILD, str(root), str(cache)], env=os.environ)
    checkpoint = cache / f"{whole.summary.store.name}.building" / "checkpoint.json"
    deadline = time.monotonic() + 120
    while not (checkpoint.exists() and len(checkpoint.read_bytes()) > 200):
        assert child.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()

    encoded = 0
    encode = dataset_module.Encoder.encode_middles

    def count(encoder: dataset_module.Encoder, documents: list[object]) -> object:
        nonlocal encoded
        encoded += len(documents)
        return encode(encoder, documents)

    monkeypatch.setattr(dataset_module.Encoder, "encode_middles", count)
    resumed = build_dataset(data, tokenizer=demo_tokenizer, context=128, cache=cache)
    assert "cut short" in resumed.summary.notes[0]
    assert 0 < encoded < 200
    assert not resumed.summary.reused
    for name in ("tokens.bin", "borders.bin", "newlines.bin", "manifest.json"):
        assert (resumed.summary.store / name).read_bytes() == (whole.summary.store / name).read_bytes()
    assert {path.name for path in cache.iterdir()} == {resumed.summary.store.name, f"{resumed.summary.store.name}.lock"}


def test_two_builds_at_once_make_one_store(write: Write, tmp_path: Path) -> None:
    root = write({f"m{i}.py": module(f"m{i}", 60) for i in range(30)})
    command = [sys.executable, "-c", BUILD, str(root), str(tmp_path / "cache")]
    children = [subprocess.Popen(command, env=os.environ) for _ in range(3)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 2
