"""Documents: tables come from stored measurements, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize(
    "writer",
    [
        "benchmarks/tables.py",
        "benchmarks/claims.py",
        "scripts/family_docs.py",
        "scripts/optimization_docs.py",
        "scripts/reference_docs.py",
    ],
)
def test_what_is_generated_is_current(writer):
    done = subprocess.run([sys.executable, writer, "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)", text) if "://" not in t]
    assert all((page.parent / target).exists() for target in targets)
    named = re.findall(r"`((?:docs|benchmarks|assets|recipes|scripts)/[\w./-]+)`", text)
    assert all((ROOT / name).exists() for name in named), named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_cell_of_a_table_is_empty_code(page):
    """Markdown shows two backticks with nothing between them as they are."""
    assert not re.search(r"\| `` \|", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_extras_that_an_install_line_names_exist(page):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    text = page.read_text(encoding="utf-8")
    named = {
        extra.strip()
        for brackets in re.findall(r"(?:\.whl\)|elite-tui|'\.)\[([\w,-]+)\]", text)
        for extra in brackets.split(",")
    }
    assert named <= declared.keys()
    if page in (ROOT / "README.md", ROOT / "docs" / "installation.md"):
        assert {"gpu", "serve", "llama"} <= named
