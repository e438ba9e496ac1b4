"""Rows in which a value is of another kind: each is a conversation, or says on one line why it is none."""

from __future__ import annotations

from typing import Any

import pytest
from support.conversations import FORMS, SAID
from support.odd_values import ODD, with_one_changed

from engine.data.conversations import RowReader
from engine.data.messages import NoConversationError

EVERYTHING = {
    "messages": [
        {"role": "user", "content": "q", "name": "n", "weight": 1},
        {**SAID, "reasoning_content": "r", "train": True, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "tool", "content": [{"type": "text", "text": "x"}], "tool_call_id": "c", "is_error": True},
        {"role": "function_call", "content": '{"name": "f", "arguments": {"a": ["b"]}}'},
        SAID,
    ],
    "tools": '[{"name": "f"}]',
    "system": "s",
}


def described(reader: RowReader, row: dict[str, Any]) -> str:
    try:
        conversation = reader.read(row)
    except NoConversationError as error:
        return f"{error.reason}: {error}"
    return f"{len(conversation.messages)} messages"


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("form", [*FORMS, "everything"])
def test_a_value_of_another_kind_is_read_or_named(form: str, odd: Any) -> None:
    row = EVERYTHING if form == "everything" else FORMS[form][0]
    for reader in (RowReader({}), RowReader({}, train_on="last", mask_errors=True, pairs=False)):
        for changed in with_one_changed(row, odd):
            assert described(reader, changed).count("\n") == 0
            assert reader.form(list(changed), changed) is not None
