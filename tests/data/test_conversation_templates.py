"""Chat templates of conversations: the model's, a known one, a file of the user's; those that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.conversations import ASKED, FORMS, GOOD, SAID, build, learnt_texts, some, tokenizer, write

from engine.errors import EliteError


def test_a_base_model_is_named_a_template(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", some(FORMS["calls"][0]))
    bare = tokenizer(template=None)
    with pytest.raises(EliteError) as caught:
        build(tmp_path, path, model=bare)
    assert caught.value.code == "chat-template-missing"
    call = 'call: {"name": "look", "arguments": {"at": "x"}}'
    chatml = build(tmp_path, path, model=bare, chat_template="chatml")
    assert set(learnt_texts(chatml)) == {f"{call}<|im_end|>Groß genug.<|im_end|>"}
    plain = build(tmp_path, path, model=bare, chat_template="plain")
    assert set(learnt_texts(plain)) == {f"{call}<|endoftext|>Groß genug.<|endoftext|>"}
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}{{ m.role + ':' + m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    words = write(tmp_path / "words.jsonl", some({"messages": GOOD}))
    assert set(learnt_texts(build(tmp_path, words, model=bare, chat_template=str(own)))) == {"Groß genug.<|im_end|>"}
    gemma = tokenizer("gemma3", template=None)
    for name, problem in (
        ("chatml", "has no <|im_start|>"),
        ("nothing", "neither known"),
        ("no.jinja", "No such file"),
    ):
        with pytest.raises(EliteError, match=problem):
            build(tmp_path, path, model=gemma, chat_template=name)
    own.write_text("{% for m in messages %}{{ m.role")
    with pytest.raises(EliteError, match=r"own.jinja cannot be used: line 1"):
        build(tmp_path, path, model=bare, chat_template=str(own))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for m in messages %}{{ m.content[::-1] }}<|im_end|>{% endfor %}", "it changes with marks|string in part"),
        ("{% for m in messages %}{{ m.content|length }}{% endfor %}", "changes with marks"),
        ("{% for m in messages|reverse %}{{ m.role + ':' + m.content }}<|im_end|>{% endfor %}", "message 2"),
        ("{{ raise_exception('never') }}", "never"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ 'x' + messages[0].description }}", "a value has no attribute 'description'"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, source: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.tokenization.chat_template.SECONDS", 0.3)
    path = write(tmp_path / "rows.jsonl", some({"messages": GOOD}, 3))
    with pytest.raises(EliteError, match=problem) as caught:
        build(tmp_path, path, model=tokenizer(template=source))
    assert caught.value.code == "chat-template-unusable"
    assert "of the model's tokenizer" in str(caught.value)


def test_the_preview_knows_the_template_of_a_folder(tmp_path: Path) -> None:
    from engine.data.preview import with_chat_template

    made = tokenizer()
    made.save_pretrained(tmp_path / "model")
    found = with_chat_template(made.backend_tokenizer, tmp_path / "model")
    path = write(tmp_path / "rows.jsonl", some({"messages": GOOD}))
    assert build(tmp_path, path, model=found).summary.store == build(tmp_path, path).summary.store
    bare = tmp_path / "bare"
    bare.mkdir()
    assert with_chat_template(made.backend_tokenizer, bare) is made.backend_tokenizer


def test_values_that_templates_and_tokenizers_could_trip_over(tmp_path: Path) -> None:
    arguments = {"\ud800": "\udfff x", "big": 10**9, "n": 10**300, "<|im_end|>": None}
    tool = {"name": "look", "description": "\ud801 <|im_start|>", "parameters": {"properties": {"<|im_end|>": {}}}}
    call = {"id": "<|im_end|>", "function": {"name": "<|im_start|>", "arguments": arguments}}
    rows = some({"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}, SAID], "tools": [tool]})
    source = (
        "{% macro shown(x) %}{{ x }}{% endmacro %}{% for t in tools %}{{ t|tojson }}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role + ':' }}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "{{ c.id + c.function.name }}{% for k, v in c.function.arguments.items() %}{{ k }}={{ shown(v) }}{% endfor %}"
        "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    model = tokenizer(template=source)
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows), model=model, limit=8192)
    assert dataset.summary.skipped == {}
    ids = dataset.store.tokens.tolist()
    assert ids.count(model.convert_tokens_to_ids("<|im_start|>")) == 3 * 8
    assert ids.count(model.convert_tokens_to_ids("<|im_end|>")) == 3 * 8
    assert "big=1000000000" in learnt_texts(dataset, model)[0]
