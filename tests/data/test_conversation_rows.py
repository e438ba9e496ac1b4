from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support.chat_templates import FAMILIES
from support.tokenizer_kinds import added, byte_level
from transformers import PreTrainedTokenizerFast

from engine.config import DataSection
from engine.data.conversations import RowReader
from engine.data.dataset import Dataset, build_dataset
from engine.data.messages import NoConversationError
from engine.data.report import describe
from engine.errors import EliteError
from engine.tokenization.encoder import Encoder

TEXT = "Wie groß ist 日本? "
ASKED = {"role": "user", "content": TEXT}
SAID = {"role": "assistant", "content": "Groß genug."}
GOOD = [ASKED, SAID]
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "x"}}}


def tokenizer(family: str = "qwen2.5", template: str | None = "") -> PreTrainedTokenizerFast:
    known = FAMILIES[family]
    backend = byte_level([added(name, special=True) for name in known.control])
    template = known.source if template == "" else template
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", chat_template=template)


def build(tmp_path: Path, path: Path, *, limit: int | None = None, model: Any = None, **options: Any) -> Dataset:
    data = DataSection(datasets=[str(path)], **options)
    cache = tmp_path / "cache"
    return build_dataset(data, tokenizer=model or tokenizer(), context=limit or 512, cache=cache, limit=limit)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def learnt_texts(dataset: Dataset, model: Any = None) -> list[str]:
    """What is predicted of each document, in the store's order."""
    encoder, store = Encoder(model or tokenizer()), dataset.store
    found = []
    for start, stop in zip(store.offsets(), store.offsets()[1:], strict=False):
        ids = store.tokens[start:stop]
        learnt = np.ones(len(ids), bool) if store.learnt is None else store.learnt.among(int(start), int(stop))
        found.append(encoder.decode(ids[learnt].tolist()))
    return found


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"messages": GOOD}, "Groß genug.<|im_end|>"),
    "parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": TEXT}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Groß genug."}]},
            ]
        },
        "Groß genug.<|im_end|>",
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": TEXT}, {"from": "gpt", "value": "Groß genug."}]},
        "Groß genug.<|im_end|>",
    ),
    "text messages": ({"messages": json.dumps(GOOD)}, "Groß genug.<|im_end|>"),
    "alpaca": ({"instruction": "Say", "input": TEXT, "output": "Groß genug."}, "Groß genug.<|im_end|>"),
    "alpaca with history": (
        {"instruction": "Say", "input": "", "output": "Groß genug.", "history": [["a", "b"]], "system": "Be brief."},
        "b<|im_end|>Groß genug.<|im_end|>",
    ),
    "question": ({"question": TEXT, "answer": "Groß genug."}, "Groß genug.<|im_end|>"),
    "continued": ({"prompt": TEXT, "completion": "Groß genug."}, "Groß genug.<|endoftext|>"),
    "prompt of messages": (
        {"prompt": [ASKED, {"role": "assistant", "content": "not this"}, ASKED], "completion": [SAID]},
        "Groß genug.<|im_end|>",
    ),
    "chosen": (
        {"chosen": GOOD, "rejected": [ASKED, {"role": "assistant", "content": "Nein."}]},
        "Groß genug.<|im_end|>",
    ),
    "chosen with a prompt": ({"prompt": TEXT, "chosen": "Groß genug.", "rejected": "Nein."}, "Groß genug.<|im_end|>"),
    "transcript": (
        {"chosen": "\n\nHuman: a?\n\nAssistant: x\n\nHuman: b?\n\nAssistant: Groß genug.", "rejected": "y"},
        "Groß genug.<|im_end|>",
    ),
    "calls": (
        {
            "messages": [
                ASKED,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "seen"},
                SAID,
            ],
            "tools": [{"name": "look", "parameters": {"type": "object"}}],
        },
        '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call><|im_end|>Groß genug.<|im_end|>',
    ),
    "calls as text": (
        {
            "messages": [
                ASKED,
                {
                    "role": "assistant",
                    "tool_calls": [{**CALL, "function": {"name": "look", "arguments": '{"at": "x"}'}}],
                },
                {"role": "tool", "content": "seen"},
                SAID,
            ],
            "tools": json.dumps([{"name": "look", "parameters": {}}]),
        },
        '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call><|im_end|>Groß genug.<|im_end|>',
    ),
    "weights": (
        {"messages": [ASKED, {**SAID, "weight": 0}, ASKED, {**SAID, "weight": 1}, ASKED, {**SAID, "train": False}]},
        "Groß genug.<|im_end|>",
    ),
}


