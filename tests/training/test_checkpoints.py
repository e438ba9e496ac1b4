"""Checkpoints: complete or absent, and damage is noticed."""

from __future__ import annotations

import errno
import os
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.atomic_dir import MANIFEST, DamagedError
from engine.errors import EliteError
from engine.randomness import capture_random, restore_random
from engine.training.checkpoints import CheckpointFolder, Retention, verify

FILES = {"weights.safetensors": bytes(range(256)) * 40, "state.json": b'{"step": 3}'}


def test_what_is_saved_is_read_back(tmp_path):
    saved = CheckpointFolder(tmp_path / "checkpoints", Retention(newest=2)).save(3, FILES.items())
    assert saved.path.name == "step-000003"
    checkpoint = verify(saved.path)
    assert checkpoint.about["step"] == 3
    assert {name: checkpoint.read(name) for name in FILES} == FILES
    assert saved.bytes == sum(file.stat().st_size for file in saved.path.iterdir())


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path):
    folder = CheckpointFolder(tmp_path, Retention(newest=2))
    (tmp_path / ".step-000001.new").mkdir()
    for step in (1, 2, 10, 100):
        folder.save(step, FILES.items())
    assert [path.name for path in folder.newest_first()] == ["step-000100", "step-000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000100"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    folder = CheckpointFolder(tmp_path, Retention(newest=2))
    folder.save(5, FILES.items())
    folder.save(5, {"state.json": b"new"}.items())
    assert verify(tmp_path / "step-000005").read("state.json") == b"new"


@settings(max_examples=60)
@given(data=st.data())
def test_any_flipped_bit_is_noticed(tmp_path_factory, data):
    folder = CheckpointFolder(tmp_path_factory.mktemp("run"), Retention(newest=2)).save(1, FILES.items()).path
    target = folder / data.draw(st.sampled_from(sorted(FILES)))
    content = bytearray(target.read_bytes())
    position = data.draw(st.integers(0, len(content) * 8 - 1))
    content[position // 8] ^= 1 << position % 8
    target.write_bytes(bytes(content))
    with pytest.raises(DamagedError, match="SHA-256"):
        verify(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "missing", "a folder"])
def test_any_damaged_file_is_noticed(tmp_path, name, damage):
    folder = CheckpointFolder(tmp_path, Retention(newest=2)).save(1, FILES.items()).path
    target = folder / name
    content = target.read_bytes()
    target.unlink()
    if damage == "truncated":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        target.write_bytes(b"")
    elif damage == "longer":
        target.write_bytes(content + b"x")
    elif damage == "a folder":
        target.mkdir()
    with pytest.raises(DamagedError):
        verify(folder)


@pytest.mark.parametrize("manifest", [b"[]", b"{}", b'{"format": 2, "step": 1, "files": {}}', b"\xff", b"null"])
def test_a_strange_manifest_is_damage_not_a_crash(tmp_path, manifest):
    folder = CheckpointFolder(tmp_path, Retention(newest=2)).save(1, FILES.items()).path
    (folder / MANIFEST).write_bytes(manifest)
    with pytest.raises(DamagedError):
        verify(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(EliteError, match="cannot be written"):
        CheckpointFolder(tmp_path, Retention(newest=1)).save(1, FILES.items())


def test_a_full_disk_leaves_the_old_checkpoints_and_no_half_one(tmp_path):
    """/dev/full is a real file that takes no byte: a file of the checkpoint is made to be it."""
    folder = CheckpointFolder(tmp_path, Retention(newest=2))
    folder.save(1, FILES.items())
    full = {"state.json": b"x", "../.step-000002.new/weights": b""}
    with pytest.raises(EliteError) as caught:
        folder.save(2, {**full, "/dev/full": b"more than fits"}.items())
    assert caught.value.code == "output-full"
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_generators_go_on_where_they_were():
    torch.manual_seed(4)
    np.random.seed(4)
    random.seed(4)
    random.gauss(0, 1)  # leaves a second number waiting
    np.random.standard_normal()
    state = capture_random()

    def draw():
        return torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1), random.random()

    first = draw()
    draw()
    restore_random(state)
    assert draw() == first
