"""What a model's folder may hold: every other one is refused by name, before anything of it is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.model_folders import CPU, INDEX, edit, edit_json, refusal, shard, write_index

from engine.errors import EliteError
from engine.models.catalogue import find_model
from engine.models.folder import open_folder
from engine.models.loading import load_model, load_tokenizer


def stale_index(path):
    tensors = load_file(path / "model.safetensors")
    shard(path)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def missing_shard(path):
    shard(path)
    (path / "model-00002-of-00002.safetensors").unlink()


def lost_index(path):
    shard(path)
    (path / INDEX).unlink()


def twice(path):
    where = shard(path)
    name = next(name for name, file in where.items() if "00001" in file)
    other = "model-00002-of-00002.safetensors"
    edit(path, lambda tensors: {**tensors, name: torch.zeros(3)}, other)


def unlisted(path):
    where = shard(path)
    write_index(path, {name: file for name, file in where.items() if name != "model.norm.weight"})


def misplaced(path):
    where = shard(path)
    write_index(path, {**where, "model.layers.9.mlp.up_proj.weight": "model-00001-of-00002.safetensors"})


def outside(path):
    shutil.move(path / "model.safetensors", path.parent / "x.safetensors")
    write_index(path, dict.fromkeys(load_file(path.parent / "x.safetensors"), "../x.safetensors"))


def absolute(path):
    shutil.move(path / "model.safetensors", path.parent / "x.safetensors")
    file = str(path.parent / "x.safetensors")
    write_index(path, dict.fromkeys(load_file(file), file))


def variant(path):
    (path / "model.safetensors").rename(path / "model.fp16.safetensors")


def pickled(path):
    (path / "model.safetensors").unlink()
    torch.save({}, path / "pytorch_model.bin")


def only_an_adapter(path):
    (path / "config.json").unlink()
    (path / "adapter_config.json").write_text("{}")


def adapter_beside(path):
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/etc"}))


FILES = {
    stale_index: "it holds model.safetensors and model.safetensors.index.json",
    missing_shard: "model-00002-of-00002.safetensors is missing",
    lost_index: "model.safetensors.index.json is missing",
    twice: "is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors",
    unlisted: "and model.safetensors.index.json has it nowhere",
    misplaced: "has model.layers.9.mlp.up_proj.weight in model-00001-of-00002.safetensors, which does not hold it",
    outside: "in ../x.safetensors, which is not a safetensors file of this folder",
    absolute: "which is not a safetensors file of this folder",
    variant: "its weights are in model.fp16.safetensors",
    pickled: "its weights are pickled (pytorch_model.bin)",
    only_an_adapter: "it has no config.json",
    adapter_beside: "it holds an adapter",
    lambda path: edit_json(path, "config.json", transformers_weights="other.safetensors"): "other.safetensors",
    lambda path: (path / INDEX).write_text('{"weight_map": [1]}'): "has no weight_map",
    lambda path: (path / INDEX).write_text('{"weight_map": {"a": "model.safetensors"}}'): "has no metadata",
    lambda path: (path / INDEX).write_text('{"weight_map":' + "[" * 99_999): "nested too deeply",
    lambda path: (path / "model.safetensors").unlink(): "it holds no weights",
}


@pytest.mark.parametrize("damage", FILES, ids=lambda damage: damage.__name__)
def test_files_that_leave_open_what_is_read_are_refused(damage, make):
    path = make()
    damage(path)
    assert FILES[damage] in refusal(path)


def test_shards_load_and_files_beside_them_that_nobody_reads_do_not_matter(make):
    path = make()
    expected = load_file(path / "model.safetensors")
    shard(path, count=3)
    save_file({"tok_embeddings.weight": torch.zeros(2)}, path / "consolidated.safetensors")
    torch.save({}, path / "pytorch_model.bin")
    (path / "original").mkdir()
    (path / "original" / "params.json").write_text("{")
    (path / "README.md").symlink_to("nowhere")
    model = load_model(find_model(str(path)), CPU)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in expected.items())


def test_an_index_of_the_only_file_is_no_contradiction(make):
    path = make()
    write_index(path, dict.fromkeys(load_file(path / "model.safetensors"), "model.safetensors"))
    assert open_folder(path).tensors


def test_a_snapshot_of_the_hubs_cache_is_links_and_loads(make, tmp_path):
    path = make()
    shard(path)
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(path.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load_model(find_model(str(snapshot)), CPU).config.model_type == "llama"


def fed_pipe(path):
    """A pipe that gives the file's content once, as if it were one."""
    text = path.read_bytes()
    path.unlink()
    os.mkfifo(path)

    def feed():
        with contextlib.suppress(BrokenPipeError):  # of who opens it and reads nothing
            path.write_bytes(text)

    threading.Thread(target=feed, daemon=True).start()