def some(row: dict[str, Any], count: int = 8) -> list[dict[str, Any]]:
    """Rows that differ in what is asked, so that none is a copy of another."""
    return [
        json.loads(
            json.dumps(row, ensure_ascii=False)
            .replace("Wie", f"Wie {i}")
            .replace("a?", f"a{i}?")
            .replace('"Say"', f'"Say {i}"')
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet", "rows.arrow"])
def test_forms_of_conversations(tmp_path: Path, form: str, kind: str) -> None:
    row, wanted = FORMS[form]
    rows, path = some(row), tmp_path / kind
    if kind.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind.endswith(".arrow"):
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif kind.endswith(".gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in rows).encode()))
    else:
        write(path, rows) if kind.endswith("l") else path.write_text(json.dumps(rows))
    dataset = build(tmp_path, path, near_duplicates="keep")
    assert dataset.summary.skipped == {}
    assert learnt_texts(dataset) == [wanted] * 8
    report = describe(dataset)
    assert 0 < report.loss_tokens < report.tokens
    assert report.conversations is not None
    assert report.conversations.count == 8
    assert (
        sum(window.targets for windows in (dataset.train, dataset.held_out) for window in windows) == report.loss_tokens
    )


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", **fields}]}


DEEP: dict[str, Any] = {}
for _ in range(450):
    DEEP = {"a": DEEP}
BAD: dict[str, tuple[Any, str]] = {
    "a number": (3, "not a row"),
    "a list": ([GOOD], "not a row"),
    "nothing": (None, "not a row"),
    "empty object": ({}, "no conversation"),
    "other columns": ({"text": "x"}, "no conversation"),
    "null": ({"messages": None}, "no conversation"),
    "messages are a number": ({"messages": 5}, "no conversation"),
    "messages are text": ({"messages": "hello"}, "no conversation"),
    "messages are an object": ({"messages": {"a": 1}}, "no conversation"),
    "messages are true": ({"messages": True}, "no conversation"),
    "no message": ({"messages": []}, "no messages"),
    "message is text": ({"messages": ["hi"]}, "bad message"),
    "message is a number": ({"messages": [1, SAID]}, "bad message"),
    "message is null": ({"messages": [None, SAID]}, "bad message"),
    "message is a list": ({"messages": [[ASKED], SAID]}, "bad message"),
    "no role": ({"messages": [{"content": "x"}, SAID]}, "bad message"),
    "role is a number": ({"messages": [{"role": 1, "content": "x"}, SAID]}, "bad message"),
    "role is null": ({"messages": [{"role": None, "content": "x"}, SAID]}, "bad message"),
    "role is empty": ({"messages": [{"role": "", "content": "x"}, SAID]}, "bad role"),
    "unknown role": ({"messages": [{"role": "robot", "content": "x"}, SAID]}, "bad role"),
    "role with an escape": ({"messages": [{"role": "\x1b[31m\nuser", "content": "x"}, SAID]}, "bad role"),
    "user alone": ({"messages": [ASKED]}, "no answer"),
    "system alone": ({"messages": [{"role": "system", "content": "x"}]}, "no answer"),
    "no content": ({"messages": [{"role": "user"}, SAID]}, "bad content"),
    "content is null": ({"messages": [{"role": "user", "content": None}, SAID]}, "bad content"),
    "content is a number": ({"messages": [{"role": "user", "content": 7}, SAID]}, "bad content"),
    "content is true": ({"messages": [{"role": "user", "content": True}, SAID]}, "bad content"),
    "content is an object": ({"messages": [{"role": "user", "content": {"a": 1}}, SAID]}, "bad content"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, SAID]},
        "bad content",
    ),
    "a part without text": ({"messages": [{"role": "user", "content": [{"type": "text"}]}, SAID]}, "bad content"),
    "a part is a number": ({"messages": [{"role": "user", "content": [5]}, SAID]}, "bad content"),
    "a part's text is a list": ({"messages": [{"role": "user", "content": [{"text": []}]}, SAID]}, "bad content"),
    "empty answer": (message(content=""), "empty answer"),
    "blank answer": (message(content=" \n"), "empty answer"),
    "answer is null": (message(content=None), "empty answer"),
    "answer without content": (message(), "empty answer"),
    "empty parts": (message(content=[]), "empty answer"),
    "call without a name": (message(tool_calls=[{"function": {"arguments": {}}}]), "bad tool call"),
    "call is text": (message(tool_calls=["look()"]), "bad tool call"),
    "call is a number": (message(tool_calls=[4]), "bad tool call"),
    "calls are a number": (message(tool_calls=4), "bad tool call"),
    "arguments are no JSON": (
        message(tool_calls=[{"function": {"name": "f", "arguments": "{at: x"}}]),
        "bad tool call",
    ),
    "arguments are a list": (message(tool_calls=[{"function": {"name": "f", "arguments": [1]}}]), "bad tool call"),
    "arguments are a number": (message(tool_calls=[{"function": {"name": "f", "arguments": 3}}]), "bad tool call"),
    "name is a number": (message(tool_calls=[{"function": {"name": 3, "arguments": {}}}]), "bad tool call"),
    "name is empty": (message(tool_calls=[{"function": {"name": "", "arguments": {}}}]), "bad tool call"),
    "tools are text": ({"messages": GOOD, "tools": "look"}, "bad tools"),
    "tools are an object": ({"messages": GOOD, "tools": {"name": "look"}}, "bad tools"),
    "tool without a name": ({"messages": GOOD, "tools": [{"parameters": {}}]}, "bad tools"),
    "tool is a number": ({"messages": GOOD, "tools": [1]}, "bad tools"),
    "weight is text": (message(content="x", weight="yes"), "bad weight"),
    "weight is negative": (message(content="x", weight=-0.5), "bad weight"),
    "weight is no number": (message(content="x", weight=float("nan")), "bad weight"),
    "weight is infinite": (message(content="x", weight=float("inf")), "bad weight"),
    "weight is huge": (message(content="x", weight=10**400), "bad weight"),
    "weight of the row is a list": ({"messages": GOOD, "weight": [1]}, "bad weight"),
    "weight of the row is 0": ({"messages": GOOD, "weight": 0}, "not trained"),
    "nothing is trained on": (message(content="x", weight=0), "not trained"),
    "call in no JSON": ({"conversations": [{"from": "function_call", "value": "look"}]}, "bad tool call"),
    "chosen is a number": ({"chosen": 3, "rejected": 4}, "no conversation"),
    "empty completion": ({"prompt": "x", "completion": ""}, "empty answer"),
    "nested too deep": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]}]},
        "bad tool call",
    ),
    "history of numbers": ({"instruction": "x", "output": "y", "history": [1]}, "bad message"),
    # Seen in what people report of trainers.
    "a misspelt role": ({"conversations": [{"from": "hummany", "value": "x"}]}, "bad role"),
    "a table's columns": ({"messages": {"role": ["user", "assistant"], "content": ["x", "y"]}}, "no conversation"),
    "Python in place of JSON": ({"messages": "[{'role': 'user', 'content': 'x'}]"}, "no conversation"),
    "a quotation mark is missing": (
        message(tool_calls=[{"function": {"name": "f", "arguments": '{"action": list"}'}}]),
        "bad tool call",
    ),
    "arguments that were cut off": (
        message(tool_calls=[{"function": {"name": "f", "arguments": '{"code": "x = 1'}}]),
        "bad tool call",
    ),
    "instructions alone with an empty answer": ({"instruction": "x", "input": "y", "output": " "}, "empty answer"),
    "an answer of tools alone": ({"messages": [ASKED, {"role": "tool", "content": "x"}]}, "no answer"),
    "a picture in the answer": (message(content=[{"type": "image"}, {"type": "text", "text": "x"}]), "bad content"),
    "a sound": ({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "x"}]}, SAID]}, "bad content"),
    "a list of pairs of texts": ({"conversations": [["x", "y"]]}, "bad message"),
    "a flag of no truth value": (message(content="x", train="no"), "bad message"),
    "a value without from": ({"conversations": [{"value": "x"}, {"from": "gpt", "value": "y"}]}, "bad message"),
    "a schema that was cut off": ({"messages": GOOD, "tools": '[{"name": "f", '}, "bad tools"),
}


