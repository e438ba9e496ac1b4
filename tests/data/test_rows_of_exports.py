"""Rows as other programs export them: Anthropic's parts of messages, published preference sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.data.conversations import RowReader
from engine.data.messages import NoConversationError
from engine.data.rows import open_data_set


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


BLOCKS = [
    user("Which files?"),
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "I look.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZW5j"},
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "toolu_1", "name": "ls", "input": {"path": ".", "all": True}},
            {"type": "tool_use", "id": "toolu_2", "name": "pwd", "input": {}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "a.py"}]},
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": True},
            {"type": "text", "text": "And?"},
        ],
    },
    answer("One."),
]
TOOL = {"name": "ls", "description": "Lists.", "input_schema": {"type": "object", "properties": {}}}


def test_blocks_are_read_as_the_messages_that_templates_take() -> None:
    read = RowReader({}).read({"messages": BLOCKS, "tools": [TOOL]})
    calls = [
        {"type": "function", "id": "toolu_1", "function": {"name": "ls", "arguments": {"path": ".", "all": True}}},
        {"type": "function", "id": "toolu_2", "function": {"name": "pwd", "arguments": {}}},
    ]
    assert list(read.messages) == [
        user("Which files?"),
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls, "reasoning_content": "I look."},
        {"role": "tool", "content": "a.py", "tool_call_id": "toolu_1"},
        {"role": "tool", "content": "no", "tool_call_id": "toolu_2"},
        user("And?"),
        answer("One."),
    ]
    assert read.learnt == (False, True, False, False, False, True)
    parameters = {"name": "ls", "description": "Lists.", "parameters": {"type": "object", "properties": {}}}
    assert read.tools == ({"type": "function", "function": parameters},)


def test_failed_calls_among_blocks_are_masked() -> None:
    read = RowReader({}, mask_errors=True).read({"messages": BLOCKS})
    assert read.learnt == (False, False, False, False, False, True)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "user", "content": [BLOCKS[1]["content"][3]]}, "message 1 .* holds a call"),
        ({"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}, "message 1 holds a"),
        ({"role": "user", "content": [{"type": "tool_result", "content": 3}]}, "content of message 1 is a number"),
    ],
)
def test_blocks_that_are_no_text_are_refused_by_the_row_s_own_number(message: dict[str, Any], problem: str) -> None:
    with pytest.raises(NoConversationError, match=problem):
        RowReader({}).read({"messages": [message, answer("a")]})


HUMAN = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: more\n\nAssistant:"
ORCA = {"question": "q?", "chosen": "good", "rejected": "bad"}
MESSAGES = {"chosen": [user("q?"), answer("good")], "rejected": [user("q?"), answer("bad")]}
SPOKEN = [user("hi"), answer("yes?"), user("more")]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        # UltraFeedback, binarized
        ({"prompt": "q?", "prompt_id": "1", "messages": MESSAGES["chosen"], "score_chosen": 8.0, **MESSAGES}, None),
        ({"chosen": f"{HUMAN} good", "rejected": f"{HUMAN} bad"}, SPOKEN),  # HH-RLHF
        ({"prompt": HUMAN, "response": " good", "chosen": " good", "rejected": " bad"}, SPOKEN),
        ({"system": "Be brief.", **ORCA}, [{"role": "system", "content": "Be brief."}, user("q?")]),  # Orca
        ({"system": "", "input": "q?", "chosen": "good", "rejected": "bad"}, None),
        ({"instruction": "q?", "input": "x", "chosen": "good", "rejected": "bad"}, [user("q?\n\nx")]),
        ({"conversation": [{"input": "q", "output": "a"}], **MESSAGES}, None),  # Capybara
        ({f"{side}_messages": said for side, said in MESSAGES.items()}, None),
        ({"prompt": "q?", "chosen_response": "good", "rejected_response": "bad"}, None),
        (
            {"conversations": [{"from": "human", "value": "q?"}], "chosen": answer("good"), "rejected": answer("bad")},
            None,
        ),
        ({"question": "other words", **MESSAGES}, None),
    ],
)
def test_published_preferences_keep_their_request(row: dict[str, Any], asked: list[Any] | None) -> None:
    wanted = [user("q?")] if asked is None else asked
    read = RowReader({}, preferences=True).read(row)
    assert read.rejected is not None
    for side, text in ((read, "good"), (read.rejected, "bad")):
        assert [*side.messages[:-1]] == wanted
        assert (side.messages[-1]["role"], side.messages[-1]["content"].strip()) == ("assistant", text)
        assert side.learnt == (*[False] * len(wanted), True)
    if "conversation" not in row:
        alone = RowReader({}).read(row)
        assert ([*alone.messages[:-1]], alone.learnt) == (wanted, read.learnt)


def test_columns_of_the_sides_are_told_in_tables_and_by_their_names(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{f"{side}_messages": said for side, said in MESSAGES.items()}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = open_data_set(tmp_path / "a.parquet", "", RowReader({}, preferences=True))
    [read] = [data.read(row) for row in data.rows()]
    assert read == RowReader({}, preferences=True).read(MESSAGES)
    mapped = {"good": "a", "bad": "b", "prompt": "q?", "chosen": 3}
    assert RowReader({"chosen": "good", "rejected": "bad"}, preferences=True).read(mapped).messages[-1] == answer("a")


def test_turns_of_an_input_and_its_output() -> None:
    turns = [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]
    assert list(RowReader({}).read({"conversation": turns}).messages) == [
        user("a"),
        answer("b"),
        user("c"),
        answer("d"),
    ]


def test_a_false_label_names_the_way_out() -> None:
    row = {"prompt": "x", "completion": "y", "label": False}
    with pytest.raises(NoConversationError, match=r"data\.fields=\[label=none\]"):
        RowReader({}).read(row)
    assert RowReader({"label": "none"}).read(row).answers() == "y"
