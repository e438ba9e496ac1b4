"""requirements.txt is what pip can check: every pin has hashes, agrees with constraints.txt, and none is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def blocks(text):
    """Requirement and hashes of each entry."""
    for entry in re.split(r"\n(?=[^\s#])", "\n" + text):
        lines = [line.strip().rstrip("\\").strip() for line in entry.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("#")]
        if lines:
            yield Requirement(lines[0]), lines[1:]


LOCKED = list(blocks((ROOT / "requirements.txt").read_text(encoding="utf-8")))
PINNED = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def holds(marker: Marker | None, python: str) -> bool:
    environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    return marker is None or marker.evaluate({**environment, "platform_machine": "x86_64", "platform_system": "Linux"})


def versions(requirements, python):
    return {one.name.lower().replace("_", "-"): str(one.specifier) for one in requirements if holds(one.marker, python)}


def test_every_requirement_is_pinned_and_hashed():
    assert len(LOCKED) > 60
    for requirement, hashes in LOCKED:
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_requirements_are_those_of_the_tests(python):
    locked, pinned = versions([one for one, _ in LOCKED], python), versions(PINNED, python)
    # torch's builds for a GPU pin a Triton of their own.
    differing = {name for name in locked.keys() & pinned.keys() if locked[name] != pinned[name]} - {"triton"}
    assert differing == set()


@pytest.mark.parametrize("python", PYTHONS)
def test_nothing_that_the_project_needs_is_missing(python):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    locked = versions([one for one, _ in LOCKED], python)
    for text in [*project["dependencies"], *optional["quant"], *optional["datasets"]]:
        needed = Requirement(text)
        if holds(needed.marker, python):
            found = locked[needed.name.lower().replace("_", "-")]
            assert needed.specifier.contains(found.removeprefix("==")), needed
