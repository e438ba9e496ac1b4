"""Model folders: shapes, weights' headers and indexes, tokenizers, chat templates of somebody else's making."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from tests.chaos.fuzzing import Bench
from tests.chaos.odd import DAMAGES, ODD, damage, mutate, odd_header, odd_json

_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "head_dim",
    "intermediate_size", "max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "hidden_act",
    "rms_norm_eps", "tie_word_embeddings", "model_type", "architectures", "dtype", "torch_dtype", "layer_types",
    "sliding_window", "use_sliding_window", "max_window_layers", "quantization_config", "attention_dropout",
    "bos_token_id", "eos_token_id", "pad_token_id", "auto_map", "num_experts", "text_config", "attention_bias",
)  # fmt: skip
_LIKELY = (
    16, 33, 4, 3, 8192, 1 << 40, 10**8, 32.5, "32", "qwen3", "llama", "qwen2_moe", "gemma2", "gpt2", ["full_attention"],
    {"rope_type": "yarn", "factor": -1}, {"rope_type": "dynamic", "factor": "x"}, {"rope_type": "x", "rope_theta": 0},
    {"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": 5},
    {"AutoConfig": "evil.C"}, ["evil", "x"], {"hidden_size": 16}, [[1]], "float8", "os.system",
)  # fmt: skip
_TEMPLATES = (
    "", "{{ messages }}", "{% for m in messages %}{{ m.role }}", "{{ ''.__class__.__mro__ }}", "{{ 1/0 }}",
    "{% for a in range(99999999) %}{% for b in range(99999999) %}{% endfor %}{% endfor %}",
    "{{ raise_exception('\x1b[31mno') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{% include 'x' %}", "{{ messages[0]['content'] * 999999999 }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}", "\ud800", "{{ bos_token + 5 }}",
    "{% set ns = namespace(a=1) %}{{ ns.b.c }}",
)  # fmt: skip


def make(bench: Bench, rng: random.Random, folder: Path) -> list[str]:
    """One to three changes, and one command that looks at the model."""
    model = folder / "model"
    shutil.copytree(bench.model, model)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if all(path.is_file() and not path.is_symlink() for path in model.iterdir()):  # nothing damaged so far
            rng.choice((_shape, _shape, _file, _weights, _index, _tokenizer, _template))(model, rng)
    named, repository = str(model), str(bench.repository)
    written = ["--output", str(folder / "written")]
    return rng.choice(
        [
            ["plan", "--model", named, "--repo", repository],
            ["plan", "--model", named, "--json", "--hardware", "rtx-4090"],
            ["data", "--repo", repository, "--model", named, "--out", str(folder / "data")],
            ["data", "--dataset", str(_chat(folder)), "--model", named, "--json", "--out", str(folder / "data")],
            ["doctor", "--quick", "--repo", repository, "--model", named, *written],
            ["train", "--dry-run", "--auto", "--repo", repository, "--model", named, *written],
            ["generate", named, "--prompt", "x", "--max-tokens", "1", "--json"],
            ["generate", named, "--prompt", "x", "--max-tokens", "1", "--precision", "fp32", "--device", "cpu"],
        ]
    )


def _shape(model: Path, rng: random.Random) -> None:
    path = model / "config.json"
    try:
        config = json.loads(path.read_bytes())
        for _ in range(rng.randint(1, 2)):
            config[rng.choice(_FIELDS)] = rng.choice((*_LIKELY, *ODD))
        path.write_text(json.dumps(config))
    except (OSError, ValueError, TypeError):
        return  # an earlier change left nothing to change


def _file(model: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(model.iterdir()))
    if rng.random() < 0.4 or not path.is_file():
        if path.is_file():
            damage(path, rng.choice(DAMAGES))
    else:
        content = path.read_bytes()
        path.write_bytes(odd_json(content, rng) if _is_json(content) else mutate(content, rng))


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _weights(model: Path, rng: random.Random) -> None:
    path = model / "model.safetensors"
    if path.is_file() and not path.is_symlink():
        try:
            path.write_bytes(odd_header(path.read_bytes(), rng))
        except (ValueError, TypeError, RecursionError):
            path.write_bytes(b"")


def _index(model: Path, rng: random.Random) -> None:
    weights = model / "model.safetensors"
    name = rng.choice(["one.safetensors", "../outside.safetensors", "/etc/passwd", "w.bin", "", "\x1b[31m.safetensors"])
    if weights.is_file() and not weights.is_symlink() and name == "one.safetensors":
        weights.rename(model / name)
    index = {"metadata": {"total_size": rng.choice([1, -1, 1e308, "x"])}, "weight_map": {"lm_head.weight": name}}
    content = json.dumps(index).encode()
    (model / "model.safetensors.index.json").write_bytes(odd_json(content, rng) if rng.random() < 0.5 else content)


def _tokenizer(model: Path, rng: random.Random) -> None:
    path = model / "tokenizer.json"
    try:
        tokenizer = json.loads(path.read_bytes())
        part = rng.choice(
            ["normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens", "model", "padding"]
        )
        tokenizer[part] = rng.choice(
            [
                {"type": "Split", "pattern": {"Regex": "(a+)+$|(\\w+\\s?)*!"}, "behavior": "Isolated", "invert": False},
                {"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": False},
                {"type": "Sequence", "normalizers": []},
                {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                {"type": "WordLevel", "vocab": {"a": 10**6}, "unk_token": "a"},
                [{"id": 8190, "content": "\x1b]0;x\x07", "single_word": False, "lstrip": False, "rstrip": False,
                  "normalized": False, "special": True}],
                *ODD,
            ]
        )  # fmt: skip
        path.write_text(json.dumps(tokenizer))
    except (OSError, ValueError, TypeError):
        return


def _template(model: Path, rng: random.Random) -> None:
    template = rng.choice(_TEMPLATES)
    if rng.random() < 0.5:
        (model / "chat_template.jinja").write_text(template, "utf-8", "surrogatepass")
        return
    value = rng.choice([template, {"default": template}, [{"name": "default", "template": template}], 5, [[]]])
    path = model / "tokenizer_config.json"
    try:
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "chat_template": value}))
    except (OSError, ValueError, TypeError):
        return


def _chat(folder: Path) -> Path:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "print('hello')"}]
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(4)))
    return path
