"""Fields beside the words that trainers of text and pictures read: what a row is worth, shows, and calls."""

from __future__ import annotations

import json
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.conversations import ASKED, GOOD, SAID, build, learnt_texts, write

from engine.data.conversations import RowReader
from engine.data.messages import NoConversationError


def part(kind: str, value: Any, name: str = "value") -> dict[str, Any]:
    return {"type": kind, name: value}


def test_parts_name_their_text_in_two_ways() -> None:
    call = part("tool_call", json.dumps({"name": "look", "arguments": {"at": "x"}}))
    messages = [
        {"role": "user", "content": [part("text", "a"), part("text", "b", "text")]},
        {"role": "assistant", "content": [part("reasoning", "why"), part("text", "c"), call, call]},
        {"role": "tool", "content": [part("text", "r")]},
        SAID,
    ]
    read = RowReader({}).read({"messages": messages}).messages
    assert [message["content"] for message in read[:3]] == ["ab", "c", "r"]
    assert read[1]["reasoning_content"] == "why"
    assert [call["function"] for call in read[1]["tool_calls"]] == [{"name": "look", "arguments": {"at": "x"}}] * 2


@pytest.mark.parametrize(
    ("row", "reason", "problem"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, SAID]}, "bad content", "a part without text"),
        ({"messages": [{"role": "user", "content": [part("image", "x")]}, SAID]}, "bad content", "is no text"),
        ({"messages": [{"role": "user", "content": [part("tool_call", "{}")]}, SAID]}, "bad content", "call of a tool"),
        (
            {"messages": [ASKED, {"role": "assistant", "content": [part("tool_call", "?")]}]},
            "bad tool call",
            "names no",
        ),
        ({"messages": GOOD, "images": ["a.png"]}, "bad content", "it has images"),
        ({"conversations": [{"from": "human", "value": "<video>?"}, SAID], "videos": "v"}, "bad content", "has videos"),
        ({"messages": GOOD, "label": False}, "not trained", "its label is false"),
        ({"prompt": "x", "completion": "y", "label": False}, "not trained", "its label is false"),
        ({"messages": [ASKED, {**SAID, "loss_weight": 0.0}]}, "not trained", "none of its answers"),
        ({"messages": [ASKED, {**SAID, "loss_weight": "much"}]}, "bad weight", "weight of message 2"),
    ],
)
def test_what_text_alone_would_tell_wrongly_is_refused(row: dict[str, Any], reason: str, problem: str) -> None:
    with pytest.raises(NoConversationError, match=problem) as caught:
        RowReader({}).read(row)
    assert caught.value.reason == reason


def test_fields_that_say_nothing_change_nothing() -> None:
    plain = RowReader({}).read({"messages": GOOD})
    for more in ({"label": True}, {"label": None}, {"label": 0}, {"images": []}, {"audio": None}, {"image": ""}):
        assert RowReader({}).read({"messages": GOOD, **more}) == plain
    assert RowReader({"label": "is_good"}).read({"messages": GOOD, "label": False}) == plain


def test_the_weight_of_a_turn_under_its_other_name() -> None:
    messages = [{**ASKED, "loss_weight": 0.0}, {**SAID, "loss_weight": 0.5}, ASKED, {**SAID, "loss_weight": 0}]
    read = RowReader({}).read({"messages": messages})
    assert read.learnt == (False, True, False, False)
    assert read.weights == (0.0, 0.5, 0.0, 0.0)


def test_columns_of_a_table_tell_what_its_rows_are_worth(tmp_path: Any) -> None:
    said = [[ASKED, {**SAID, "content": f"a{number}"}] for number in range(6)]
    columns = {
        "messages": said,
        "label": [True, False, None, True, True, True],
        "images": [None, None, ["x.png"], [], None, None],
    }
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    dataset = build(tmp_path, path)
    assert sorted(learnt_texts(dataset)) == [f"a{number}<|im_end|>" for number in (0, 3, 4, 5)]
    assert dataset.summary.skipped == {"not trained": 1, "bad content": 1}


def test_the_chosen_answer_of_messages_that_ask(tmp_path: Any) -> None:
    """An answer earlier in the conversation, which neither side gives, is not trained on."""
    asked = [
        {"from": "human", "value": "H"},
        {"from": "gpt", "value": "Hi"},
    ]
    rows = [
        {
            "conversations": [*asked, {"from": "human", "value": f"Q{number}"}],
            "chosen": {"from": "gpt", "value": f"good {number}"},
            "rejected": {"from": "gpt", "value": f"bad {number}"},
        }
        for number in range(4)
    ]
    dataset = build(tmp_path, write(tmp_path / "rows.jsonl", rows))
    assert sorted(learnt_texts(dataset)) == [f"good {number}<|im_end|>" for number in range(4)]
