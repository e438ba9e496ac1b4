from __future__ import annotations

import random
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.collect import SourceFile
from engine.data.shared_runs import SharedRuns, runs_of_text
from engine.data.split import held_out_files, is_held_out

paths = st.lists(st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=9), unique=True, max_size=40)


def files(names: list[str], size: int = 1000) -> list[SourceFile]:
    return [SourceFile(Path("/r"), name, "Python", size) for name in names]


@given(names=paths, fraction=st.floats(0.001, 0.499))
def test_both_sides_have_a_file(names: list[str], fraction: float) -> None:
    held_out = held_out_files(files(names), fraction)
    assert len(held_out) == len(names)
    if len(names) >= 2:
        assert 0 < sum(held_out) < len(names)


def test_share_is_about_the_fraction() -> None:
    names = [f"src/module_{i}.py" for i in range(5000)]
    share = sum(is_held_out(PurePosixPath(name), 0.1) for name in names) / len(names)
    assert 0.085 < share < 0.115


def test_a_file_keeps_its_side_as_others_come_and_the_fraction_grows() -> None:
    names = [f"m{i}.py" for i in range(300)]
    before = dict(zip(names, held_out_files(files(names), 0.1), strict=True))
    more = [f"new{i}.py" for i in range(300)] + names
    after = dict(zip(more, held_out_files(files(more), 0.1), strict=True))
    assert all(after[name] == before[name] for name in names)
    wider = dict(zip(names, held_out_files(files(names), 0.3), strict=True))
    assert all(wider[name] for name in names if before[name])


def test_known_sides() -> None:
    # Golden: another hash would move files between training and evaluation of a repository in use.
    names = [f"a{i}.py" for i in range(30)]
    assert [name for name in names if is_held_out(PurePosixPath(name), 0.1)] == [
        "a8.py",
        "a14.py",
    ]


def test_too_few_choose_a_file_worth_measuring() -> None:
    small, large = files(["a.py", "b.py"], size=10), files(["c.py", "d.py"], size=5000)
    held_out = held_out_files(small + large, 0.001)
    assert held_out[:2] == [False, False]
    assert sum(held_out) == 1


def test_the_share_of_text_follows_the_fraction_whatever_the_sizes() -> None:
    sizes = random.Random(3)
    names = [f"m{i}.py" for i in range(400)]
    for _ in range(20):
        lengths = [int(sizes.paretovariate(1.1) * 500) for _ in names]
        lengths = [min(length, 60_000) for length in lengths]
        some = [SourceFile(Path("/r"), name, "Python", size) for name, size in zip(names, lengths, strict=True)]
        held_out = held_out_files(some, 0.1)
        share = sum(size for size, out in zip(lengths, held_out, strict=True) if out) / sum(lengths)
        assert 0.07 < share < 0.13


def test_files_that_share_six_lines_stay_together() -> None:
    def text(name: str, extra: str = "") -> str:
        return extra + "".join(f"{name}_{i} = compute({i}, {name!r})\n" for i in range(30))

    shared = "".join(f"    setup_step_{i}(client, options)\n" for i in range(6))
    five = shared.split("\n", 1)[1]
    runs = SharedRuns()
    texts = [text("a", shared), text("b"), text("c", f"\n{shared}"), text("d", five), text("e"), "}\n" * 40, "}\n" * 50]
    for number, each in enumerate([*texts, *(text(f"f{i}") for i in range(20))]):
        runs.add(number, each)
    clusters = runs.clusters([1] * 27)
    assert clusters[:7] == [0, 1, 0, 3, 4, 5, 6]
    assert runs.leak([number == 2 for number in range(27)]) == pytest.approx(
        1 / len(set(runs_of_text(texts[2]).tolist()))
    )
    assert runs.leak([number == 1 for number in range(27)]) == 0
    runs.renumber({0: 1, 2: 0})
    assert runs.clusters([1] * 9)[:2] == [0, 0]


def test_a_sample_of_many_runs_still_finds_shared_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.data.shared_runs._MOST_RUNS", 2000)
    runs = SharedRuns()
    shared = "".join(f"shared_line_number_{i} = {i}\n" for i in range(300))
    for number in range(40):
        own = "".join(f"own_{number}_{i} = {i}\n" for i in range(400))
        runs.add(number, own + (shared if number in (7, 31) else ""))
    assert runs.clusters([1] * 40) == [number if number != 31 else 7 for number in range(40)]
