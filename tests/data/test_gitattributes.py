"""Against `git check-attr`: what attributes say of files, by whatever patterns, quotation marks and macros."""

from __future__ import annotations

import os
import random
import subprocess
import warnings
from pathlib import Path, PurePosixPath

import pytest
from support.repositories import run_git

from engine.data.gitattributes import Attributes
from engine.data.safe_files import Folder

NAMES = {"linguist-generated": "generated", "linguist-vendored": "vendored", "linguist-documentation": "documentation"}
PATHS = (
    *("a.py", "gen/a.py", "gen/b/c.py", "x/gen/a.py", "api.gen.ts", "x/y/api.gen.ts", "sp ace/a.py", "[z].py", "q?.py"),
    *("-d.py", "é.py", "docs/a.md", "x/docs/a.md", "A.PY", "a b/c d.py", "tab\tx.py", "x/.hid/a.py", "#h.py", "!n.py"),
    *("back\\s.py", 'quo"te.py', "x/y/9.py"),
)
LINES = r"""
gen/** linguist-generated
gen/* linguist-generated
gen linguist-generated
/gen/** linguist-generated -linguist-vendored
**/gen/** linguist-generated !linguist-documentation
*.gen.ts linguist-generated=true
*.ts -linguist-generated
*.py !linguist-vendored linguist-documentation=no
"sp ace/**" linguist-generated
"a b/c d.py" linguist-generated
"tab\tx.py" linguist-generated
"\303\251.py" linguist-vendored
"quo\"te.py" linguist-vendored
"back\\\\s.py" linguist-vendored
sp[[:space:]]ace/** linguist-generated
[[:digit:]].py linguist-generated
[^[:lower:]].PY linguist-generated
[[]z].py linguist-vendored
q\?.py linguist-generated
\#h.py linguist-generated
#h.py linguist-vendored
!n.py linguist-vendored
x/**/a.py linguist-generated
x/* linguist-vendored
x/ linguist-vendored
docs/** linguist-documentation=0
* linguist-vendored
* !linguist-generated
* mine
*.md -mine
*.ts ours
[attr]mine linguist-generated linguist-vendored
[attr]ours mine -linguist-vendored
[attr]round round linguist-documentation
x/** round
*.p[!x] linguist-vendored
""".strip().split("\n")


def by_git(root: Path, names: list[str]) -> dict[tuple[str, str], bool]:
    """What git says, of those attributes that are set or unset."""
    command = ["git", "-C", str(root), "check-attr", "-z", "--stdin", *NAMES]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ATTR_NOSYSTEM": "1"}
    given = "".join(f"{name}\0" for name in names).encode()
    told = subprocess.run(command, input=given, capture_output=True, check=True, env=environment).stdout
    fields = told.decode().split("\0")[:-1]
    said = zip(fields[::3], fields[1::3], fields[2::3], strict=True)
    return {(n, a): v not in ("unset", "no", "0", "false") for n, a, v in said if v != "unspecified"}


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("below", ["", "x"])
def test_attributes_are_those_of_git(tmp_path: Path, seed: int, below: str) -> None:
    draw = random.Random(seed)
    run_git(tmp_path, "init", "-q")
    for path in PATHS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x\n")
    for folder in ("", "x", "x/y", "gen"):
        if draw.random() < (0.9 if not folder else 0.4):
            lines = draw.sample(LINES, draw.randint(1, 8))
            (tmp_path / folder / ".gitattributes").write_text("\n".join(lines) + "\n")
    if draw.random() < 0.3:
        (tmp_path / ".git" / "info").mkdir(exist_ok=True)
        (tmp_path / ".git" / "info" / "attributes").write_text("\n".join(draw.sample(LINES, 3)) + "\n")
    root = tmp_path / below
    names = [str(Path(path).relative_to(below)) for path in PATHS if path.startswith(f"{below}/" if below else "")]
    files = [PurePosixPath(str(path.relative_to(root))) for path in root.rglob(".gitattributes")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attributes = Attributes(Folder(str(root)), files)
    found = {(name, a): attributes.of(PurePosixPath(name)).get(mark) for name in names for a, mark in NAMES.items()}
    assert {place: value for place, value in found.items() if value is not None} == by_git(root, names)
