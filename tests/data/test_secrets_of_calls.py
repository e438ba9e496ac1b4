"""Secrets among the arguments of a call, where the key alone says that a value is one."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.conversations import build, learnt_texts

from engine.cli import main
from engine.data.conversations import RowReader
from engine.data.documents import Edit, conversation_document, edited_conversation
from engine.data.secrets import find_secrets


def value(seed: int, length: int = 22) -> str:
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits, k=length))


def row(arguments: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "request", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "ask the service"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"},
            {"role": "assistant", "content": "It answered."},
        ]
    }


SECRETS = {
    "password": lambda secret: {"user": "bob", "password": secret},
    "token": lambda secret: {"token": secret},
    "header": lambda secret: {"url": "https://api.example.com", "headers": {"X-Api-Key": secret}},
    "environment": lambda secret: {"command": "make deploy", "env": {"DB_PASSWORD": secret, "CI": "1"}},
    "name and value": lambda secret: {"variables": [{"name": "API_TOKEN", "value": secret}]},
    "nested": lambda secret: {"steps": [{"with": {"client_secret": secret}}]},
}


@pytest.mark.parametrize("place", SECRETS)
@pytest.mark.parametrize("written", ["a session", "a row of text arguments"])
def test_a_value_is_masked_by_its_key(tmp_path: Path, place: str, written: str) -> None:
    secrets = [value(seed) for seed in range(5)]
    path = tmp_path / "in.jsonl"
    if written == "a session":
        records = [
            {
                "type": kind,
                "message": {"role": kind, "content": content},
            }
            for number, secret in enumerate(secrets)
            for kind, content in (
                ("user", "ask the service"),
                (
                    "assistant",
                    [{"type": "tool_use", "id": f"c{number}", "name": "request", "input": SECRETS[place](secret)}],
                ),
                ("user", [{"type": "tool_result", "tool_use_id": f"c{number}", "content": "ok"}]),
                ("assistant", [{"type": "text", "text": "It answered."}]),
            )
        ]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        out = tmp_path / "out.jsonl"
        assert main(["sessions", str(path), "--out", str(out)]) == 0
        found = out.read_text()
        assert found.count("REDACTED") == 5
        assert not any(secret in found for secret in secrets)
        return
    path.write_text("".join(json.dumps(row(json.dumps(SECRETS[place](secret)))) + "\n" for secret in secrets))
    dataset = build(tmp_path, path, near_duplicates="keep")
    trained = "".join(learnt_texts(dataset))
    assert trained.count("REDACTED") == trained.count("It answered.") == 5
    assert not any(secret in trained for secret in secrets)


def test_what_is_no_secret_stays() -> None:
    given = {"key": "Enter", "token": "next", "password": "", "path": "src/secret_rules/tokens.py", "max_tokens": 4096}
    conversation = RowReader({}).read(row(given))
    assert find_secrets(conversation_document(conversation).text, "YAML") == []


texts = st.text(st.sampled_from("ab\"' \\\n:é\ud83d"), max_size=6)
arguments = st.recursive(
    texts | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8
).map(lambda found: found if isinstance(found, dict) else {"of": found})


@given(arguments, st.data())
def test_edits_fall_where_they_were_found(given_arguments: dict[str, Any], data: st.DataObject) -> None:
    conversation = RowReader({}).read(row(given_arguments))
    document = conversation_document(conversation)
    assert document.conversation is not None
    plain = document.conversation.texts()
    number = data.draw(st.integers(0, len(plain) - 1))
    # A mark that is nowhere else is found in the text that is searched, and taken out of the one string that holds it.
    marked = [f"a{text}MARK" if place == number else text for place, text in enumerate(plain)]
    document = conversation_document(document.conversation.with_texts(marked))
    start = document.text.index("MARK")
    masked = edited_conversation(document, [Edit(start, start + 4, "X")])
    assert masked.texts() == [f"a{text}X" if place == number else text for place, text in enumerate(plain)]
