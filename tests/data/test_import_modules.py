# ruff: noqa: E501
"""Languages whose imports name files or modules: what a file says leads to the file that is meant."""

from __future__ import annotations

import pytest
from data.test_import_families import needs

MODULE = "defmodule App.Repo do\n  def all, do: []\nend\n"
CASES: dict[str, tuple[dict[str, str], dict[str, set[str]]]] = {
    "dart: paths, parts, conditions and packages": (
        {
            "pkgs/a/pubspec.yaml": "# of a\nname: a\ndependencies:\n  name: 3\n",
            "pkgs/a/lib/a.dart": "library a;\n/* import 'src/no.dart'; */\nexport 'src/x.dart' show X;\npart 'src/x.g.dart';\n",
            "pkgs/a/lib/src/x.dart": "import 'stub.dart'\n    if (dart.library.io) 'io.dart'\n    if (dart.library.html) \"web.dart\";\nclass X {}\n",
            "pkgs/a/lib/src/x.g.dart": "part of '../a.dart';\nvar y = 1;\n",
            "pkgs/a/lib/src/stub.dart": "// import 'no.dart';\nvar s = 'import \\'no.dart\\';', t = '''\nimport 'no.dart';\n''';\n",
            "pkgs/a/lib/src/io.dart": "import 'dart:io'; import 'package:http/http.dart';\nvar url = 'http://x';\n",
            "pkgs/a/lib/src/web.dart": "var w = 1;\n",
            "pkgs/a/lib/src/no.dart": "var n = 1;\n",
            "pkgs/b/pubspec.yaml": "name: 'b'\n",
            "pkgs/b/test/b_test.dart": "import 'package:a/a.dart' as a;\nimport '../lib/b.dart';\nvoid main() { a.X(); }\n",
            "pkgs/b/lib/b.dart": 'import "package:a/src/x.dart";\n',
        },
        {
            "pkgs/a/lib/a.dart": {"pkgs/a/lib/src/x.dart", "pkgs/a/lib/src/x.g.dart"},
            "pkgs/a/lib/src/x.dart": {"pkgs/a/lib/src/stub.dart", "pkgs/a/lib/src/io.dart", "pkgs/a/lib/src/web.dart"},
            "pkgs/b/test/b_test.dart": {"pkgs/a/lib/a.dart", "pkgs/b/lib/b.dart"},
            "pkgs/b/lib/b.dart": {"pkgs/a/lib/src/x.dart"},
        },
    ),
    "dart: of two packages of one name, the nearer": (
        {
            "one/app/pubspec.yaml": "name: app\n",
            "one/app/lib/main.dart": "import 'package:shared/shared.dart';\n",
            "one/shared/pubspec.yaml": "name: shared\n",
            "one/shared/lib/shared.dart": "var s = 1;\n",
            "two/app/lib/main.dart": "import 'package:shared/shared.dart';\n",
            "two/app/pubspec.yaml": "name: app\n",
            "two/shared/pubspec.yaml": "name: shared\n",
            "two/shared/lib/shared.dart": "var s = 2;\n",
        },
        {
            "one/app/lib/main.dart": {"one/shared/lib/shared.dart"},
            "two/app/lib/main.dart": {"two/shared/lib/shared.dart"},
        },
    ),
    "dart: a package that is not here": (
        {"lib/a.dart": "import 'package:b/b.dart';\n", "lib/b.dart": "var b = 1;\n", "pubspec.yaml": "name: a\n"},
        {},
    ),
    "elixir: full names, aliases and nested modules": (
        {
            "lib/app/repo.ex": MODULE,
            "lib/app/user.ex": "defmodule App.User do\n  defstruct [:id]\n  defmodule Token do\n    def new, do: 1\n  end\n  def t, do: Token.new()\nend\n",
            "lib/app/web.ex": "defmodule App.Web do\n  defmacro __using__(_), do: nil\nend\n",
            "lib/app/shape.ex": "defprotocol App.Shape do\n  def area(x)\nend\n",
            "lib/app/page.ex": 'defmodule App.Page do\n  use App.Web\n  alias App.{Repo, User}\n  alias App.User.Token, as: T\n  @moduledoc """\n  Not App.Unused.\n  """\n  # nor App.Unused\n  def f(%User{} = u), do: {Repo.all(), T.new(), "App.Unused", u}\nend\n',
            "lib/app/unused.ex": "defmodule App.Unused do\nend\n",
            "lib/app/square.ex": 'defmodule App.Square do\n  defimpl App.Shape, for: __MODULE__ do\n    def area(_), do: ?"\n  end\n  def g, do: App.Repo.all()\nend\n',
            "test/token_test.exs": 'defmodule App.TokenTest do\n  use ExUnit.Case\n  alias App.User\n  test "a" do\n    assert User.Token.new() == 1\n  end\nend\n',
        },
        {
            "lib/app/page.ex": {"lib/app/web.ex", "lib/app/repo.ex", "lib/app/user.ex"},
            "lib/app/square.ex": {"lib/app/shape.ex", "lib/app/repo.ex"},
            "test/token_test.exs": {"lib/app/user.ex"},
        },
    ),
    "elixir: of two applications that define one name, the nearer": (
        {
            "apps/a/lib/repo.ex": MODULE,
            "apps/b/lib/repo.ex": MODULE,
            "apps/b/lib/use.ex": "defmodule App.Use do\n  def f, do: App.Repo.all()\nend\n",
        },
        {"apps/b/lib/use.ex": {"apps/b/lib/repo.ex"}},
    ),
    "haskell: qualified, safe and package imports, and none of a comment": (
        {
            "src/Data/Tree.hs": "{- import Data.No -}\nmodule Data.Tree\n  ( Tree(..) ) where\n",
            "src/Data/Forest.hs": "{-# LANGUAGE CPP #-}\nmodule Data.Forest where\n-- import Data.No\nimport qualified Data.Tree as T\nimport safe Data.Leaf' (leaf)\nimport {-# SOURCE #-} Data.No\nx --> y = x\n",
            "src/Data/Leaf.hs": 'module Data.Leaf\' where\nimport "base" Data.List\n',
            "src/Data/No.hs": "module Data.No where\n",
            "app/Main.hs": "import Data.Forest\nmain = print 1\n",
        },
        {
            "src/Data/Forest.hs": {"src/Data/Tree.hs", "src/Data/Leaf.hs"},
            "app/Main.hs": {"src/Data/Forest.hs"},
        },
    ),
    "haskell: of two packages with one module, the nearer": (
        {
            "a/src/Util.hs": "module Util where\n",
            "b/src/Util.hs": "module Util where\n",
            "b/test/Spec.hs": "module Spec where\nimport Util\n",
        },
        {"b/test/Spec.hs": {"b/src/Util.hs"}},
    ),
    "perl: use, parents, calls and files": (
        {
            "lib/App/Base.pm": "package App::Base;\nuse strict;\nsub new { bless {}, shift }\n1;\n",
            "lib/App/Log.pm": "package App::Log;\nsub say { }\n1;\n__END__\nuse App::No;\n",
            "lib/App/Task.pm": "package App::Task;\nuse parent -norequire, 'App::Base';\n# use App::No;\nsub run { App::Log::say('App::No->x') }\n1;\n\n=head1 NAME\n\nuse App::No;\n\n=cut\n",
            "lib/App/No.pm": "package App::No;\n1;\n",
            "t/lib.pl": "sub helper { 1 }\n1;\n",
            "t/task.t": "use Test::More;\nrequire './t/lib.pl';\nmy $task = App::Task->new;\n{ package Mine; use App::Log (); }\nMine->go;\n",
        },
        {
            "lib/App/Task.pm": {"lib/App/Base.pm", "lib/App/Log.pm"},
            "t/task.t": {"t/lib.pl", "lib/App/Task.pm", "lib/App/Log.pm"},
        },
    ),
    "shell: sourced and run scripts, behind what is not known": (
        {
            "lib/log.sh": 'log() { echo "$1"; }\n',
            "lib/net.sh": '. "$(dirname "$0")/log.sh"\n# . ./no.sh\n',
            "lib/no.sh": "no() { :; }\n",
            "bin/run.sh": 'set -e; source "${BASH_SOURCE%/*}/../lib/net.sh"\nif true; then . $ROOT/lib/log.sh; fi\nbash -e scripts/build.sh "no.sh"\necho source lib/no.sh\nsource /etc/other.sh\n',
            "scripts/build.sh": 'source "lib/$NAME"\ncat lib/no.sh\n',
        },
        {
            "lib/net.sh": {"lib/log.sh"},
            "bin/run.sh": {"lib/net.sh", "lib/log.sh", "scripts/build.sh"},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_file_names_leads_to_the_file_that_is_meant(case: str) -> None:
    files, expected = CASES[case]
    assert needs(files) == expected
