"""Imports are read and resolved in each language, and files follow what they import."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.repositories import Write
from tokenizers import Tokenizer

from engine.config import DataSection
from engine.data.dataset import build_dataset
from engine.data.imports import resolve
from engine.data.languages import language_by_name
from engine.data.order import order_by_imports
from engine.data.syntax import outline


def links(files: dict[str, str]) -> dict[str, set[str]]:
    """For each file with imports the files that they lead to."""
    names = sorted(files)
    paths = [PurePosixPath(name) for name in names]
    languages = [language_by_name(path.name) or "" for path in paths]
    wanted = [
        outline(files[name], language, path).imports
        for name, language, path in zip(names, languages, paths, strict=True)
    ]
    found = resolve(names, languages, wanted)
    return {name: {names[other] for other in others} for name, others in zip(names, found, strict=True) if others}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            {
                "src/pkg/__init__.py": "from .core import run\n",
                "src/pkg/core.py": "import os, json\nfrom pkg.sub import tool as t\nfrom . import missing\n",
                "src/pkg/sub/tool.py": "from ..base import (\n    A,\n    B,\n)\nfrom ... import out\n",
                "src/pkg/base.py": "try:\n    import pkg.fast\nexcept ImportError:\n    pkg = None\n",
                "src/pkg/fast.py": "if TYPE_CHECKING:\n    import pkg.core\n\ndef f():\n    import script\n",
                "tests/test_core.py": "import pkg.core as core\nfrom pkg import base\n",
                "script.py": "from tests.test_core import *\nimport os.path\nimport fast\n",
            },
            {
                "src/pkg/__init__.py": {"src/pkg/core.py"},
                "src/pkg/core.py": {"src/pkg/sub/tool.py", "src/pkg/__init__.py"},
                "src/pkg/sub/tool.py": {"src/pkg/base.py"},
                "src/pkg/base.py": {"src/pkg/fast.py"},
                "tests/test_core.py": {"src/pkg/core.py", "src/pkg/base.py"},
                "script.py": {"tests/test_core.py"},
            },
            id="python",
        ),
        pytest.param(
            {
                "src/a.ts": "import {b} from './b'\nimport React from 'react'\nexport * from '../lib'\n",
                "src/b.tsx": "import x from '@/deep/x.js'\nexport const B = () => <div/>\n",
                "src/deep/x.ts": "import type {T} from '../../../outside'\n",
                "lib/index.js": "const {c} = require('./c')\nmodule.exports = require('./c.mjs')\n",
                "lib/c.mjs": "import d from './d.json'\n",
            },
            {
                "src/a.ts": {"src/b.tsx", "lib/index.js"},
                "src/b.tsx": {"src/deep/x.ts"},
                "lib/index.js": {"lib/c.mjs"},
            },
            id="scripts",
        ),
        pytest.param(
            {
                "Cargo.toml": "",
                "src/main.rs": "mod net;\nuse crate::net::{tcp::{self, Stream}, udp};\nuse std::io;\n",
                "src/net/mod.rs": "pub mod tcp;\nmod udp { fn f() {} }\n",
                "src/net/tcp.rs": "use super::*;\nuse crate::net;\n",
                "src/net/udp.rs": "use super::tcp::Stream as S;\n",
            },
            {
                "src/main.rs": {"src/net/mod.rs", "src/net/tcp.rs", "src/net/udp.rs"},
                "src/net/mod.rs": {"src/net/tcp.rs"},
                "src/net/tcp.rs": {"src/net/mod.rs"},
                "src/net/udp.rs": {"src/net/tcp.rs"},
            },
            id="rust",
        ),
        pytest.param(
            {
                "main.go": 'package main\nimport (\n "fmt"\n j "encoding/json"\n u "x.org/app/internal/util"\n)\n',
                "internal/util/a.go": "package util\n",
                "internal/util/b.go": "package util\n",
                "internal/util/b_test.go": 'package util\nimport "x.org/app/json"\n',
                "json/j.go": "package json\n",
            },
            {"main.go": {"internal/util/a.go", "internal/util/b.go"}, "internal/util/b_test.go": {"json/j.go"}},
            id="go",
        ),
        pytest.param(
            {
                "core/java/org/x/A.java": "package org.x;\nimport org.x.b.*;\nimport java.io.File;\nclass A {}\n",
                "core/java/org/x/b/B.java": "package org.x.b;\nclass B {}\n",
                "core/java/org/x/b/C.java": "package org.x.b;\nimport static org.x.A.run;\nclass C {}\n",
                "core/java/org/y/B.java": "package org.y;\nimport org.x.b.C.Inner;\nclass B {}\n",
            },
            {
                "core/java/org/x/A.java": {
                    "core/java/org/x/b/B.java",
                    "core/java/org/x/b/C.java",
                },
                "core/java/org/x/b/C.java": {"core/java/org/x/A.java"},
                "core/java/org/y/B.java": {"core/java/org/x/b/C.java"},
            },
            id="java",
        ),
        pytest.param(
            {
                "src/main.c": '#include "util.h"\n#include <proj/api.h>\n#include <stdio.h>\n#include "../gen/g.h"\n',
                "src/util.h": "#ifndef U\n#define U\n#include <proj/api.h>\n#endif\n",
                "include/proj/api.h": "#pragma once\n",
                "other/api.h": "",
                "gen/g.h": "",
                "gpu/k.cu": 'extern "C" {\n#include "util.h"\n}\n',
            },
            {
                "src/main.c": {"src/util.h", "include/proj/api.h", "gen/g.h"},
                "src/util.h": {"include/proj/api.h"},
                "gpu/k.cu": {"src/util.h"},
            },
            id="c",
        ),
    ],
)
def test_imports_lead_to_files(files: dict[str, str], expected: dict[str, set[str]]) -> None:
    assert links(files) == expected


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        (
            "a.py",
            "import os\n\n\n# about f\n@wraps\ndef f():\n    pass\n\n\nclass C:\n    x = 1\n\n    def m():\n        1",
            [3, 9, 12],
        ),
        ("a.py", "def f():\n    if f:\n        def inner():\n            pass\n    return inner\n", []),
        ("a.py", "x\n@wraps(\n    1\n)\n# why\nasync def f():\n    pass\nclassy = 1\n\tdef g(): pass\n", [3, 8]),
        (
            "a.js",
            "const x = 1\n\nfunction f() {\n  x()\n\n  y()\n}\n\nexport class C {\n  m() {\n  }\n\n  n() {}\n}\n",
            [2, 8, 12],
        ),
        (
            "a.rs",
            "use a;\n\n/// doc\n#[test]\nfn f() {\n}\n\nimpl X {\n    fn g() {\n    }\n\n    // h\n    fn h() {}\n}\n",
            [2, 7, 11],
        ),
        ("a.go", "package p\n\n// F does\nfunc F() {\n}\n\ntype T struct {\n}\n", [2, 6]),
        ("a.cpp", "#ifndef A\n\nnamespace n {\nint f() {\n}\n\nclass C {\n\n};\n\n}\n#endif\n", [2, 6]),
        ("a.ipynb", "# %%\nimport os\n\n# %% [markdown]\n# # A\n", [3]),
        ("a.md", "# A\n\ntext\n  \n\n## B\n\n  indented\n\nend\n", [2, 5, 9]),
        ("a.unknown", "def f():\n    pass\n", []),
        ("a.kt", "class A {\n  val a = 1\n\n  /** Of b. */\n  fun b() = 1\n\n  val c = 2\n}\n", [3]),
        ("a.kt", "class A {\n  fun a() {\n  }\n\n  fun b() {\n    val c = 1\n\n    call(c)\n  }\n}\n", [4]),
        (
            "a.cs",
            "namespace A\n{\n    class B\n    {\n        int a;\n\n        public int C()\n        {}\n    }\n}\n",
            [6],
        ),
        ("a.rb", "class A\n  def a\n  end\n\n  def b\n  end\nend\n", [4]),
    ],
)
def test_definitions_begin_with_their_comments(name: str, text: str, lines: list[int]) -> None:
    assert outline(text, language_by_name(name) or "", PurePosixPath(name)).definitions.tolist() == lines


@given(st.text(max_size=300), st.sampled_from(["a.py", "a.js", "a.tsx", "a.rs", "a.go", "A.java", "a.c", "a.cc"]))
def test_any_text_has_an_outline(text: str, name: str) -> None:
    found = outline(text, language_by_name(name) or "", PurePosixPath(name))
    assert all(0 < line <= text.count("\n") for line in found.definitions)


@given(st.lists(st.lists(st.integers(0, 19), max_size=5), min_size=20, max_size=20))
def test_an_order_holds_every_file_once_and_imports_first_unless_in_a_cycle(imports: list[list[int]]) -> None:
    order = order_by_imports(imports)
    assert sorted(order.positions) == list(range(20))
    place = {file: position for position, file in enumerate(order.positions)}
    reached = [{file} for file in range(20)]
    for _ in range(20):
        for file in range(20):
            reached[file].update(*(reached[other] for other in imports[file]))
    later = [(file, other) for file in range(20) for other in set(imports[file]) if place[other] > place[file]]
    assert len(later) == order.backward
    assert all(file in reached[other] for file, other in later)


def test_a_repository_that_is_itself_a_package() -> None:
    names = ["__init__.py", "app.py", "sub/deep.py"]
    imports = [["kit.app:App"], ["kit.sub.deep"], ["kit:App", "other.app"]]
    assert resolve(names, ["Python"] * 3, imports, "kit") == [(1,), (2,), (0,)]


def test_a_chain_of_ten_thousand_files() -> None:
    assert order_by_imports([[number + 1] for number in range(9999)] + [[]]).positions == tuple(range(9999, -1, -1))


def test_the_store_holds_files_in_their_order(write: Write, tmp_path, demo_tokenizer: Tokenizer) -> None:
    body = "".join(f"X{i} = {i}\n" for i in range(20))
    files = {
        "app.py": f"from lib import tools\nimport core\nAPP = 1\n{body}",
        "core.py": f"from lib.tools import A\nCORE = 2\n{body}",
        "lib/tools.py": f"TOOLS = 3\n{body}",
        "aaa.py": f"import app\nAAA = 4\n{body}",
        "zzz.md": f"ZZZ\n{body}",
        "held.py": f"HELD = 5\n{body}",
    }
    root = write(files)

    def stored(**options: str) -> list[str]:
        data = DataSection(repositories=[str(root)], held_out_fraction=0.01, near_duplicates="keep", **options)
        dataset = build_dataset(data, tokenizer=demo_tokenizer, context=64, cache=tmp_path / "cache")
        return [file.path for file in dataset.store.files]

    by_imports, by_path = stored(), stored(order="path")
    assert sorted(by_imports) == sorted(by_path) == sorted(files)
    assert by_path[:-1] == sorted(by_path[:-1])
    linked = [name for name in by_imports[:-1] if name in ("lib/tools.py", "core.py", "app.py", "aaa.py")]
    assert linked == [name for name in ("lib/tools.py", "core.py", "app.py", "aaa.py") if name != by_imports[-1]]
