"""What a GGUF file says of its tokenizer: tokens, kinds, merges, the way of splitting, special tokens."""

from __future__ import annotations

import json

import pytest
import transformers
from gguf import GGUFReader, TokenType
from packaging.version import Version
from support.exports import byte_level_tokenizer, finished_run, save_base
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.errors import EliteError
from engine.export.exporting import export
from engine.export.gguf_tokenizer import read_tokenizer

TEXT = "def f(x):\n\treturn 12345 + x  # naïve → 𝔘, don't we'll\n\n    if  x :\n"


def saved(tokenizer, path, **settings):
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(path)
    return path


@pytest.mark.parametrize(("name", "family", "pre"), [("qwen2", "qwen2", "qwen2"), ("llama-bpe", "llama", "llama-bpe")])
def test_byte_level_tokenizers(name, family, pre, tmp_path, tokenizers):
    run = finished_run(tmp_path / "out", save_base(tmp_path / "base", family, tokenizers[name]))
    written = export(run, "gguf", dtype="f32")
    file = next(written.path.glob("*.gguf"))
    fields = GGUFReader(file).fields
    read = {
        key: fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre", "tokens", "token_type", "merges")
    }
    own = json.loads(tokenizers[name].to_str())
    assert (read["model"], read["pre"]) == ("gpt2", pre)
    assert len(read["tokens"]) == 640  # rows of the embedding, of which the tokenizer uses fewer
    assert read["merges"] == [" ".join(pair) for pair in own["model"]["merges"]]
    control = [read["tokens"][n] for n, kind in enumerate(read["token_type"]) if kind == TokenType.CONTROL]
    assert control == ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    ids = tokenizers[name].encode(TEXT, add_special_tokens=False).ids
    assert "".join(read["tokens"][number] for number in ids) == "".join(tokenizers[name].encode(TEXT).tokens)
    assert fields["tokenizer.ggml.fim_suf_token_id"].contents() == tokenizers[name].token_to_id("<|fim_suffix|>")
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizers[name].token_to_id("<|endoftext|>")
    # The reader of Llama files before 5.18 splits Llama 3's text wrongly; test_llama_cpp.py has them read, too.
    if family == "llama" and Version(transformers.__version__) < Version("5.18"):
        return
    # transformers makes the tokenizer from the file's metadata alone.
    again = AutoTokenizer.from_pretrained(written.path, gguf_file=file.name)
    assert again(TEXT, add_special_tokens=False)["input_ids"] == ids


def test_a_tokenizer_with_byte_fallback_is_told_by_scores(tmp_path, tokenizers):
    saved(tokenizers["llama"], tmp_path, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    found = read_tokenizer(tmp_path, 640)
    assert (found.kind, found.space_prefix, found.add_bos) == ("llama", True, True)
    assert found.special == {"bos": 1, "eos": 2, "unk": 0}
    kinds = {TokenType(kind).name: found.types.count(kind) for kind in set(found.types)}
    assert kinds["BYTE"] == 256
    assert (kinds["UNKNOWN"], kinds["CONTROL"]) == (1, 2)
    merges = json.loads(tokenizers["llama"].to_str())["model"]["merges"]
    first, later = "".join(merges[0]), "".join(merges[20])
    score = dict(zip(found.tokens, found.scores, strict=True))
    assert score[first] > score[later] > score["a"]


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], "gpt-2"),
        (
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
            "starcoder",
        ),
    ],
)
def test_other_ways_of_splitting_have_their_names(steps, name, tmp_path):
    tokenizer = byte_level_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    assert read_tokenizer(saved(tokenizer, tmp_path, eos_token="<|endoftext|>"), 640).pre == name


def test_a_way_of_splitting_that_llama_cpp_does_not_know_is_refused(tmp_path):
    tokenizer = byte_level_tokenizer(r"\p{N}{1,2}")
    with pytest.raises(EliteError) as caught:
        read_tokenizer(saved(tokenizer, tmp_path, eos_token="<|endoftext|>"), 640)
    assert caught.value.code == "model-family-unsupported"
    assert r"\p{N}{1,2}" in caught.value.message
    assert "\n" not in str(caught.value)


def qwen_split(behavior="isolated", pattern=Regex, **settings):
    stored = json.loads(byte_level_tokenizer().to_str())["pre_tokenizer"]["pretokenizers"][0]
    return pre_tokenizers.Split(pattern(stored["pattern"]["Regex"]), behavior, **settings)


