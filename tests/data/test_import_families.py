# ruff: noqa: E501
"""Definitions and uses are told in each family of languages, and lead to files."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from engine.data.imports import Strength, links
from engine.data.languages import language_by_name
from engine.data.manifests import is_manifest
from engine.data.order import order_by_imports
from engine.data.syntax import outline


def needs(files: dict[str, str]) -> dict[str, set[str]]:
    """For each file the files that it needs, without guesses."""
    sources = {name: text for name, text in files.items() if language_by_name(PurePosixPath(name).name)}
    names = sorted(sources)
    languages = [language_by_name(PurePosixPath(name).name) or "" for name in names]
    wanted = [
        outline(sources[name], language, PurePosixPath(name)).imports
        for name, language in zip(names, languages, strict=True)
    ]
    manifests = {name: text for name, text in files.items() if is_manifest(PurePosixPath(name))}
    found = links(names, languages, wanted, "", manifests)
    return {
        name: {names[other] for other, strength in others.items() if strength > Strength.GUESS}
        for name, others in zip(names, found, strict=True)
        if any(strength > Strength.GUESS for strength in others.values())
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(
            {
                "src/Core/Options.cs": "namespace App.Core;\npublic record Options(int Retries);\n",
                "src/Core/Base.cs": "namespace App.Core { public abstract class Base<T> where T : class {} }\n",
                "src/Run/Runner.cs": "using App.Core;\nnamespace App.Run;\n// Unused\nclass Runner : Base<Options> {}\n",
                "src/Run/Unused.cs": 'namespace App.Run;\nclass Unused { string s = "Runner"; }\n',
                "src/Core/Nested/Deep.cs": "namespace App.Core.Nested;\nclass Deep { Options o; }\n",
                "other/Options.cs": "namespace Other;\nclass Settings {}\n",
            },
            {
                "src/Run/Runner.cs": {"src/Core/Base.cs", "src/Core/Options.cs"},
                "src/Core/Nested/Deep.cs": {"src/Core/Options.cs"},
            },
            id="c-sharp",
        ),
        pytest.param(
            {
                "src/Client.php": "<?php\nnamespace App;\nuse App\\Handler\\{Stack, Proxy as P};\n"
                "class Client extends Base { use Traits\\Logs; function f(): \\App\\Err { return new P; } }\n",
                "src/Base.php": "<?php\nnamespace App;\nabstract class Base {}\n",
                "src/Handler/Stack.php": "<?php\nnamespace App\\Handler;\nfinal class Stack {}\n",
                "src/Handler/Proxy.php": "<?php\nnamespace App\\Handler;\nclass Proxy {}\n",
                "src/Traits/Logs.php": "<?php\nnamespace App\\Traits;\ntrait Logs {}\n",
                "src/Err.php": "<?php\nnamespace App;\nclass Err {}\n",
                "index.php": "<?php\nrequire __DIR__ . '/src/Err.php';\n",
            },
            {
                "src/Client.php": {
                    *("src/Base.php", "src/Handler/Stack.php", "src/Handler/Proxy.php", "src/Traits/Logs.php"),
                    "src/Err.php",
                },
                "index.php": {"src/Err.php"},
            },
            id="php",
        ),
        pytest.param(
            {
                "lib/kit.rb": "module Kit\n  autoload :Site, 'kit/site'\n  require_relative 'kit/log'\nend\n",
                "lib/kit/site.rb": "module Kit\n  class Site < Kit::Page\n    def f; Readers::HTMLReader.new; end\n  end\nend\n",
                "lib/kit/page.rb": "module Kit\n  class Page\n  end\nend\n",
                "lib/kit/log.rb": "module Kit\n  module Log\n    X = 1\n  end\nend\n",
                "lib/kit/readers/html_reader.rb": "module Kit\n  module Readers\n    class HTMLReader\n    end\n  end\nend\n",
                "spec/site_spec.rb": "require 'kit/site'\n# Kit::Page in a comment\n",
            },
            {
                "lib/kit.rb": {"lib/kit/site.rb", "lib/kit/log.rb"},
                "lib/kit/site.rb": {"lib/kit/page.rb", "lib/kit/readers/html_reader.rb"},
                "spec/site_spec.rb": {"lib/kit/site.rb"},
            },
            id="ruby",
        ),
        pytest.param(
            {
                "a/src/Path.scala": "package os\ntrait BasePath\nobject Path\n",
                "a/src/Ops.scala": "package os\nimport os.internal.{Util => U, _}\nobject Ops extends BasePath\n",
                "a/src/Util.scala": "package os.internal\nobject Util\n",
                "a/src/Api.java": "package os.api;\nimport os.Path;\nclass Api {}\n",
                "a/src/tools.kt": "package os.tools\nimport os.api.Api\nfun <T> List<T>.second(): T = this[1]\nval N = 2\n",
                "a/src/Use.kt": "package os.use\nimport os.tools.second\nimport os.tools.N as M\nclass Use : Any()\n",
                "a/src/Same.kt": "package os.tools\nfun g() = listOf(1).let { second(it) }\n",
            },
            {
                "a/src/Ops.scala": {"a/src/Path.scala", "a/src/Util.scala"},
                "a/src/Api.java": {"a/src/Path.scala"},
                "a/src/tools.kt": {"a/src/Api.java"},
                "a/src/Use.kt": {"a/src/tools.kt"},
                "a/src/Same.kt": {"a/src/tools.kt"},
            },
            id="jvm",
        ),
        pytest.param(
            {
                "Sources/A.swift": "public struct Request { let e: AppError }\nextension Session: Sendable {}\n",
                "Sources/B.swift": "enum AppError: Error { case a }\n",
                "Sources/C.swift": "class Session {}\n/* Request */\n",
            },
            {"Sources/A.swift": {"Sources/B.swift", "Sources/C.swift"}},
            id="swift",
        ),
        pytest.param(
            {
                "bin/check.lua": "#!/usr/bin/env lua\nlocal main = require 'check.main'\n",
                "src/check/main.lua": "local u = require(\"check.utils\")\nlocal c = require 'check'\n-- require 'no'\n",
                "src/check/init.lua": "return {}\n",
                "src/check/utils.lua": "return {}\n",
            },
            {
                "bin/check.lua": {"src/check/main.lua"},
                "src/check/main.lua": {"src/check/init.lua", "src/check/utils.lua"},
            },
            id="lua",
        ),
        pytest.param(
            {
                "build.zig": 'const m = b.createModule(.{ .root_source_file = b.path("src/tracer.zig") });\n',
                "src/main.zig": 'const std = @import("std");\nconst a = @import("a/b.zig");\nconst t = @import("tracer");\n',
                "src/a/b.zig": '// @import("../main.zig")\nconst up = @import("../tracer.zig");\n',
                "src/tracer.zig": "",
            },
            {"src/main.zig": {"src/a/b.zig", "src/tracer.zig"}, "src/a/b.zig": {"src/tracer.zig"}},
            id="zig",
        ),
        pytest.param(
            {
                "main.tf": 'resource "x_y" "z" { n = var.name\n m = local.size }\nmodule "net" {\n  source = "./modules/net"\n}\n',
                "variables.tf": 'variable "name" {}\nlocals {\n  size = 3\n}\n',
                "outputs.tf": 'output "id" { value = x_y.z.id }\n',
                "modules/net/main.tf": 'variable "name" {}\n',
                "prod.tfvars": 'name = "a"\n',
            },
            {
                "main.tf": {"variables.tf", "modules/net/main.tf"},
                "outputs.tf": {"main.tf"},
                "prod.tfvars": {"variables.tf"},
            },
            id="terraform",
        ),
        pytest.param(
            {
                "proto/x/a.proto": 'syntax = "proto3";\nimport public "x/b.proto";\nimport "google/c.proto";\n',
                "proto/x/b.proto": "",
                "other/google/c.proto": "",
            },
            {"proto/x/a.proto": {"proto/x/b.proto", "other/google/c.proto"}},
            id="proto",
        ),
        pytest.param(
            {
                "go.mod": "module example.org/kit\n",
                "kit.go": "package kit\ntype Kit struct{}\nfunc helper() {}\n",
                "use.go": "package kit\nfunc Use() { helper() }\n",
                "json/j.go": "package json\n",
                "doc/doc.go": 'package doc\nimport (\n "encoding/json"\n "other.org/x/json"\n k "example.org/kit"\n)\n',
                "doc/doc_test.go": 'package doc_test\nimport "example.org/kit/doc"\n',
            },
            {"use.go": {"kit.go"}, "doc/doc.go": {"kit.go", "use.go"}, "doc/doc_test.go": {"doc/doc.go"}},
            id="go",
        ),
        pytest.param(
            {
                "crates/core/Cargo.toml": '[package]\nname = "my-core"\n',
                "crates/core/src/lib.rs": "pub mod deep;\npub struct Item;\n",
                "crates/core/src/deep.rs": "use crate::Item;\n",
                "app/Cargo.toml": '[package]\nname = "app"\nautotests = false\n[[test]]\nname = "t"\npath = "tests/all.rs"\n',
                "app/src/main.rs": "use my_core::Item;\nuse my_core::deep::X;\n",
                "app/tests/all.rs": '#[path = "../shared/s.rs"]\nmod s;\nmod util;\nmod one;\n',
                "app/tests/util.rs": "",
                "app/tests/one.rs": "use crate::util::f;\n",
                "app/shared/s.rs": "",
            },
            {
                "crates/core/src/lib.rs": {"crates/core/src/deep.rs"},
                "crates/core/src/deep.rs": {"crates/core/src/lib.rs"},
                "app/src/main.rs": {"crates/core/src/lib.rs", "crates/core/src/deep.rs"},
                "app/tests/all.rs": {"app/tests/util.rs", "app/tests/one.rs", "app/shared/s.rs"},
                "app/tests/one.rs": {"app/tests/util.rs"},
            },
            id="rust",
        ),
        pytest.param(
            {
                "packages/kit/package.json": '{"name": "@x/kit", "exports": {".": {"import": "./dist/index.js"},'
                ' "./sub/*": "./dist/sub/*.js"}}',
                "packages/kit/src/index.ts": "export * from './sub/one.js'\n",
                "packages/kit/src/sub/one.ts": "import type { T } from '../index'\n",
                "apps/web/tsconfig.json": '{ // why\n "extends": "../base.json", "compilerOptions": {"paths": {"@ui/*": ["./ui/*"]}}, }',
                "apps/web/main.tsx": "import {\n  a,\n} from '@x/kit'\nimport { b } from '@x/kit/sub/one'\nimport U from '@ui/button'\n",
                "apps/web/ui/button.tsx": "",
            },
            {
                "packages/kit/src/index.ts": {"packages/kit/src/sub/one.ts"},
                "packages/kit/src/sub/one.ts": {"packages/kit/src/index.ts"},
                "apps/web/main.tsx": {
                    *("packages/kit/src/index.ts", "packages/kit/src/sub/one.ts", "apps/web/ui/button.tsx"),
                },
            },
            id="workspaces",
        ),
    ],
)
def test_uses_lead_to_definitions(files: dict[str, str], expected: dict[str, set[str]]) -> None:
    assert needs(files) == expected
    assert needs({name: text.replace("\n", "\r\n") for name, text in files.items()}) == expected


def test_a_cycle_is_cut_at_its_weakest_link() -> None:
    # 0 needs 1 surely, 1 needs 2, and 2 mentions 0; 3 is needed weakly within the cycle, and needs nothing.
    order = order_by_imports([{1: 4}, {2: 3, 3: 1}, {0: 2}, {}])
    assert order.positions == (3, 2, 1, 0)
    assert order.backward == 1


def test_a_link_that_contradicts_a_stronger_way_takes_no_other_with_it() -> None:
    # The root loads all by path, all mention the root, and 1 mentions 2: only what leads back to the root gives way.
    order = order_by_imports([{1: 4, 2: 4, 3: 4}, {0: 2, 2: 2}, {0: 2, 3: 2}, {0: 2}])
    assert order.positions == (3, 2, 1, 0)


def test_a_ring_of_ten_thousand_files_with_a_weak_link() -> None:
    ring = [{(number + 1) % 10_000: 1 if number == 4_999 else 4} for number in range(10_000)]
    order = order_by_imports(ring)
    assert order.backward == 1
    assert order.positions[0] == 4_999


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        *(("a.go", piece) for piece in ("import (\n", "var (\n", "`", "/*")),
        *(("a.py", piece) for piece in ("import (\n", "from a import (\n")),
        *(("a.ts", piece) for piece in ("import {\n", "export {\n", "import a ", "import x = require(", "const a = ")),
        *(("a.rs", piece) for piece in ("use a::{\n", '#[path = "a"]\n', "crate::a::")),
        *(("a.kt", piece) for piece in ("class A : ", "fun <", "/*", '"""')),
        *(("a.scala", piece) for piece in ("package a\n", "import a.{", "import a,")),
        *(("a.cs", piece) for piece in ("delegate A ", "class A : B where ")),
        *(("a.rb", piece) for piece in ("class A\n", "=begin\n", "autoload :A, ")),
        *(("a.tf", piece) for piece in ("locals {\n", "locals {\n a = 1\n", 'resource "a" "b"')),
        *(("a.php", piece) for piece in ("use A\\{", "class A ", "'")),
        *(("a.dart", piece) for piece in ("import 'a' ", "'\\'", "\n", "/*", "import ")),
        *(("a.ex", piece) for piece in ("alias A.{", "use A.{ ", "'\\'", "defmodule A do\n", "alias A, ", "A.")),
        *(("a.hs", piece) for piece in ("import A.", "{-", "--", "import {-# SOURCE ", "module A\n")),
        *(("a.pm", piece) for piece in ("A::", "=pod\n", "use A::", "package A ", "extends ", "A ")),
        *(("a.sh", piece) for piece in ("source $(", '. "', ". a/", "sh -a ", "$((", "${", ". a#")),
        *(("a.lua", piece) for piece in ("--[[", "require(")),
        *(("a.c", piece) for piece in ("#include <", "# include a")),
    ],
)
def test_made_up_text_takes_time_in_line_with_its_length(name: str, piece: str) -> None:
    # No time is asserted: what is quadratic takes minutes here, and the suite's limit ends it.
    text = piece * (1_000_000 // len(piece))
    found = outline(text, language_by_name(name) or "", PurePosixPath(name))
    assert all(0 < line <= text.count("\n") for line in found.definitions[-100:])


def test_haskell_comments_within_comments_hide_imports() -> None:
    files = {
        "A.hs": 'module A where\n{-\nimport B\n{- why -}\nimport B\n-}\nopen = "{-"\nquote = \'"\'\nimport C\n',
        "B.hs": "module B where\n",
        "C.hs": "module C where\n",
    }
    assert needs(files) == {"A.hs": {"C.hs"}}


def test_a_shell_script_of_the_same_name_elsewhere_is_a_guess() -> None:
    files = {"a/run.sh": ". ./common.sh\n. ../lib/more.sh\n", "b/common.sh": "x=1\n", "b/lib/more.sh": "x=1\n"}
    assert needs(files) == {}
    files = {"a/run.sh": '. "$ROOT/common.sh"\n', "b/common.sh": "x=1\n"}
    assert needs(files) == {"a/run.sh": {"b/common.sh"}}