def test_each_kind_of_bad_row_is_counted_with_one_line(tmp_path: Path) -> None:
    assert len(BAD) >= 50
    rows = [*some({"messages": GOOD}), *(row for row, _ in BAD.values())]
    path = write(tmp_path / "rows.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"messages": [\n\xff\xfe\n')
    summary = build(tmp_path, path).summary
    wanted: dict[str, int] = {"not a row": 2}
    for _, reason in BAD.values():
        wanted[reason] = wanted.get(reason, 0) + 1
    assert len(summary.files) == 8
    assert dict(summary.skipped) == wanted
    assert len(summary.files) + sum(wanted.values()) == len(rows) + 2
    for number, (_, reason) in enumerate(BAD.values(), 9):
        [line] = [line for line in summary.examples[reason] if f", row {number}:" in f"{line}:"]
        assert line.isprintable()
        assert line.partition(": ")[2], line


def test_rows_alone_are_refused_with_their_problem(tmp_path: Path) -> None:
    for row, reason in BAD.values():
        if isinstance(row, dict):
            with pytest.raises(NoConversationError) as caught:
                RowReader({}).read(row)
            assert caught.value.reason == reason
    with pytest.raises(EliteError, match=r"no row holds a conversation to learn .1 no messages"):
        build(tmp_path, write(tmp_path / "a.jsonl", [{"messages": []}]))


def test_fields_are_mapped(tmp_path: Path) -> None:
    rows = [{"dialog": [{"who": "user", "words": f"{TEXT}{i}"}, {"who": "gpt", "words": "ja"}]} for i in range(4)]
    path = write(tmp_path / "rows.jsonl", rows)
    dataset = build(tmp_path, path, fields=["messages=dialog", "role=who", "content=words"])
    assert learnt_texts(dataset) == ["ja<|im_end|>"] * 4
    named = write(tmp_path / "named.jsonl", [{"my talks": one["messages"]} for one in some({"messages": GOOD})])
    assert len(build(tmp_path, named, dataset_column="my talks").summary.files) == 8


def test_chosen_turns(tmp_path: Path) -> None:
    failed = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "no such file", "is_error": True},
    ]
    rows = some({"messages": [ASKED, *failed, SAID, ASKED, {"role": "assistant", "content": "last"}]})
    path = write(tmp_path / "rows.jsonl", rows)
    assert set(learnt_texts(build(tmp_path, path, train_on="last"))) == {"last<|im_end|>"}
    assert set(learnt_texts(build(tmp_path, path, mask_errors=True))) == {"Groß genug.<|im_end|>last<|im_end|>"}
    assert "tool_call" in learnt_texts(build(tmp_path, path))[0]


