from __future__ import annotations

from pathlib import Path, PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from engine.data.collect import SourceFile
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