def steps(split=None, *, space=False):
    inner = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
    return pre_tokenizers.Sequence([split or qwen_split(), inner])


OTHER_BYTES = {
    "Lowercase": {"normalizer": normalizers.Lowercase()},
    "NFKC": {"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.NFKC()])},
    "Replace": {"normalizer": normalizers.Replace("\t", "    ")},
    "add_prefix_space": {"pre_tokenizer": steps(space=True)},
    "Removed": {"pre_tokenizer": steps(qwen_split("removed"))},
    "Contiguous": {"pre_tokenizer": steps(qwen_split("contiguous"))},
    "String": {"pre_tokenizer": steps(qwen_split(pattern=str))},
}
OTHER_PIECES = {
    "Lowercase": {"normalizer": normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])},
    "Replace": {"normalizer": normalizers.Sequence([normalizers.Replace("\t", " "), normalizers.Replace(" ", "▁")])},
    "Digits": {"pre_tokenizer": pre_tokenizers.Digits(individual_digits=True)},
    "keeps spaces": {"normalizer": normalizers.Prepend("▁")},
}


@pytest.mark.parametrize(
    ("kind", "named", "changes"),
    [("qwen2", *each) for each in OTHER_BYTES.items()] + [("llama", *each) for each in OTHER_PIECES.items()],
)
def test_steps_that_no_field_tells_of_are_refused(kind, named, changes, tmp_path, tokenizers):
    changed = Tokenizer.from_str(tokenizers[kind].to_str())
    for part, value in changes.items():
        setattr(changed, part, value)
    # Tokens, merges and name are the same, so that a file would be read as the unchanged one.
    text = f"{TEXT}A ﬁ 2026"
    assert changed.encode(text).ids != tokenizers[kind].encode(text).ids
    with pytest.raises(EliteError, match=named) as caught:
        read_tokenizer(saved(changed, tmp_path, eos_token="</s>" if kind == "llama" else "<|endoftext|>"), 640)
    assert caught.value.code == "model-family-unsupported"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "normalizer": normalizers.Replace(" ", "▁"),
            "pre_tokenizer": pre_tokenizers.Split(" ", "merged_with_previous"),
        },
        {"normalizer": None, "pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first", split=False)},
    ],
    ids=["Llama 2", "Gemma", "Mistral"],
)
def test_the_steps_of_sentencepiece_are_told(changes, tmp_path, tokenizers):
    tokenizer = Tokenizer.from_str(tokenizers["llama"].to_str())
    for part, value in changes.items():
        setattr(tokenizer, part, value)
    assert read_tokenizer(saved(tokenizer, tmp_path, eos_token="</s>"), 640).kind == "llama"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, tokenizers):
    with pytest.raises(EliteError) as caught:
        read_tokenizer(saved(tokenizers["qwen2"], tmp_path), 100)
    assert caught.value.code == "export-damaged"


def test_chat_template_and_modelfile(tmp_path, tokenizers):
    base = save_base(tmp_path / "base", "qwen2", tokenizers["qwen2"])
    written = export(finished_run(tmp_path / "out", base), "gguf")
    modelfile = (written.path / "Modelfile").read_text()
    assert f"FROM ./{next(written.path.glob('*.gguf')).name}\n" in modelfile
    assert "<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>" in modelfile
    assert 'PARAMETER stop "<|endoftext|>"' in modelfile
    (base / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    written = export(finished_run(tmp_path / "chat", base), "gguf")
    assert "TEMPLATE" not in (written.path / "Modelfile").read_text()
    fields = GGUFReader(next(written.path.glob("*.gguf"))).fields
    assert fields["tokenizer.chat_template"].contents().startswith("{% for message")
    for name, end in (("plain", "<|endoftext|>"), ("chatml", "<|im_end|>")):
        written = export(finished_run(tmp_path / name, base, chat_template=name), "gguf")
        modelfile = (written.path / "Modelfile").read_text()
        assert f'PARAMETER stop "{end}"' in modelfile
        assert "{{ range .Messages }}" in modelfile.partition('TEMPLATE """')[2]
        assert f"{{{{ .Content }}}}{end}" in modelfile or f"{end}{{{{ end }}}}" in modelfile
