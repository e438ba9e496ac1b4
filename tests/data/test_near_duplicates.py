from __future__ import annotations

import random

import pytest

from engine.data.near_duplicates import SIMILARITY, NearDuplicates


def source(seed: int, lines: int = 400) -> list[str]:
    rng = random.Random(seed)
    return [f"    value_{rng.randrange(10**9)} = call_{rng.randrange(10**9)}()" for _ in range(lines)]


def altered(lines: list[str], share: float, seed: int) -> list[str]:
    """The lines with a share of them replaced, so that the two share (1 - share) / (1 + share) of all theirs."""
    rng = random.Random(seed)
    changed = set(rng.sample(range(len(lines)), round(share * len(lines))))
    return [f"# other {rng.random()}" if i in changed else line for i, line in enumerate(lines)]


def test_copies_with_a_few_changes_are_found() -> None:
    seen = NearDuplicates()
    originals = [source(seed) for seed in range(60)]
    assert not any(seen.twin("\n".join(lines)) for lines in originals)
    twins = [seen.twin("\n".join(altered(lines, 0.02, seed))) for seed, lines in enumerate(originals)]
    assert all(twins)


def test_files_that_share_much_but_not_most_are_kept() -> None:
    seen = NearDuplicates()
    originals = [source(seed) for seed in range(60)]
    assert not any(seen.twin("\n".join(lines)) for lines in originals)
    relatives = [seen.twin("\n".join(altered(lines, 0.25, seed))) for seed, lines in enumerate(originals)]
    assert SIMILARITY - 0.2 > (1 - 0.25) / (1 + 0.25)
    assert not any(relatives)


@pytest.mark.parametrize("change", ["\n".join, lambda lines: "\r\n".join(f"\t{line} " for line in lines)])
def test_white_space_does_not_matter(change: object) -> None:
    seen = NearDuplicates()
    assert not seen.twin("\n".join(source(1)))
    assert seen.twin(change(source(1)))  # type: ignore[operator]


def test_short_files_are_kept() -> None:
    seen = NearDuplicates()
    assert not any(seen.twin(f"import os\n\nNAME = {name!r}\n") for name in ("a", "a", "b"))


def test_long_file() -> None:
    seen = NearDuplicates()
    lines = source(1, 20_000)
    assert not seen.twin("\n".join(lines))
    assert seen.twin("\n".join(lines[:19_500]))