def make_socket(path):
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


def make_link(path, target):
    path.unlink()
    path.symlink_to(target)


def make_folder(path):
    path.unlink()
    path.mkdir()


KINDS = {
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a socket": make_socket,
    "a device": lambda path: make_link(path, "/dev/zero"),
    "a folder": make_folder,
    "a link to nothing": lambda path: make_link(path, "nowhere"),
}


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_files_are_read(kind, name, make):
    path = make()
    KINDS[kind](path / name)
    assert f"{name} is {kind}" in refusal(path)
    with pytest.raises(EliteError, match=name):
        load_tokenizer(find_model(str(path)))


def test_a_pipe_is_refused_also_while_somebody_writes_into_it(make):
    path = make()
    fed_pipe(path / "tokenizer.json")
    assert "tokenizer.json is a pipe" in refusal(path)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool.jinja", "stray"])
def test_pipes_of_any_name_are_refused(name, make):
    path = make()
    (path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(path / name)
    assert f"{name.rpartition('/')[2]} is a pipe" in refusal(path)


def header(entries, data=b""):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    b"": "it is empty or cut off",
    struct.pack("<Q", 1 << 60) + b"{}": "its header is cut off",
    header({"a": entry()}, b"abc"): "bytes, and its header describes",
    header({"a": entry(shape=[1 << 40])}, b"abcd"): "the bytes of a do not fill its shape",
    header({"a": entry(), "b": entry()}, b"abcd"): "are not where the tensor before it ends",
    header({"a": entry("F7")}, b"abcd"): "the number format 'F7' of a is unknown",
    header({"a": entry(shape=[-1])}, b"abcd"): "the entry of a is malformed",
    header({"a": 5}): "its header is not an object",
    header(b'{"a":' * 99_999): "is not a whole safetensors file",
    header(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'): "it names a twice",
    b"\x80\x04not safetensors at all": "its header is cut off",
}


@pytest.mark.parametrize("content", HEADERS, ids=HEADERS.values())
def test_damaged_files_are_refused(content, make):
    path = make()
    (path / "model.safetensors").write_bytes(content)
    assert HEADERS[content] in refusal(path)


def test_a_truncated_shard_is_named(make):
    path = make()
    shard(path)
    file = path / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert file.name in refusal(path)


METHODS = ["gptq", "awq", "fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4", "hqq", "torchao", "quanto", "aqlm"]


@pytest.mark.parametrize("method", METHODS)
def test_quantised_models_are_refused_by_their_format(method, make):
    path = make()
    edit_json(path, "config.json", quantization_config={"quant_method": method})
    assert method in refusal(path)
    with pytest.raises(EliteError, match=method):
        find_model(str(path))


@pytest.mark.parametrize("key", ["quantization", "compression_config"])
def test_quantisations_under_other_keys_are_refused_by_the_settings_alone(key, make, tmp_path):
    # As mlx-lm writes it: the hub is asked for the weights only where config.json is one to train.
    settings = json.loads((make() / "config.json").read_text())
    stored = {key: {"group_size": 64, "bits": 4}}
    wrapper = {"model_type": "mistral3", "text_config": {**settings, "model_type": "mistral", key: None}}
    for config in ({**settings, **stored}, {**wrapper, **stored}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(EliteError, match="stores its weights as"):
            find_model(str(tmp_path))


def test_8_bits_are_refused(make):
    path = make()
    edit_json(path, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert "8 bits" in refusal(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32])
def test_numbers_that_are_not_weights_are_refused_whatever_config_json_says(dtype, make):
    path = make()
    edit(path, lambda tensors: {k: v.to(dtype) if "proj" in k else v for k, v in tensors.items()})
    assert "stores its weights as" in refusal(path)


def test_4_bits_that_the_files_do_not_hold_are_refused(make):
    path = make()
    edit_json(path, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "they are not" in refusal(path)
