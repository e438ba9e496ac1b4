from __future__ import annotations

import os
from pathlib import Path

from engine.data.cache import prune
from engine.data.store import locked

KEYS = [f"{number:032x}" for number in range(6)]


def fill(cache: Path) -> None:
    for age, key in enumerate(KEYS):
        (cache / key).mkdir(parents=True)
        (cache / key / "tokens.bin").write_bytes(b"x")
        os.utime(cache / key, (1e9 - age, 1e9 - age))


def stores(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def test_the_ones_used_last_are_kept(tmp_path: Path) -> None:
    fill(tmp_path)
    assert prune(tmp_path, keep=3, present=KEYS[5]) == KEYS[2:5]
    assert stores(tmp_path) == {KEYS[0], KEYS[1], KEYS[5]}
    assert prune(tmp_path, keep=1, present=KEYS[0]) == [KEYS[5], KEYS[1]]
    assert stores(tmp_path) == {KEYS[0]}


def test_what_is_being_built_and_what_is_not_a_store_stay(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "short.building").mkdir()
    fresh, old = tmp_path / f"{'a' * 32}.building", tmp_path / f"{'b' * 32}.building"
    for path in (fresh, old):
        path.mkdir()
    os.utime(old, (1e9, 1e9))
    with locked(tmp_path, KEYS[1]):
        prune(tmp_path, keep=1, present=KEYS[0])
    assert stores(tmp_path) == {KEYS[0], KEYS[1], "mine", "short.building", fresh.name}
