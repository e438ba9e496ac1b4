"""Compares installed libraries with the versions that this program declares, without importing any of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

DISTRIBUTION = "elite-tui"


def library_checks(installed: Mapping[str, str | None]) -> list[str]:
    """Lists libraries that are missing or of an undeclared version, one sentence each.

    Args:
        installed: Version by distribution; None if it is not installed.
    """
    from packaging.requirements import Requirement

    problems = []
    for text in _declared():
        requirement = Requirement(text)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        version = installed.get(requirement.name) or _version(requirement.name)
        if version is None:
            if needed:
                problems.append(f"{requirement.name} is not installed")
        elif (needed or requirement.name in installed) and not requirement.specifier.contains(version, True):
            problems.append(f"{requirement.name} is {version}, and {requirement.specifier} is needed")
    return list(dict.fromkeys(problems))


def _declared() -> list[str]:
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []  # a source folder has no installed declaration to compare with


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
