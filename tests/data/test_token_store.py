from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.data import store as module
from engine.data.store import StoreBuilder, StoreDamagedError, locked, open_store, remove_store, token_type
from engine.errors import EliteError

NARROW, WIDE = token_type(1 << 16), token_type((1 << 16) + 1)
NAMES = [("a.py", 0, "Python", 0), ("b\\n.go", 1, "Go", 1), ("c.rs", 1, "Rust", 1)]
NEWLINES = np.array([0, 1, 2], dtype=np.uint8)
NONE = np.empty(0, dtype=np.int64)


def build(cache: Path, key: str = "k", dtype: np.dtype[np.uint16] = NARROW) -> None:
    with locked(cache, key), StoreBuilder(cache, key, dtype) as builder:
        for length in (3, 0, 70_000):
            builder.append(np.arange(length, dtype=np.uint32) % 65_000, np.arange(0, length, 1000))
        builder.finish(NAMES, NEWLINES)


@pytest.mark.parametrize("dtype", [NARROW, WIDE])
def test_what_is_written_is_read(tmp_path: Path, dtype: np.dtype[np.uint16]) -> None:
    build(tmp_path / "cache", dtype=dtype)
    store = open_store(tmp_path / "cache", "k")
    assert store is not None
    assert store.tokens.dtype == dtype
    assert list(store.tokens[:4]) == [0, 1, 2, 0]
    assert len(store.tokens) == 70_003
    assert [(entry.path, entry.repository, entry.language, entry.document) for entry in store.files] == NAMES
    assert list(store.newlines) == [0, 1, 2]
    assert list(store.borders[:3]) == [0, 3, 1003]
    layout = store.layout()
    assert (list(layout.documents), list(layout.files)) == ([0, 3], [0, 3, 3])
    assert list(store.offsets()) == [0, 3, 3, 70_003]
    assert not store.tokens.flags.writeable
    assert open_store(tmp_path / "cache", "other") is None
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["k", "k.lock"]


def test_store_without_tokens(tmp_path: Path) -> None:
    with locked(tmp_path, "k"), StoreBuilder(tmp_path, "k", NARROW) as builder:
        builder.finish([], NEWLINES)
    store = open_store(tmp_path, "k")
    assert store is not None
    assert len(store.tokens) == 0


@pytest.mark.parametrize("file", ["tokens.bin", "borders.bin", "newlines.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty", "remove", "replace"])
def test_damage_is_noticed(tmp_path: Path, file: str, damage: str) -> None:
    build(tmp_path)
    path = tmp_path / "k" / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[-2:]
    elif damage == "grow":
        content += b"00"
    elif damage == "empty":
        content.clear()
    elif damage == "replace":
        build(tmp_path, "other")
        content[:] = (tmp_path / "other" / file).read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content)
    if damage == "replace" and file != "manifest.json":
        assert open_store(tmp_path, "k") is not None
        return
    with pytest.raises(StoreDamagedError):
        open_store(tmp_path, "k")
    remove_store(tmp_path, "k")
    build(tmp_path)
    assert open_store(tmp_path, "k") is not None


def test_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    first = StoreBuilder(tmp_path, "k", NARROW)
    first.append(np.array([1, 2, 3], dtype=np.uint32), np.array([1]))
    first.checkpoint()
    first.append(np.array([9] * 100_000, dtype=np.uint32), np.array([5]))
    first._tokens_file.flush()
    first._borders_file.flush()
    # As after kill -9: nothing of `first` runs any more, and what came after the checkpoint is not trusted.
    with StoreBuilder(tmp_path, "k", NARROW) as second:
        assert second.files == 1
        second.append(np.array([4], dtype=np.uint32), np.array([0]))
        second.finish([("a", 0, "x", 0), ("b", 0, "x", 0)], NEWLINES)
    first.__exit__(None)
    store = open_store(tmp_path, "k")
    assert store is not None
    assert list(store.tokens) == [1, 2, 3, 4]
    assert list(store.borders) == [1, 3]


@pytest.mark.parametrize("damage", ["{}", "", '{"lengths": [1], "digest": "x"}', "longer"])
def test_starts_again_where_the_checkpoint_is_of_no_use(tmp_path: Path, damage: str) -> None:
    first = StoreBuilder(tmp_path, "k", NARROW)
    first.append(np.array([1, 2, 3], dtype=np.uint32), np.array([1]))
    first.checkpoint()
    first.__exit__(None)
    if damage == "longer":
        (tmp_path / "k.building" / "tokens.bin").write_bytes(b"")
    else:
        (tmp_path / "k.building" / "checkpoint.json").write_text(damage)
    with StoreBuilder(tmp_path, "k", NARROW) as second:
        assert second.files == 0


def test_checkpoints_come_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", 0.0)
    with StoreBuilder(tmp_path, "k", NARROW) as builder:
        builder.append(np.array([7], dtype=np.uint32), NONE)
        saved = json.loads((tmp_path / "k.building" / "checkpoint.json").read_text())
        assert saved["lengths"] == [1]


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EliteError) as caught, locked(tmp_path / "file", "k"):
        pass
    assert caught.value.code == "output-unwritable"


def test_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def run_out_of_space() -> None:
        with locked(tmp_path, "k"), StoreBuilder(tmp_path, "k", NARROW) as builder:
            builder.append(np.array([7], dtype=np.uint32), NONE)
            raise OSError(28, "No space left on device")

    with pytest.raises(EliteError, match="no space free") as caught:
        run_out_of_space()
    assert caught.value.code == "output-full"
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"]


def test_nobody_else_may_look_into_the_stores(tmp_path):
    """Tokens are the text of private repositories."""
    with locked(tmp_path / "cache", "key"):
        assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
