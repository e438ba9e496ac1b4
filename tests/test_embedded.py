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

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import load
from engine.tokenization.encoder import demo_encoder

ROOT = Path(__file__).parents[1]


sys.path.insert(0, str(ROOT / "scripts"))


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
    assert {one.name for one in PACKAGES if one.held_out} == {
        "click",
        "jinja2",
        "mcp",
        "networkx",
        "openai-agents",
        "rich",
        "textual",
    }


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


def test_the_card_names_the_weights_that_ship():
    folder = ROOT / "assets" / "demo-model"
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in (folder / "README.md").read_text()


# --- tokens, windows, training -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (CODE.replace("*", "@"), None),
        ("x = 'é'\n" + "y = compute(first, second)\n" * 9, None),
        ("table = [\n" + "    1234, 5678, 9012,\n" * 90 + "]\n", "numbers"),
        ("data = '" + "ab" * 600 + "'\n", "long lines"),
        ("".join(f"names[{n}] = 'имя человека'\n" for n in range(9)), "other scripts"),
        ("def f(:\n    pass\n", "does not parse"),
    ],
)
def test_tables_and_what_does_not_parse_are_left_out(text, flaw):
    assert corpus.flaw_of(text) == flaw


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A packed corpus, in two parts, and its files by path."""
    out = tmp_path_factory.mktemp("packed")
    files = {f"made/m{n}.py": CODE.replace("function", f"name{n}") for n in range(6)}
    for side in ("train", "held-out"):
        for path, text in files.items():
            target = out / side / "made-1.0" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text if side == "train" else text.replace("value", "thing"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "HELD_OUT", (4, 257))
        corpus.tokens(argparse.Namespace(out=out))
    content = (out / "tokens.xz").read_bytes()
    (out / "tokens.xz.a").write_bytes(content[: len(content) // 2])
    (out / "tokens.xz.b").write_bytes(content[len(content) // 2 :])
    (out / "tokens.xz").unlink()
    return out, files


def pieces(ids):
    """Decoded files of a window, without the last, which may be cut off."""
    text = demo_encoder().decode(ids.tolist())
    return text.split("<|endoftext|>")[:-1]


def test_the_tokens_are_the_files_as_the_engine_encodes_them(packed):
    out, files = packed
    found = script("pretrain_windows").Corpus(out)
    assert pieces(found.train) == [f"<|file_sep|>{path}\n{text}" for path, text in sorted(files.items())]
    assert found.held_out.shape == (4, 257)
    assert "thing" in demo_encoder().decode(found.held_out[0].tolist())


def test_a_corpus_with_a_missing_part_is_refused(packed, tmp_path):
    out, _ = packed
    for name in ("tokens.json", "tokens.xz.a"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    with pytest.raises(SystemExit, match="copy all its parts"):
        script("pretrain_windows").Corpus(tmp_path)


def test_a_moved_middle_put_back_is_a_stretch_of_its_file(packed):
    out, files = packed
    windows = script("pretrain_windows").Corpus(out).batch(0, 1, 20, 3000, fim=1.0)
    assert windows.shape == (20, 3001)
    seen, whole_lines = 0, 0
    for window in windows:
        for piece in pieces(window):
            head, prefix, suffix, middle = re.split(r"<\|fim_(?:prefix|suffix|middle)\|>", piece)
            path = head.removeprefix("<|file_sep|>").rstrip("\n")
            assert prefix + middle + suffix in files[path]
            seen += 1
            whole_lines += (not prefix or prefix.endswith("\n")) and (not suffix or suffix.startswith("\n"))
    assert seen > 100
    assert 0.4 < whole_lines / seen < 0.95


def test_a_stretch_of_a_package_begins_with_the_path_of_its_file(packed):
    out, files = packed
    for window in script("pretrain_windows").Corpus(out).batch(0, 1, 30, 200, fim=0.0):
        assert len(window) == 201
        path, _, text = demo_encoder().decode(window.tolist()).removeprefix("<|file_sep|>").partition("\n")
        assert text.partition("<|endoftext|>")[0] in files[path]


def test_a_plain_window_begins_without_a_path(packed):
    out, files = packed
    behind_an_end = 0
    for window in script("pretrain_windows").Corpus(out).batch(0, 1, 40, 120, fim=0.0, plain=1.0):
        assert len(window) == 121
        text = demo_encoder().decode(window.tolist())
        behind_an_end += text.startswith("<|endoftext|>")
        first = text.removeprefix("<|endoftext|>").partition("<|endoftext|>")[0]
        assert any(first in whole for whole in files.values())
    assert 5 < behind_an_end < 35


def options_of(out, folder, **changes):
    settings = {
        "corpus": out, "out": folder, "weights": None, "limit_s": None, "total_s": None, "steps": 4, "context": 64,
        "long_context": 128, "long_share": 0.5, "decay": 0.5, "tokens": 256, "at_once": 128, "fim": 0.5, "rate": 4e-3,
        "matrix_rate": 6e-3, "rate_scale": 1.0, "show": 1, "eager": True, "seed": 0, "shape": folder / "config.json",
        "start": None, "plain": 0.5,
    }  # fmt: skip
    config = script("embedded_init").shape(192, 1, 8192, 8185)
    folder.mkdir()
    config.save_pretrained(folder)
    return argparse.Namespace(**settings | changes)


def test_a_training_in_two_parts_ends_with_the_weights_of_one(packed, tmp_path):
    out, _ = packed
    pretrain = script("pretrain_small")
    whole = pretrain.Run(options_of(out, tmp_path / "whole"))
    assert pretrain.train(whole)
    pretrain.write(whole, True)

    options = options_of(out, tmp_path / "parts")
    first = pretrain.Run(options)
    for step in range(2):
        batch = first.corpus.batch(0, step, 4, 64, 0.5, 0.5)
        first.update(torch.from_numpy(batch.astype(np.int64)), pretrain.rate(step / 4, options.decay))
    first.keep()
    second = pretrain.Run(options)
    second.load()
    assert second.step == 2
    assert pretrain.train(second)
    assert second.step == 4
    pretrain.write(second, True)
    there, here = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert there.keys() == here.keys()
    for name, tensor in there.items():
        assert torch.equal(tensor, here[name]), name
    assert json.loads((tmp_path / "parts" / "training.json").read_text())["tokens"] == 4 * 256


def test_the_rate_rises_stays_and_falls_to_zero():
    rate = script("pretrain_small").rate
    shares = [rate(done / 100, 0.3) for done in range(101)]
    assert shares[0] < 0.01
    assert shares[2:70] == [1.0] * 68
    assert shares[85] == pytest.approx(0.5)
    assert shares[100] == 0.0


def test_weights_in_parts_are_put_together_and_the_card_names_them(tmp_path):
    ship = script("embedded_ship").ship
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    config = {"hidden_size": 4, "vocab_size": 8}
    for folder in (source, target):
        (folder / "config.json").write_text(json.dumps(config))
    (target / "README.md").write_text(f"(sha256 of the weights:\n  `{'0' * 64}`)\n")
    parts = {"a.safetensors": {"one": torch.ones(2)}, "b.safetensors": {"two": torch.zeros(3)}}
    for name, tensors in parts.items():
        save_file(tensors, source / name)
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}})
    )
    digest = ship(source, target)
    assert digest == hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (target / "README.md").read_text()
    assert load_file(target / "model.safetensors").keys() == {"one", "two"}
    (source / "b.safetensors").unlink()
    with pytest.raises(SystemExit, match="part of the weights is missing"):
        ship(source, target)
    (source / "config.json").write_text(json.dumps(config | {"hidden_size": 8}))
    with pytest.raises(SystemExit, match="hidden_size differ"):
        ship(source, target)
