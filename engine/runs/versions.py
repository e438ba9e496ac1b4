"""Installed libraries against the versions that this program declares, without importing any of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

DISTRIBUTION = "elite-tui"


def library_checks(installed: Mapping[str, str | None]) -> list[str]:
    """What is missing or of a version that was not declared, one sentence each.

    Args:
        installed: Version by distribution; None where it is not installed.
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
        return []  # run from a source folder: there is no declaration to compare with


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
