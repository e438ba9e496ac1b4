"""The embedded model: what it learns is listed, licensed, clean and not held out; its first weights fit its recipe."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from engine.config import load

ROOT = Path(__file__).parents[1]


def script(name):
    """A module of scripts/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


corpus = script("embedded_corpus")
LISTED, PACKAGES = corpus.load_list(ROOT / "recipes" / "embedded-corpus.toml")
CODE = "".join(f"def function_{n}(value):\n    return value * {n} + {n * n}\n\n\n" for n in range(40))


def wheel(path, files, metadata):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr("made-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made\nVersion: 1.0\n" + metadata)
    return zipfile.ZipFile(path)


def package(licence="MIT", **settings):
    return corpus.Package(name="made", version="1.0", licence=licence, sha256="0" * 64, **settings)


def test_every_package_is_pinned_and_permissive_and_some_are_held_out():
    assert len({one.name for one in PACKAGES}) == len(PACKAGES)
    for one in PACKAGES:
        assert re.fullmatch(r"[0-9a-f]{64}", one.sha256)
        assert set(one.licence.replace(" OR ", " AND ").split(" AND ")) <= corpus.PERMISSIVE | set(corpus.REVIEWED)
    assert {one.name for one in PACKAGES if one.held_out} == {"click", "networkx", "textual"}


@pytest.mark.parametrize(
    "stated", ["License-Expression: MIT\n", "License: MIT\n", "Classifier: License :: OSI Approved :: MIT License\n"]
)
def test_a_licence_is_found_wherever_metadata_states_it(stated, tmp_path):
    with wheel(tmp_path / "w.whl", {}, stated) as archive:
        corpus.check_licence(package(), archive)


@pytest.mark.parametrize(
    ("listed", "stated"), [("MIT", "License: GPL-3.0\n"), ("GPL-3.0", "License: GPL-3.0\n"), ("MIT", "")]
)
def test_another_licence_stops_it(listed, stated, tmp_path):
    with wheel(tmp_path / "w.whl", {}, stated) as archive, pytest.raises(SystemExit):
        corpus.check_licence(package(listed), archive)


def test_only_python_is_taken_up_to_the_limit_and_nothing_leaves_the_folder(tmp_path):
    files = {f"made/m{n}.py": f"x = {n}\n" * 100 for n in range(10)}
    with wheel(
        tmp_path / "w.whl", {**files, "made/data.bin": "x", "../out.py": "x = 1\n"}, "License: MIT\n"
    ) as archive:
        corpus.extract(package(), archive, tmp_path / "raw", 3000)
    written = sorted(path for path in tmp_path.rglob("*.py"))
    assert 0 < sum(path.stat().st_size for path in written) <= 3000
    assert all(path.is_relative_to(tmp_path / "raw" / "made-1.0" / "made") for path in written)


def test_what_is_almost_held_out_is_not_learnt_and_secrets_are_masked(tmp_path):
    raw = tmp_path / "raw"
    other = CODE.replace("function", "method").replace("value", "thing")
    for path, text in {
        "held-out/kept-1.0/a.py": CODE,
        "train/made-1.0/twin.py": CODE + "# one more line\n",
        "train/made-1.0/own.py": other + 'KEY = "AKIAQ3EGRPXWZ7LMNB2T"\n',
    }.items():
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).write_text(text)
    reading, counts = corpus.clean(raw, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").rglob("*.py")} == {"a.py", "own.py"}
    assert counts["train"]["made-1.0"]["files"] == 1
    assert reading.skipped["near-duplicate"] == 1
    assert "AKIAQ3EGRPXWZ7LMNB2T" not in (tmp_path / "out" / "train" / "made-1.0" / "own.py").read_text()


def test_a_packed_corpus_comes_back_byte_for_byte(tmp_path):
    out = tmp_path / "corpus"
    texts = {"train/a-1/x.py": "x = 'é'\r\n", "held-out/b-1/y.py": "y = 2\n"}
    for name, text in texts.items():
        (out / name).parent.mkdir(parents=True)
        (out / name).write_bytes(text.encode())
    (out / "corpus.json").write_text(json.dumps({}))
    corpus.pack(argparse.Namespace(out=out))
    with tarfile.open(out / "corpus.tar.xz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    for name, text in texts.items():
        assert (tmp_path / "there" / "corpus" / name).read_bytes() == text.encode()


def test_the_first_weights_are_those_of_the_recipe(tmp_path):
    made = script("embedded_init").first_weights(script("embedded_init").shape(384, 6, 8192, 8185), seed=0)
    assert 10e6 < sum(parameter.numel() for parameter in made.parameters()) < 15e6
    assert made.config.tie_word_embeddings
    shipped = json.loads((ROOT / "assets" / "demo-model" / "config.json").read_text())
    stated = made.config.to_dict()
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings"):
        assert shipped[name] == stated[name]
    recipe = load(ROOT / "recipes" / "embedded.yaml")
    assert recipe.training.method == "full"
    assert recipe.training.context == made.config.max_position_embeddings
    assert {"documents": recipe.data.documents, "held_out_fraction": recipe.data.held_out_fraction} == corpus.DATA


def test_the_card_names_the_weights_that_ship():
    folder = ROOT / "assets" / "demo-model"
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in (folder / "README.md").read_text()