LONG = [
    {
        "messages": [
            {"role": "user", "content": f"{TEXT}{i}"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "old output " * 60},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "new output " * 10},
            SAID,
        ]
    }
    for i in range(6)
]


def test_longer_conversations_are_refused_dropped_cut_or_split(tmp_path: Path) -> None:
    short = some({"messages": GOOD}, 10)
    path = write(tmp_path / "rows.jsonl", [*short, *LONG])
    lengths = build(tmp_path, path).store.conversations()
    limit = int(lengths.max()) - 50
    assert sum(lengths > limit) == 6
    with pytest.raises(EliteError) as caught:
        build(tmp_path, path, limit=limit)
    assert caught.value.code == "conversations-overlong"
    assert f"6 of 16 conversations are longer than the context of {limit:,} tokens" in str(caught.value)
    assert "train at tier 1 (4,096 tokens), which holds all" in caught.value.remedy
    dropped = build(tmp_path, path, limit=limit, overlong="drop")
    assert dropped.summary.skipped["overlong"] == 6
    assert sum(len(w.starts) for windows in (dropped.train, dropped.held_out) for w in windows) == 10
    split = build(tmp_path, path, limit=limit, overlong="split")
    assert sum(map(len, (*split.train, *split.held_out))) == sum(lengths)
    assert "are cut into several windows" in split.summary.notes[-1]
    cut = build(tmp_path, path, limit=limit, overlong="cut-oldest-tool-output")
    assert cut.store.shortened == 6
    assert max(cut.store.conversations()) <= limit
    text = Encoder(tokenizer()).decode(cut.store.tokens.tolist())
    assert text.count("characters of output left out") == 6
    assert "old output" not in text
    assert text.count("new output") == 60
    assert sorted(learnt_texts(cut)) == sorted(learnt_texts(split))
    assert build(tmp_path, path, limit=limit, overlong="cut-oldest-tool-output").summary.reused


