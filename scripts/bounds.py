"""Prints the oldest versions that pyproject.toml allows, as constraints for pip: `make test-oldest` installs them.

    python scripts/bounds.py > build/oldest.txt

torch stays as it is pinned: an older one comes with several gigabytes of CUDA libraries.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
EXTRAS = ("quant", "datasets", "llama", "serve")
LEFT_OUT = ("torch",)


def requirements() -> list[Requirement]:
    """Returns the direct requirements of a user's installation that this machine needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.name not in LEFT_OUT and (one.marker is None or one.marker.evaluate())]


def oldest(requirement: Requirement) -> Version:
    """Asks the index for a package's versions, and returns the oldest one allowed."""
    asked = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", requirement.name]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    listed = re.search(r"^\s*Available versions: (.*)$", told, re.MULTILINE)
    assert listed, f"{requirement.name}: pip tells no versions"
    return min(found for text in listed[1].split(", ") if (found := Version(text)) in requirement.specifier)


if __name__ == "__main__":
    for requirement in requirements():
        print(f"{requirement.name}=={oldest(requirement)}", flush=True)
