"""4-bit copies of models: the library's own codes, made once, and never anything else than what the files hold."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from support.tiny import tiny_model

from engine import cli
from engine.assets import asset
from engine.models import four_bit_cache
from engine.models.catalogue import find_model
from engine.models.kept_copies import kept_copies, open_lock, remove_copy, user_cache
from engine.models.loading import load_model, open_weights
from engine.models.placement import Placement
from tests.models.test_wrappers import save_wrapper

CPU = torch.device("cpu")
FP32 = Placement(device=CPU, precision="nf4", compute="fp32")


def save(path, family="qwen2", dtype=torch.bfloat16, seed=0, **shape):
    """A tiny model in Hugging Face format, whose linear layers are most of it."""
    shape = {"hidden_size": 128, "intermediate_size": 320, **shape}
    tiny_model(family, seed, **shape).to(dtype).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(asset("demo-model", name), path / name)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the copies, where models of any size are kept."""
    monkeypatch.setattr(four_bit_cache, "SMALLEST", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return user_cache()


def load(path, said=None, placement=FP32):
    return load_model(find_model(str(path)), placement, notify=(said if said is not None else []).append)


def quantised_by_the_library(path, monkeypatch, placement=FP32):
    with monkeypatch.context() as patch:
        patch.setattr(four_bit_cache, "SMALLEST", 2**60)
        return load(path, placement=placement)


def assert_same(found, expected):
    count = 0
    for (name, one), (other_name, other) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other_name
        assert one.dtype == other.dtype
        assert torch.equal(one.data, other.data), name
        if (state := getattr(other, "quant_state", None)) is not None:
            count += 1
            assert one.quant_state.dtype == state.dtype
            for key, value in state.as_dict(packed=True).items():
                assert torch.equal(one.quant_state.as_dict(packed=True)[key], value), (name, key)
    for (name, one), (_, other) in zip(found.named_buffers(), expected.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    assert count == sum(isinstance(module, Linear4bit) for module in expected.modules()) > 7
    assert {**found.config.to_dict()} == {**expected.config.to_dict()}


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("family", "shape"),
    [("qwen2", {"tie_word_embeddings": True}), ("llama", {}), ("phi", {}), ("starcoder2", {})],
)
def test_the_copy_is_what_the_library_quantises(family, shape, compute, tmp_path, cache, monkeypatch):
    path = save(tmp_path / "model", family, torch.float32 if family == "llama" else torch.bfloat16, **shape)
    placement = Placement(device=CPU, precision="nf4", compute=compute)
    expected = quantised_by_the_library(path, monkeypatch, placement)
    said = []
    first, second = load(path, said, placement), load(path, said, placement)
    assert len(said) == 2  # once that it is quantised, and once that it has been
    assert len(kept_copies()) == 1
    for found in (first, second):
        assert_same(found, expected)
        assert found.name_or_path == expected.name_or_path
    ids = torch.arange(1, 40)[None]
    assert torch.equal(second(input_ids=ids, use_cache=False).logits, expected(input_ids=ids, use_cache=False).logits)


@pytest.mark.parametrize("name", ["mistral3 of its own head", "llava"])
def test_the_text_model_of_a_wrapper(name, tmp_path, cache, monkeypatch):
    save_wrapper(tmp_path / "model", name)
    expected = quantised_by_the_library(tmp_path / "model", monkeypatch)
    before = [p.detach().clone() for p in expected.parameters()]
    found = load(tmp_path / "model")
    if not kept_copies():
        pytest.skip("its linear layers are less than half of it")
    assert_same(found, expected)
    assert all(torch.equal(one, other) for one, other in zip(before, expected.parameters(), strict=True))


def test_only_the_owner_reads_it(tmp_path, cache):
    load(save(tmp_path / "model"))
    [copy] = kept_copies()
    assert copy.path.parent == cache
    for path in (cache, copy.path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for file in (*copy.path.iterdir(), *cache.glob("*.lock")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_other_files_or_settings_make_another_copy(tmp_path, cache, monkeypatch):
    path = save(tmp_path / "model")
    load(path)
    load(path, placement=Placement(device=CPU, precision="nf4", compute="bf16"))
    assert len(kept_copies()) == 2
    # One value between those that are sampled, and the time of change as it was.
    file = path / "model.safetensors"
    before = file.stat()
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"][63, 100] = 3.0
    save_file(tensors, file, metadata={"format": "pt"})
    assert file.stat().st_size == before.st_size
    expected = quantised_by_the_library(path, monkeypatch)
    assert_same(load(path), expected)
    assert len(kept_copies()) == 1  # those of the earlier files are of no more use


def test_a_model_of_other_samples_is_noticed_whatever_its_times(tmp_path, cache, monkeypatch):
    path = save(tmp_path / "model")
    load(path)
    times = {file.name: file.stat() for file in path.iterdir()}
    save(path, seed=1)
    for file in path.iterdir():
        os.utime(file, ns=(times[file.name].st_atime_ns, times[file.name].st_mtime_ns))
    assert_same(load(path), quantised_by_the_library(path, monkeypatch))


def flip(file):
    with file.open("r+b") as opened:
        opened.seek(-1000, 2)
        byte = opened.read(1)
        opened.seek(-1000, 2)
        opened.write(bytes([byte[0] ^ 1]))


DAMAGES = {
    "a bit": lambda copy: flip(copy / "part-00001.safetensors"),
    "cut off": lambda copy: os.truncate(copy / "part-00001.safetensors", 1000),
    "empty": lambda copy: os.truncate(copy / "part-00000.safetensors", 0),
    "missing": lambda copy: (copy / "model.safetensors.index.json").unlink(),
    "configuration": lambda copy: (copy / "config.json").write_text("{}"),
    "manifest": lambda copy: (copy / "manifest.json").write_text(json.dumps({"format": 2})),
    "a file in its place": lambda copy: (shutil.rmtree(copy), copy.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_made_again(damage, tmp_path, cache, monkeypatch):
    path = save(tmp_path / "model")
    expected = quantised_by_the_library(path, monkeypatch)
    load(path)
    [copy] = kept_copies()
    DAMAGES[damage](copy.path)
    said = []
    assert_same(load(path, said), expected)
    if damage != "a file in its place":
        assert len([text for text in said if "damaged" in text]) == 1
    assert all("\n" not in text for text in said)
    assert_same(load(path, said := []), expected)
    assert not said


def test_two_starts_at_once_make_one_copy(tmp_path, cache, monkeypatch):
    path = save(tmp_path / "model")
    weights, config = open_weights(find_model(str(path)))
    said, copies, together = [], [], threading.Barrier(3)

    def start():
        together.wait()
        with four_bit_cache.four_bit_copy(weights, config, FP32, CPU, notify=said.append) as copy:
            copies.append(copy)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert copies == 3 * [kept_copies()[0].path]
    assert len([text for text in said if "quantised in" in text]) == 1
    assert_same(load(path), quantised_by_the_library(path, monkeypatch))


def test_what_a_killed_process_left_is_removed(tmp_path, cache):
    path = save(tmp_path / "model")
    load(path)
    [copy] = kept_copies()
    copy.path.rename(cache / f".{copy.path.name}.new")
    (cache / f".{'0' * 32}.new").mkdir()
    (cache / "notes").mkdir()
    load(path)
    assert sorted(entry.name for entry in cache.iterdir() if entry.is_dir()) == [copy.path.name, "notes"]


def test_the_copies_used_last_are_kept(tmp_path, cache):
    paths = [save(tmp_path / str(number), seed=number, num_hidden_layers=1) for number in range(5)]
    for path in paths[:3]:
        load(path)
    load(paths[0])
    for path in paths[3:]:
        load(path)
    assert {copy.model for copy in kept_copies()} == {str(paths[number]) for number in (0, 3, 4)}


def test_a_copy_that_is_in_use_is_not_removed(tmp_path, cache):
    path = save(tmp_path / "model")
    model = load(path)
    [copy] = kept_copies()
    with open_lock(copy.path) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert not remove_copy(copy.path)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert remove_copy(copy.path)
    assert not kept_copies()
    # What is mapped stays readable.
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_without_room_the_model_is_quantised_as_before(tmp_path, cache, monkeypatch):
    path = save(tmp_path / "model")
    expected = quantised_by_the_library(path, monkeypatch)
    monkeypatch.setattr(four_bit_cache, "_LEFT_FREE", 2**60)
    assert_same(load(path, said := []), expected)
    assert len(said) == 1
    assert " free of " in said[0]
    cache.parent.mkdir(exist_ok=True, parents=True)
    shutil.rmtree(cache, ignore_errors=True)
    cache.write_text("a file in the way")
    assert_same(load(path, said := []), expected)
    assert len(said) == 1


def test_experts_are_left_to_the_library(tmp_path, cache):
    """Their weights are assembled of several tensors, and are most of a sparse model."""
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    MixtralForCausalLM(MixtralConfig(**shape, num_key_value_heads=2, vocab_size=8192)).save_pretrained(tmp_path / "m")
    load(tmp_path / "m")
    assert not kept_copies()


_PEAK = """
import sys, torch, resource
from pathlib import Path
from engine.models import four_bit_cache, loading
from engine.models.catalogue import find_model
from engine.models.placement import Placement
from engine.streaming.weights import StreamedWeights
from engine.models.layers import decoder_layers
four_bit_cache.SMALLEST = 0
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
placement = Placement(device=torch.device("cpu"), precision="nf4", compute="bf16")
loading.load_model(find_model(sys.argv[1]), placement)  # the libraries are loaded, and their threads started
before = peak()
model = loading.load_model(find_model(sys.argv[2]), placement)
weights = StreamedWeights(decoder_layers(model), torch.device("cpu"), None)
print(peak() - before)
"""


@pytest.mark.slow
def test_the_peak_of_quantising_is_the_packed_model_and_one_layer(tmp_path, cache):
    """A model of 365 MB in 16 bits, read, quantised and packed into the buffers that layers stream from."""
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 8}
    large = save(tmp_path / "large", "llama", **wide)
    in_16_bits = (large / "model.safetensors").stat().st_size
    assert in_16_bits > 360e6
    small = save(tmp_path / "small", "llama")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", _PEAK, str(small), str(large)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
    grown = int(found.stdout.split()[-1])
    packed = sum(copy.size for copy in kept_copies() if copy.model == str(large))
    # The layer's values in fp32 are bitsandbytes' own on a CPU; and two buffers of a layer are the device's.
    layer = in_16_bits / 12
    assert packed < 0.3 * in_16_bits
    assert grown < packed + 3 * layer


def test_the_command_lists_and_removes(tmp_path, cache, capsys):
    paths = [save(tmp_path / name, seed=seed, num_hidden_layers=1) for seed, name in enumerate(("first", "second"))]
    assert cli.main(["cache"]) == 0
    assert "no 4-bit copies" in capsys.readouterr().out
    for path in paths:
        load(path)
    assert cli.main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "first" in shown
    assert "second" in shown
    assert cli.main(["cache", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in listed] == [str(path) for path in reversed(paths)]
    name = kept_copies()[0].path.name
    assert cli.main(["cache", "--remove", "zz"]) == 2
    assert "engine cache" in capsys.readouterr().err
    with open_lock(kept_copies()[0].path) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert cli.main(["cache", "--remove", name[:9]]) == 2
    assert cli.main(["cache", "--remove", name[:9]]) == 0
    assert [copy.model for copy in kept_copies()] == [str(paths[0])]
    (cache / f".{'1' * 32}.new").mkdir()
    assert cli.main(["cache", "--remove", "all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == []
    assert sorted(entry.name for entry in cache.iterdir() if entry.is_dir()) == []
