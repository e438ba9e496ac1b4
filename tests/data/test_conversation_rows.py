"""Rows of conversations in the forms that trainers know; each bad row is counted with its reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.conversations import ASKED, CALL, FORMS, GOOD, SAID, TEXT, build, learnt_texts, some, tokenizer, write

from engine.data.conversations import RowReader
from engine.data.messages import NoConversationError
from engine.data.report import describe
from engine.errors import EliteError
from engine.tokenization.encoder import Encoder


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


def test_without_a_template_instructions_and_earlier_turns_stand_before_the_request(tmp_path: Path) -> None:
    row = {"instruction": "Say", "input": TEXT, "output": "Groß genug.", "system": "Be brief."}
    rows = some({**row, "history": [["How old?", "Ten."], ["How wide?", "Two."]]})
    plain = tokenizer(template=None)
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows), model=plain, near_duplicates="keep")
    store = dataset.store
    texts = [
        Encoder(plain).decode(store.tokens[start:stop].tolist())
        for start, stop in zip(store.offsets(), store.offsets()[1:], strict=False)
    ]
    assert sorted(texts) == sorted(
        f"Be brief.\nHow old?\nTen.\nHow wide?\nTwo.\n{one['instruction']}\n{one['input']}\nGroß genug.<|endoftext|>"
        for one in rows
    )
    assert set(learnt_texts(dataset, plain)) == {"Groß genug.<|endoftext|>"}
    with pytest.raises(NoConversationError, match="history is no list of pairs"):
        RowReader({}, pairs=False).read({**row, "history": [["alone"]]})
