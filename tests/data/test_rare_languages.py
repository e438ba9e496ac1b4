"""Files of languages that few repositories hold are source, by the endings that their makers give."""

from __future__ import annotations

import pytest
from support.repositories import Write, module

from engine.data.collect import collect

NAMES = """
a.fbs a.resi a.puml a.smt2 a.tsp a.tla a.gn a.ninja a.y a.l a.lds a.rc a.nf a.wdl a.cabal a.opam a.xcconfig a.modulemap
a.entitlements a.gdshader a.tscn a.shader a.compute a.rpy a.fth a.nut a.bal a.roc a.gr a.c3 a.nr a.circom a.cdc a.clar
a.surql a.edgeql a.cedar a.polar a.http a.hurl a.bru a.mzn a.p4 a.pegjs a.lark a.sw a.yul a.latte a.tera a.nomad a.smk
a.ipy a.phpt a.es6 a.axaml a.ksy a.hjson a.mediawiki a.textile a.jq a.elv a.asn1 a.avdl a.dbml a.ispc a.bsv a.xdc
"""
FILES = NAMES.split()


def test_files_of_rare_languages_are_source(write: Write) -> None:
    root = write({name: f"{name} {module(name[2:], 9)}" for name in FILES})
    found = collect([root], max_file_bytes=1_000_000)
    assert found.skipped == {}
    assert sorted(file.name for file in found.files) == sorted(FILES)


@pytest.mark.parametrize("content", [b"\0\1\2" * 50, b"\x7fELF" + bytes(200)])
def test_binaries_under_their_endings_are_not(write: Write, content: bytes) -> None:
    root = write({"a.res": content, "b.rc": content, **{f"c{number}.py": module(f"c{number}") for number in range(3)}})
    assert collect([root], max_file_bytes=1_000_000).skipped == {"binary": 2}
