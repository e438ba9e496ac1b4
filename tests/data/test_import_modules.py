# ruff: noqa: E501
"""Languages whose imports name files or modules: what a file says leads to the file that is meant."""

from __future__ import annotations

import pytest
from data.test_import_families import needs

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
    "dart: a package that is not here": (
        {"lib/a.dart": "import 'package:b/b.dart';\n", "lib/b.dart": "var b = 1;\n", "pubspec.yaml": "name: a\n"},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_file_names_leads_to_the_file_that_is_meant(case: str) -> None:
    files, expected = CASES[case]
    assert needs(files) == expected