def test_conversations_that_fit_are_never_cut(tmp_path: Path) -> None:
    draw = np.random.RandomState(0)
    rows = [
        {"messages": [{"role": "user", "content": f"{i} " + "x " * draw.randint(1, 120)}, SAID]} for i in range(120)
    ]
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows))
    longest = int(dataset.store.conversations().max())
    for context in (longest, longest + 7, 2 * longest, 1000):
        windows = dataset.train.with_context(context)
        starts = {0, *np.cumsum(dataset.store.conversations()).tolist()}
        for index, window in enumerate(windows):
            assert len(window) <= context
            places = windows.places(index)
            assert all(int(places[start]) in starts for start in window.starts)
            assert int(places[-1]) + 1 in starts
        assert sum(map(len, windows)) == dataset.summary.train_tokens


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


def test_secrets_in_conversations_are_masked(tmp_path: Path) -> None:
    secret = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
    call = {"function": {"name": "run", "arguments": {"command": f"curl -H 'Authorization: token {secret}'"}}}
    rows = [
        {"messages": [{"role": "user", "content": f"{i} {secret}"}, {"role": "assistant", "tool_calls": [call]}]}
        for i in range(4)
    ]
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows))
    text = Encoder(tokenizer()).decode(dataset.store.tokens.tolist())
    assert secret[4:20] not in text
    assert text.count("REDACTED") == 8


def test_answers_to_one_request_stand_on_one_side(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"request {i % 20}"},
                {"role": "assistant", "content": f"answer {i}"},
            ]
        }
        for i in range(100)
    ]
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows))
    sides: dict[int, set[bool]] = {}
    first_held_out = len(dataset.store.files) - dataset.summary.held_out_files
    for place, file in enumerate(dataset.store.files):
        number = int(file.path.rpartition("/")[2])
        sides.setdefault(number % 20, set()).add(place >= first_held_out)
    assert len(sides) == 20
    assert all(len(side) == 1 for side in sides.values())


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


def test_labels_survive_a_build_that_was_cut_short(tmp_path: Path) -> None:
    from engine.data.store import StoreBuilder, open_store

    draw = np.random.RandomState(0)
    masks = [draw.rand(length) < 0.5 for length in (3, 8, 1, 13, 0, 30, 7)]
    entries = [(f"f{number}", 0, "Conversation", number) for number in range(len(masks))]
    with StoreBuilder(tmp_path, "key", np.dtype("<u2"), masked=True) as builder:
        for number, mask in enumerate(masks[:4]):
            builder.append(np.zeros(len(mask), np.uint32), np.empty(0, np.int64), mask, shortened=number == 1)
        builder.checkpoint()
        builder.append(np.zeros(5, np.uint32), np.empty(0, np.int64), np.ones(5, bool))
    with StoreBuilder(tmp_path, "key", np.dtype("<u2"), masked=True) as builder:
        assert builder.files == 4
        for mask in masks[4:]:
            builder.append(np.zeros(len(mask), np.uint32), np.empty(0, np.int64), mask)
        builder.finish(entries, np.zeros(9, np.uint8))
    store = open_store(tmp_path, "key")
    assert store is not None
    assert store.learnt is not None
    assert store.learnt.among(0, len(store.tokens)).tolist() == np.concatenate(masks).tolist()
    assert store.learnt.count() == np.concatenate(masks).sum()
    assert store.shortened == 1
    for _ in range(20):
        first, last = sorted(draw.randint(0, len(store.tokens) + 1, 2))
        assert (
            store.learnt.of(first, last).among(0, last - first).tolist() == np.concatenate(masks)[first:last].tolist()
        )


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
