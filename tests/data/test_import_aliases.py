# ruff: noqa: E501
"""Names that manifests give to modules and packages lead to files; what each means is read off the tools' manuals."""

from __future__ import annotations

import pytest
from data.test_import_families import needs

GO = "package z\n\nfunc Z() int { return 1 }\n"
TS = "export const z = 1;\n"
CASES: dict[str, tuple[dict[str, str], dict[str, set[str]]]] = {
    "go: comments in a list of imports": (
        {
            "go.mod": "module ex.org/m\n",
            "a/a.go": 'package a\n\nimport (\n\t// z (see "ex.org/m/old")\n\t"ex.org/m/z" /* ) */\n\n\ty "ex.org/m/y"\n)\n',
            "b/b.go": 'package b; import "ex.org/m/z"\n',
            "y/y.go": GO,
            "z/z.go": GO,
            "old/z.go": GO,
        },
        {"a/a.go": {"y/y.go", "z/z.go"}, "b/b.go": {"z/z.go"}},
    ),
    "go: modules that another folder stands in for": (
        {
            "a/go.mod": 'module (\n\t"ex.org/a"\n)\n\nreplace ex.org/other => ../z // local\n\nreplace (\n'
            "\tex.org/more v1.2.3 => ./more\n\tex.org/away => ../../away\n\tex.org/fork => ex.org/a v1.0.0\n)\n",
            "go.work": "go 1.22\n\nuse ./a\n\nreplace ex.org/top => .\n",
            "a/a.go": 'package a\n\nimport (\n\t"ex.org/other/sub"\n\t"ex.org/more"\n\t"ex.org/away"\n\t"ex.org/fork"\n)\n',
            "a/b/b.go": 'package b\n\nimport "ex.org/a"\n',
            "c/c.go": 'package c\n\nimport "ex.org/top/z/sub"\n',
            "a/more/m.go": GO,
            "z/sub/z.go": GO,
        },
        {"a/a.go": {"a/more/m.go", "z/sub/z.go"}, "a/b/b.go": {"a/a.go"}, "c/c.go": {"z/sub/z.go"}},
    ),
    "cargo: renamed dependencies": (
        {
            "Cargo.toml": '[workspace]\nmembers = ["*"]\n[workspace.dependencies]\nzed = { path = "z", package = "z-lib" }\n',
            "a/Cargo.toml": '[package]\nname = "a"\n[dependencies]\nzed.workspace = true\n'
            '[target."cfg(unix)".dependencies]\nnix-like = { path = "../y", package = "yy" }\n',
            "a/src/lib.rs": "use zed::inner::Z;\nuse nix_like::Y;\n",
            "b/Cargo.toml": '[package]\nname = "b"\n[dependencies]\nzed = { path = "../y", package = "yy" }\n',
            "b/src/lib.rs": "use zed::Y;\n",
            "y/Cargo.toml": '[package]\nname = "yy"\n',
            "y/src/lib.rs": "pub struct Y;\n",
            "z/Cargo.toml": '[package]\nname = "z-lib"\n',
            "z/src/lib.rs": "pub mod inner;\n",
            "z/src/inner.rs": "pub struct Z;\n",
        },
        {
            "a/src/lib.rs": {"z/src/inner.rs", "y/src/lib.rs"},
            "b/src/lib.rs": {"y/src/lib.rs"},
            "z/src/lib.rs": {"z/src/inner.rs"},
        },
    ),
    "rust: a module at a written path": (
        {
            "src/lib.rs": '#[path = "odd/p.rs"] mod q;\npub mod a;\n',
            "src/a.rs": "use crate::q::Q;\n",
            "src/odd/p.rs": "pub struct Q;\n",
        },
        {"src/lib.rs": {"src/odd/p.rs", "src/a.rs"}, "src/a.rs": {"src/odd/p.rs"}},
    ),
    "npm: dependencies under other names": (
        {
            "a/package.json": '{"name": "a", "dependencies": {"one": "workspace:@x/z@*", "two": "file:../y"},'
            ' "devDependencies": {"@s/three": "npm:@x/z@^1", "four": "^1.0.0"}}',
            "a/one.ts": "import 'one';\n",
            "a/two.ts": "import 'two/deep';\n",
            "a/three.ts": "import '@s/three';\n",
            "a/four.ts": "import 'four';\n",
            "y/package.json": '{"name": "y"}',
            "y/src/deep.ts": TS,
            "z/package.json": '{"name": "@x/z"}',
            "z/index.ts": TS,
        },
        {"a/one.ts": {"z/index.ts"}, "a/two.ts": {"y/src/deep.ts"}, "a/three.ts": {"z/index.ts"}},
    ),
    "typescript: options of compilers": (
        {
            "base.json": "{}",
            "tsconfig.base.json": '{"compilerOptions": {"paths": {"@own/*": ["${configDir}/own/*"], "@all/*": ["all/*"], },'
            " /* why */ }, // all\n}",
            "apps/a/tsconfig.json": '{"extends": "../../tsconfig.base.json", "compilerOptions": {"rootDirs": ["src", "made"]}}',
            "apps/a/src/a.ts": "/// <reference path=\"../types.d.ts\" />\nimport '@own/o';\nimport '@all/z';\nimport './m';\n",
            "apps/a/types.d.ts": TS,
            "apps/a/own/o.ts": TS,
            "apps/a/made/m.ts": TS,
            "all/z.ts": TS,
        },
        {"apps/a/src/a.ts": {"apps/a/own/o.ts", "all/z.ts", "apps/a/made/m.ts", "apps/a/types.d.ts"}},
    ),
    "deno: import maps": (
        {
            "deno.jsonc": '{"imports": {"$z/": "./lib/", "$z/inner/": "./inner/", "zed": "./lib/z.ts", "std": "jsr:@std/x"}} // all',
            "a.ts": "import '$z/z.ts';\nimport '$z/inner/i.ts';\nimport 'std';\n",
            "b.ts": "import 'zed';\n",
            "lib/z.ts": TS,
            "inner/i.ts": TS,
        },
        {"a.ts": {"lib/z.ts", "inner/i.ts"}, "b.ts": {"lib/z.ts"}},
    ),
    "go: a replacement counts in its own module, before the module of that name": (
        {
            "a/go.mod": "module ex.org/a\n\nreplace ex.org/z => ../fork\n",
            "b/go.mod": "module ex.org/b\n\nreplace ex.org/y => ../gone\n",
            "z/go.mod": "module ex.org/z\n",
            "y/go.mod": "module ex.org/y\n",
            "a/a.go": 'package a\n\nimport "ex.org/z"\n',
            "b/b.go": 'package b\n\nimport (\n\t"ex.org/z"\n\t"ex.org/y"\n)\n',
            "fork/z.go": GO,
            "y/y.go": GO,
            "z/z.go": GO,
        },
        {"a/a.go": {"fork/z.go"}, "b/b.go": {"z/z.go"}},
    ),
    "go: a module within another one is no part of it": (
        {
            "go.mod": "module ex.org/m\n",
            "tools/go.mod": "module ex.org/tools\n",
            "a/a.go": 'package a\n\nimport (\n\t"ex.org/m/tools/gen"\n\t"ex.org/m/z"\n)\n',
            "tools/b.go": 'package b\n\nimport "ex.org/tools/gen"\n',
            "tools/gen/z.go": GO,
            "z/z.go": GO,
        },
        {"a/a.go": {"z/z.go"}, "tools/b.go": {"tools/gen/z.go"}},
    ),
    "cargo: an own dependency goes before the name of the workspace, and each workspace has its own": (
        {
            "Cargo.toml": '[workspace]\n[workspace.dependencies]\nzed = { path = "y", package = "yy" }\n',
            "other/Cargo.toml": '[workspace]\n[workspace.dependencies]\nzed = { path = "../z", package = "zz" }\n',
            "a/Cargo.toml": '[package]\nname = "a"\n[dependencies]\nzed = { path = "../zed" }\n',
            "b/Cargo.toml": '[package]\nname = "b"\n[dependencies]\nzed = { workspace = true }\n',
            "other/c/Cargo.toml": '[package]\nname = "c"\n[dependencies]\nzed.workspace = true\n',
            **{f"{name}/src/lib.rs": "use zed::Z;\n" for name in ("a", "b", "other/c")},
            **{
                f"{name}/Cargo.toml": f'[package]\nname = "{called}"\n'
                for name, called in (("y", "yy"), ("z", "zz"), ("zed", "zed"))
            },
            **{f"{name}/src/lib.rs": "pub struct Z;\n" for name in ("y", "z", "zed")},
        },
        {"a/src/lib.rs": {"zed/src/lib.rs"}, "b/src/lib.rs": {"y/src/lib.rs"}, "other/c/src/lib.rs": {"z/src/lib.rs"}},
    ),
    "npm: a name that is given to another package, or to one that is not there": (
        {
            "a/package.json": '{"name": "a", "dependencies": {"one": "npm:@x/z@^1", "two": "npm:far@^2"}}',
            "b/package.json": '{"name": "b", "dependencies": {"one": "^1.0.0"}}',
            "a/a.ts": "import 'one';\nimport 'two';\n",
            "b/b.ts": "import 'one';\n",
            "one/package.json": '{"name": "one"}',
            "one/index.ts": TS,
            "two/package.json": '{"name": "two"}',
            "two/index.ts": TS,
            "z/package.json": '{"name": "@x/z"}',
            "z/index.ts": TS,
        },
        {"a/a.ts": {"z/index.ts"}, "b/b.ts": {"one/index.ts"}},
    ),
    "deno: the longest entry of an import map alone counts": (
        {
            "deno.json": '{"imports": {"lib/": "./lib/", "lib/far": "https://example.org/far.ts", "lib/own/": "./own/"}}',
            "a.ts": "import 'lib/z';\nimport 'lib/far';\nimport 'lib/own/y';\n",
            "lib/z.ts": TS,
            "lib/far.ts": TS,
            "lib/own/y.ts": TS,
            "own/x.ts": TS,
        },
        {"a.ts": {"lib/z.ts"}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_names_of_manifests_lead_to_files(case: str) -> None:
    files, expected = CASES[case]
    assert needs(files) == expected


@pytest.mark.parametrize("case", CASES)
def test_line_ends_of_windows_lead_to_the_same_files(case: str) -> None:
    files, expected = CASES[case]
    assert needs({name: text.replace("\n", "\r\n") for name, text in files.items()}) == expected
