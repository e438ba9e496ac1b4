"""What a model's folder may hold: every other one is refused by name, before anything of it is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny import tiny_model

from engine.assets import asset
from engine.config import from_mapping
from engine.errors import EliteError
from engine.launch import preflight
from engine.models.catalogue import find_model
from engine.models.folder import open_folder
from engine.models.loading import load_model, load_tokenizer, open_weights
from engine.models.placement import choose_placement
from engine.tokenization.encoder import Encoder

CPU = choose_placement("cpu", "fp32")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def make(tmp_path):
    """Makes a folder of a tiny model."""

    def made(family="llama", name="base", **shape):
        path = tmp_path / name
        tiny_model(family, vocab_size=8192, **shape).save_pretrained(path)
        for file in TOKENIZER:
            shutil.copy(asset("demo-model", file), path / file)
        return path

    return made


def edit(path, change, file="model.safetensors"):
    save_file(change(load_file(path / file)), path / file, metadata={"format": "pt"})


def edit_json(path, name, **values):
    text = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps({**text, **values}))


def shard(path, *, count=2):
    """The same weights in several files and an index, as large models come."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = names[number::count]
        save_file({name: tensors[name] for name in part}, path / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    write_index(path, where)
    return where


def write_index(path, where):
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def refusal(path, *, method="lora"):
    """The message of the check before a run starts; nothing of torch has been asked then."""
    data = {"model": {"name": str(path), "device": "cpu"}, "training": {"method": method, "context": 128}}
    data |= {"data": {"repositories": [str(path.parent)]}, "output": {"directory": str(path.parent / "out")}}
    with pytest.raises(EliteError) as caught:
        preflight.check(from_mapping(data))
    assert caught.value.exit_code in (2, 3)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def loading_refusal(path):
    with pytest.raises(EliteError) as caught:
        load_model(find_model(str(path)), CPU)
    assert caught.value.exit_code == 2
    return caught.value.message


# --- which files -------------------------------------------------------------------------------------------


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


# --- files that are none -----------------------------------------------------------------------------------


def fed_pipe(path):
    """A pipe that gives the file's content once, as if it were one."""
    text = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    threading.Thread(target=lambda: path.open("wb").write(text), daemon=True).start()


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


# --- headers -----------------------------------------------------------------------------------------------


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


# --- number formats ----------------------------------------------------------------------------------------

METHODS = ["gptq", "awq", "fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4", "hqq", "torchao", "quanto", "aqlm"]


@pytest.mark.parametrize("method", METHODS)
def test_quantised_models_are_refused_by_their_format(method, make):
    path = make()
    edit_json(path, "config.json", quantization_config={"quant_method": method})
    assert method in refusal(path)
    with pytest.raises(EliteError, match=method):
        find_model(str(path))


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


# --- weights -----------------------------------------------------------------------------------------------


def rename(change):
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


def without(*parts):
    return lambda tensors: {k: v for k, v in tensors.items() if not any(part in k for part in parts)}


WEIGHTS = {
    "missing tensor": (without("layers.1.mlp.up_proj"), "model.layers.1.mlp.up_proj.weight of the model's weights is"),
    "missing layer": (without("layers.1."), "and 7 more of the model's weights are missing"),
    "missing head": (without("lm_head"), "lm_head.weight of the model's weights is missing"),
    "another shape": (
        lambda tensors: {**tensors, "model.layers.0.self_attn.q_proj.weight": torch.zeros(3, 5)},
        "model.layers.0.self_attn.q_proj.weight has shape (3, 5), and config.json makes it (32, 32)",
    ),
    "fewer rows": (
        lambda tensors: {k: v[:-8].clone() if v.shape[0] == 8192 else v for k, v in tensors.items()},
        "has shape (8184, 32)",
    ),
    "biases": (
        lambda tensors: {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)},
        "model.layers.0.self_attn.q_proj.bias of its files would be ignored",
    ),
    "a part for speculation": (
        lambda tensors: {**tensors, "mtp.fc.weight": torch.zeros(4, 4)},
        "mtp.fc.weight of its files would be ignored: a llama has no such weight",
    ),
    "language_model.": (rename(lambda name: f"language_model.{name}"), "would be ignored"),
    "two names": (
        lambda tensors: {**tensors, "norm.weight": torch.ones(32)},
        "are both its model.norm.weight",
    ),
}


