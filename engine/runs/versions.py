"""Compares installed libraries with the versions that this program declares, without importing any of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

DISTRIBUTION = "elite-tui"
_OF_CONTRIBUTORS = "dev"
"Extra whose versions bind nobody else: tests want a newer Triton than torch's CUDA builds bring."


def library_checks(installed: Mapping[str, str | None]) -> list[str]:
    """Lists libraries that are missing or of an undeclared version, one sentence each.

    Args:
        installed: Version by distribution; None if it is not installed.
    """
    from packaging.requirements import Requirement

    problems = []
    requirements, extras = _declared()
    for text in requirements:
        requirement = Requirement(text)
        marker = requirement.marker
        needed = marker is None or marker.evaluate({"extra": ""})
        if marker is not None and not needed and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        version = installed.get(requirement.name) or _version(requirement.name)
        if version is None:
            if needed:
                problems.append(f"{requirement.name} is not installed")
        elif (needed or requirement.name in installed) and not requirement.specifier.contains(version, True):
            problems.append(f"{requirement.name} is {version}, and {requirement.specifier} is needed")
    return list(dict.fromkeys(problems))


def _declared() -> tuple[list[str], list[str]]:
    """Returns the declared requirements, and the extras that a user may have asked for."""
    try:
        declared = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return [], []  # a source folder has no installed declaration to compare with
    extras = [name for name in declared.get_all("Provides-Extra") or [] if name != _OF_CONTRIBUTORS]
    return declared.get_all("Requires-Dist") or [], extras


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
