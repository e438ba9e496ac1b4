"""Files import one another in one direction: also in functions, and for type checkers alone.

`make check` holds the engine's layers (layers.toml); the app's, whose layers are files, are held here.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = "elite_tui"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in (ROOT / PACKAGE).rglob("*.py")}
ENGINE = {name_of(path): path for path in (ROOT / "engine").rglob("*.py")}
PACKAGES = {name for name, path in FILES.items() if path.name == "__init__.py"}


def imported(source: str, known: frozenset[str]) -> set[str]:
    """The known modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found |= {inside if inside in known else str(node.module)} & known
    return found


def graph_of(files: dict[str, Path]) -> dict[str, set[str]]:
    known = frozenset(files)
    return {name: imported(path.read_text(encoding="utf-8"), known) for name, path in files.items()}


GRAPH = graph_of(FILES)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the one before it, the first one again at the end; empty where there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@functools.cache
def layers() -> dict[str, tuple[int, bool, str]]:
    """Module of the contract → its layer from the top, whether others of the layer may be imported, and its name."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one["type"] == "layers" and one["containers"] == [PACKAGE])
    return {
        f"{PACKAGE}.{module.strip()}": (depth, "|" not in layer, f"{PACKAGE}.{module.strip()}")
        for depth, layer in enumerate(contract["layers"])
        for module in layer.replace(":", "|").split("|")
    }


def place_of(module: str) -> tuple[int, bool, str] | None:
    """The place of a module, or of the package around it that the contract names."""
    places = layers()
    while module and module not in places:
        module = module.rpartition(".")[0]
    return places.get(module)


@pytest.mark.parametrize("files", [FILES, ENGINE], ids=["elite_tui", "engine"])
def test_no_file_imports_itself_through_others(files):
    assert circle(graph_of(files)) == []


def test_every_file_has_a_layer():
    assert [module for module in FILES.keys() - PACKAGES if place_of(module) is None] == []


def test_every_import_goes_down():
    upward = []
    for module, others in GRAPH.items():
        for other in others - PACKAGES:
            if (place := place_of(module)) is None or (lower := place_of(other)) is None:
                continue
            (depth, free, here), (below, _, there) = place, lower
            if here != there and (below < depth or (below == depth and not free)):
                upward.append(f"{module} imports {other}")
    assert upward == []


@pytest.mark.parametrize(
    "source",
    [
        "import a.b",
        "from a import b",
        "from a.b import c",
        "if TYPE_CHECKING:\n    from a.b import c",
        "def f():\n    from a import b",
    ],
)
def test_every_kind_of_import_is_seen(source):
    assert imported(source, frozenset({"a", "a.b"})) == {"a.b"}
    assert circle({"a.b": {"x"}, "x": imported(source, frozenset({"a.b"}))})