@pytest.mark.parametrize("case", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_do_not_match_are_refused_by_name(case, make):
    path = make()
    edit(path, case[0])
    assert case[1] in loading_refusal(path)


def test_more_rows_in_config_json_than_in_the_files_are_refused(make):
    path = make()
    edit_json(path, "config.json", vocab_size=9000)
    assert "config.json makes it (9000, 32)" in loading_refusal(path)


def test_rotary_tables_are_left_out(make):
    path = make()
    edit(path, lambda tensors: {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert len(open_weights(find_model(str(path)))[0].names) == len(load_file(path / "model.safetensors")) - 1


def test_names_without_the_decoder_s_prefix_are_its_weights(make):
    path = make()
    expected = load_file(path / "model.safetensors")
    edit(path, rename(lambda name: name.removeprefix("model.")))
    weights, _ = open_weights(find_model(str(path)))
    assert set(weights.names) == set(expected)
    model = load_model(find_model(str(path)), CPU)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in expected.items())


def test_a_head_of_its_own_beside_a_config_that_ties_is_refused(make):
    path = make(tie_word_embeddings=True)
    embedding = load_file(path / "model.safetensors")["model.embed_tokens.weight"]
    edit(path, lambda tensors: {**tensors, "lm_head.weight": embedding + 0.1})
    assert "lm_head.weight differs from model.embed_tokens.weight" in loading_refusal(path)


@pytest.mark.parametrize("kept", ["both", "head"])
def test_a_tied_weight_may_be_stored_under_either_name(kept, make):
    path = make(tie_word_embeddings=True)
    name = "model.embed_tokens.weight"
    expected = load_file(path / "model.safetensors")[name]
    edit(path, lambda tensors: {**tensors, "lm_head.weight": expected.clone()})
    if kept == "head":
        edit(path, without("embed_tokens"))
    weights, _ = open_weights(find_model(str(path)))
    assert name in weights.names
    assert "lm_head.weight" not in weights.names
    model = load_model(find_model(str(path)), CPU)
    assert torch.equal(model.get_input_embeddings().weight, expected)
    assert torch.equal(model.get_output_embeddings().weight, expected)


def test_files_of_several_number_formats_load(make):
    path = make()
    edit(path, lambda tensors: {k: v.bfloat16() if "proj" in k else v.double() for k, v in tensors.items()})
    model = load_model(find_model(str(path)), CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_library_that_reads_other_numbers_is_caught(make, monkeypatch):
    """As an error in a release's renaming of weights would: the values are compared, not the names."""
    from engine.models import loading

    path = make()
    real = loading._from_library

    def swapped(spec, loader, source, arguments):
        found = real(spec, loader, source, arguments)
        if isinstance(found, tuple):
            layers = found[0].model.layers
            layers[0].mlp.up_proj, layers[1].mlp.up_proj = layers[1].mlp.up_proj, layers[0].mlp.up_proj
        return found

    monkeypatch.setattr(loading, "_from_library", swapped)
    assert "it put other numbers into model.layers.0.mlp.up_proj.weight" in loading_refusal(path)


# --- rows and ids ------------------------------------------------------------------------------------------


def add_token(path, text, *, special):
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append({"id": 8192, "content": text, "special": special, **token})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


def test_a_token_without_a_row_is_refused(make):
    path = make()
    add_token(path, "returns nothing", special=False)
    with pytest.raises(EliteError, match="'returns nothing' as id 8,192, and its model has 8,192 rows"):
        load_tokenizer(find_model(str(path)))


def test_a_control_token_without_a_row_that_nothing_emits_is_left_alone(make):
    path = make()
    add_token(path, "<image_soft_token>", special=True)
    assert load_tokenizer(find_model(str(path))).is_fast


HOSTILE_SETTINGS = {
    "a number format that torch lacks": {"dtype": "evil", "torch_dtype": "int8"},
    "unknown kinds of layers": {"layer_types": ["evil", "\x1b[31m"]},
    "a vocabulary of 10^12": {"vocab_size": 10**12},
    "a size of 10^30": {"hidden_size": 10**30},
    "an endless rope": {"max_position_embeddings": 10**300},
    "an activation that is code": {"hidden_act": "os.system"},
    "a rope of no kind": {"rope_parameters": {"rope_type": "evil", "rope_theta": 0}},
}


@pytest.mark.parametrize("settings", HOSTILE_SETTINGS.values(), ids=HOSTILE_SETTINGS)
def test_settings_that_make_no_model_are_refused_in_one_line(make, settings):
    path = make()
    edit_json(path, "config.json", **settings)
    with pytest.raises(EliteError) as caught:
        load_model(find_model(str(path)), CPU)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def edit_tokenizer(path, **values):
    edit_json(path, "tokenizer.json", **values)
    return load_tokenizer(find_model(str(path)))


def test_a_tokenizer_that_multiplies_a_text_is_refused(make):
    grow = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 16}
    shrink = {"type": "Replace", "pattern": {"String": "e" * 16}, "content": "e"}
    assert Encoder(edit_tokenizer(make(), normalizer={"type": "Sequence", "normalizers": [grow, shrink]}))
    for steps in ([grow] * 3, [{"type": "Sequence", "normalizers": [grow, grow]}, grow]):
        tokenizer = edit_tokenizer(make(name=f"b{len(steps)}"), normalizer={"type": "Sequence", "normalizers": steps})
        with pytest.raises(EliteError, match=r"4,096 times longer"):
            Encoder(tokenizer)


def test_a_tokenizer_whose_pattern_gives_up_is_one_line(make):
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$|(\\w+\\s?)*!"}, "behavior": "Isolated", "invert": False}
    encoder = Encoder(edit_tokenizer(make(), pre_tokenizer=pattern))
    with pytest.raises(EliteError, match="tokenizer cannot be used"):
        encoder.encode_documents([("name.py", "word " * 40)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_weights_that_are_no_finite_numbers_are_refused_before_a_run_learns_nothing(make, value, name):
    path = make()
    edit(path, lambda tensors: {**tensors, name: torch.full_like(tensors[name], value)})
    assert f"{name} holds numbers that are no finite ones" in loading_refusal(path)


def test_one_number_of_a_norm_is_enough(make):
    path = make()

    def one(tensors):
        tensors["model.norm.weight"][3] = float("nan")
        return tensors

    edit(path, one)
    assert "model.norm.weight holds numbers" in loading_refusal(path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize(
    "content", ["{", "[]", "", "\ufeff{}", '"a"', "[" * 100_000], ids=["cut", "list", "empty", "mark", "text", "deep"]
)
def test_a_broken_file_of_settings_is_named(make, name, content):
    path = make()
    (path / name).write_text(content, encoding="utf-8")
    with pytest.raises(EliteError) as caught:
        load_tokenizer(find_model(str(path)))
    assert caught.value.code == "model-directory-invalid"
    assert f"{path}: {name} cannot be read" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4, "factor": 2.0}}, "does not know 'foo'"),
        ({"hidden_act": "foo"}, "does not know 'foo'"),
        ({"rms_norm_eps": "1e-5"}, "config.json cannot be read.*rms_norm_eps.*str"),
        ({"eos_token_id": "x"}, "config.json cannot be read.*eos_token_id"),
    ],
)
def test_a_value_that_the_library_refuses_is_named(make, values, said):
    path = make()
    edit_json(path, "config.json", **values)
    assert re.search(said, loading_refusal(path))
