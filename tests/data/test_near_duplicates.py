from __future__ import annotations

import random

from engine.data.near_duplicates import SIMILARITY, NearDuplicates, distinct_lines, similarity


def source(seed: int, lines: int = 400) -> list[str]:
    rng = random.Random(seed)
    return [f"    value_{rng.randrange(10**9)} = call_{rng.randrange(10**9)}()" for _ in range(lines)]


def altered(lines: list[str], share: float, seed: int) -> list[str]:
    """The lines with a share of them replaced, so that the two share (1 - share) / (1 + share) of all theirs."""
    rng = random.Random(seed)
    changed = set(rng.sample(range(len(lines)), round(share * len(lines))))
    return [f"# other {rng.random()}" if i in changed else line for i, line in enumerate(lines)]


def found(texts: list[str]) -> dict[int, int]:
    alike = NearDuplicates()
    for number, text in enumerate(texts):
        alike.add(number, text)
    return alike.find(lambda number: texts[number])


def twins(*texts: str) -> set[int]:
    return set(found(list(texts)))


def test_copies_with_a_few_changes_are_found() -> None:
    originals = [source(seed) for seed in range(60)]
    copies = [altered(lines, 0.03, seed) for seed, lines in enumerate(originals)]
    assert twins(*map("\n".join, originals + copies)) == set(range(60, 120))


def test_files_that_share_much_but_not_most_are_kept() -> None:
    originals = [source(seed) for seed in range(60)]
    relatives = [altered(lines, 0.1, seed) for seed, lines in enumerate(originals)]
    assert 0.75 < similarity(*(distinct_lines("\n".join(lines)) for lines in (originals[0], relatives[0]))) < SIMILARITY
    assert twins(*map("\n".join, originals + relatives)) == set()


def test_similarity_is_exact() -> None:
    first, second = (distinct_lines("\n".join(map(str, numbers))) for numbers in (range(100), range(20, 110)))
    assert similarity(first, second) == 80 / 110


def test_a_chain_of_versions_keeps_those_that_differ_enough() -> None:
    versions = [source(0, 200)]
    for step in range(40):
        versions.append(altered(versions[-1], 0.03, step))
    kept = sorted(set(range(41)) - twins(*map("\n".join, versions)))
    assert kept[0] == 0
    assert 3 < len(kept) < 30


def test_a_thousand_alike_leave_one() -> None:
    base = source(0, 60)
    assert twins(*("\n".join([*base, f"# copy {number}"]) for number in range(1000))) == set(range(1, 1000))


def test_white_space_does_not_matter() -> None:
    lines = source(1)
    assert twins("\n".join(lines), "\r\n".join(f"\t{line} " for line in lines)) == {1}


def test_short_files_are_kept() -> None:
    assert twins(*(f"import os\n\nNAME = {name!r}\n" for name in ("a", "a", "b"))) == set()
    assert twins() == set()


def test_long_file() -> None:
    lines = source(1, 20_000)
    assert twins("\n".join(lines), "\n".join(lines[:19_000])) == {1}


def test_the_first_of_its_kind_is_named() -> None:
    texts = ["\n".join(source(seed)) for seed in range(2000)] + ["\n".join(altered(source(7), 0.03, 0))]
    assert found(texts) == {2000: 7}
