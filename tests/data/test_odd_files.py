"""Files of rows as other programs leave them: each row is read or counted with one line, or the file is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from engine.data.conversations import Conversation
from engine.data.rows import open_data_set
from engine.errors import EliteError

ROWS = [
    {"messages": [{"role": "user", "content": f"{n} 日本"}, {"role": "assistant", "content": f"ja {n}"}]}
    for n in range(6)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
WHOLE = json.dumps(ROWS)
BIG = "9" * 5000


def read(path: Path) -> tuple[list[Conversation], dict[str, int], list[str]]:
    """Conversations, counts, and the lines about the rows that are left out."""
    data_set = open_data_set(path, "")
    rows = list(data_set.rows())
    found = [data_set.read(row) for row in rows]
    data_set.close()
    assert len(rows) + sum(data_set.skipped.values()) == data_set.total
    lines = [line for lines in data_set.examples.values() for line in lines]
    assert all(line.isprintable() and line.partition(": ")[2] for line in lines)
    return [one for one in found if isinstance(one, Conversation)], dict(data_set.skipped), lines


def refusal(path: Path) -> str:
    with pytest.raises(EliteError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


READ: dict[str, tuple[str, bytes, dict[str, int]]] = {
    "a mark of UTF-8": ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode(), {}),
    "marks of joined files": ("a.jsonl", b"\xef\xbb\xbf" + LINES[:-1].encode() + b"\n\xef\xbb\xbf\n", {"not a row": 1}),
    "Windows' ends of lines": ("a.jsonl", LINES.replace("\n", "\r\n").encode(), {}),
    "members of gzip": ("a.jsonl.gz", gzip.compress(LINES[:300].encode()) + gzip.compress(LINES[300:].encode()), {}),
    "comments": ("a.jsonl", f"// rows\n{LINES}# end\n".encode(), {"not a row": 2}),
    "zeros of a crash": ("a.jsonl", LINES.encode() + b"\0" * 5000, {"not a row": 1}),
    "a line of Latin-1": ("a.jsonl", LINES.encode() + b'{"messages": "\xfc"}\n', {"not a row": 1}),
    "names twice": ("a.jsonl", LINES.replace('{"messages"', '{"messages": 5, "messages"').encode(), {}),
    "brackets": ("a.jsonl", (LINES + "[" * 99999 + "]" * 99999).encode(), {"not a row": 1}),
    "a long number": ("a.jsonl", f'{LINES}{{"id": {BIG}, "messages": []}}'.encode(), {"not a row": 1}),
    "a null at first": ("a.jsonl", f'{{"messages": null}}\n{LINES}'.encode(), {"no conversation": 1}),
    "a number at first": ("a.jsonl", f'{{"messages": 5}}\n{LINES}'.encode(), {"no conversation": 1}),
    "a comma at the end": ("a.json", f"{WHOLE[:-1]},]".encode(), {}),
    "a text behind an array": ("a.json", f"{WHOLE}\nend".encode(), {"cut off": 1}),
    "an array behind an array": ("a.json", WHOLE.encode() * 2, {"cut off": 1}),
    "Latin-1 in an array": ("a.json", WHOLE[:-1].encode() + b', {"messages": "\xfc"}]', {"cut off": 1}),
    "half a character in an array": ("a.json", b'[{"id": "\xed\xa0\x80", ' + WHOLE[2:].encode(), {}),
    "objects of many lines": ("a.jsonl", "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(), {}),
    "values in an array": ("a.json", f'[1, "x", null, {WHOLE[1:]}'.encode(), {"not a row": 3}),
}


@pytest.mark.parametrize("kind", READ)
def test_rows_are_read_or_counted(tmp_path: Path, kind: str) -> None:
    name, content, counts = READ[kind]
    path = tmp_path / name
    path.write_bytes(content)
    conversations, skipped, _ = read(path)
    assert [one.answers() for one in conversations] == [f"ja {n}" for n in range(6)]
    assert skipped == counts


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "UTF-16": ("a.jsonl", LINES.encode("utf-16"), "it is UTF-16, and JSON is UTF-8"),
    "UTF-16 in the other order": ("a.jsonl", b"\xfe\xff" + LINES.encode("utf-16-be"), "it is UTF-16"),
    "UTF-16 without a mark": ("a.json", WHOLE.encode("utf-16-le"), "it is UTF-16-LE"),
    "UTF-32": ("a.jsonl", LINES.encode("utf-32"), "it is UTF-32"),
    "Latin-1": ("a.jsonl", b'{"a": "\xfc"}\n' * 3, "row 1: its byte 8 is no UTF-8"),
    "old Macintosh's ends of lines": ("a.jsonl", LINES.replace("\n", "\r").encode(), "row 1: Extra data at its"),
    "commas behind lines": ("a.jsonl", LINES.replace("\n", ",\n").encode(), "row 1: Extra data"),
    "an array": ("a.jsonl", WHOLE.encode(), "row 1: it is a list, no object; name an array .json"),
    "an array in an array": ("a.json", f"[{WHOLE}]".encode(), "row 1: it is a list, no object"),
    "Python": ("a.jsonl", f"{ROWS[0]!r}\n".encode(), "row 1: Expecting property name enclosed in double quotes"),
    "nothing": ("a.jsonl", b"", "it holds no row"),
    "gzip without its end": ("a.jsonl.gz", gzip.compress(LINES.encode())[:-9], "ended before"),
    "gzip that is none": ("a.jsonl.gz", LINES.encode(), "not all of it was written by gzip"),
    "gzip and more": ("a.jsonl.gz", gzip.compress(LINES.encode()) + b"more", "not all of it was written by gzip"),
    "a table cut off": ("a.parquet", b"PAR1" + b"\0" * 99, "arquet"),
    "a table of zeros": ("a.arrow", b"\0" * 99, "a.arrow"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, kind: str) -> None:
    name, content, problem = REFUSED[kind]
    path = tmp_path / name
    path.write_bytes(content)
    assert problem in refusal(path)


def write(path: Path, table: pyarrow.Table) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return path
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


MESSAGES = [row["messages"] for row in ROWS]
AS_JSON = [json.dumps(messages) for messages in MESSAGES]
LARGE = pyarrow.struct([("role", pyarrow.large_string()), ("content", pyarrow.large_string())])
COLUMNS: dict[str, Callable[[], pyarrow.Array]] = {
    "lists of objects": lambda: pyarrow.array(MESSAGES),
    "large lists": lambda: pyarrow.array(MESSAGES, pyarrow.large_list(LARGE)),
    "maps": lambda: pyarrow.array(
        [[list(message.items()) for message in messages] for messages in MESSAGES],
        pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string())),
    ),
    "bytes as content": lambda: pyarrow.array(
        [[{**message, "content": message["content"].encode()} for message in messages] for messages in MESSAGES]
    ),
    "JSON": lambda: pyarrow.array(AS_JSON),
    "large JSON": lambda: pyarrow.array(AS_JSON, pyarrow.large_string()),
    "bytes of JSON": lambda: pyarrow.array([text.encode() for text in AS_JSON]),
    "a dictionary of JSON": lambda: pyarrow.array(AS_JSON).dictionary_encode(),
}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("column", COLUMNS)
def test_columns_of_any_type_that_holds_messages(tmp_path: Path, column: str, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", pyarrow.table({"messages": COLUMNS[column]()}))
    conversations, skipped, _ = read(path)
    assert [list(one.messages) for one in conversations] == MESSAGES
    assert skipped == {}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),  # noqa: DTZ001 - as tables hold it
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(hours=25), "1 day, 1:00:00"),
        (Decimal("1.50"), 1.5),
        (Decimal(7), 7),
        (b"text", "text"),
        (b"\xff", None),
        (float("nan"), None),
        (float("inf"), None),
    ],
)
def test_arguments_that_json_does_not_know(tmp_path: Path, value: Any, told: Any, kind: str) -> None:
    call = {"function": {"name": "look", "arguments": {"at": value}}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": [call]}]
    tools = [{"name": "look", "since": value}]
    both = pyarrow.table({"messages": [messages] * 2, "tools": [None, tools]})
    path = write(tmp_path / f"a.{kind}", both)
    if told is None:
        assert "2 bad message; the first" in refusal(path)
        assert "row 1: a value of it is no JSON" in refusal(path)
        return
    conversations, _, _ = read(path)
    [found] = conversations[0].messages[1]["tool_calls"]
    assert found["function"]["arguments"] == {"at": told}
    json.dumps(conversations[1].tools)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_weights_of_any_number_type(tmp_path: Path, kind: str) -> None:
    for column in (pyarrow.array([Decimal("0.50")] * 6), pyarrow.array([0.5] * 6, pyarrow.float32())):
        path = write(tmp_path / f"a.{kind}", pyarrow.table({"messages": MESSAGES, "weight": column}))
        assert {one.weights for one in read(path)[0]} == {(0.0, 0.5)}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables_without_a_row_to_read_say_why(tmp_path: Path, kind: str) -> None:
    twice = pyarrow.Table.from_arrays([pyarrow.array(MESSAGES), pyarrow.array(AS_JSON)], names=["messages"] * 2)
    apart = [{"role": ["user", "assistant"], "content": ["x", "y"]}] * 6
    made = {
        "it holds no row": pyarrow.table({"messages": pyarrow.array([], pyarrow.string())}),
        "several of its columns are called 'messages'": twice,
        "row 1: its messages are no list, but an object": pyarrow.table({"messages": apart}),
    }
    for number, (problem, table) in enumerate(made.items()):
        assert problem in refusal(write(tmp_path / f"{number}.{kind}", table))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "values",
    [
        pyarrow.array([10**8], pyarrow.date32()),
        pyarrow.array([10**13], pyarrow.timestamp("s")),
        pyarrow.array([[([1], "x")]], pyarrow.map_(pyarrow.list_(pyarrow.int32()), pyarrow.string())),
    ],
)
def test_values_that_python_cannot_hold_say_why(tmp_path: Path, values: pyarrow.Array, kind: str) -> None:
    path = write(tmp_path / f"a.{kind}", pyarrow.table({"messages": MESSAGES[:1], "tools": values}))
    assert "a value of it cannot be written as JSON" in refusal(path)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", BIG])
def test_arguments_in_which_a_number_is_none(tmp_path: Path, number: str) -> None:
    path = tmp_path / "a.jsonl"
    call = f'{{"function": {{"name": "f", "arguments": {{"a": [{number}]}}}}}}'
    asked = '{"role": "user", "content": "q"}'
    path.write_text(f'{LINES}{{"messages": [{asked}, {{"role": "assistant", "tool_calls": [{call}]}}]}}\n')
    conversations, skipped, [line] = read(path)
    assert len(conversations) == 6
    assert sum(skipped.values()) == 1
    assert line.startswith(f"{path}, row 7: ")
