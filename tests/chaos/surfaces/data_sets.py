"""Data sets, notebooks and agents' sessions: odd values in rows, and files that are cut off or are something else."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.chaos.fuzzing import Bench
from tests.chaos.odd import DAMAGES, ODD, damage, mutate, odd, odd_json

_CODE = "def add(a, b):\n    return a + b\n" * 8
_TOOL = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object", "properties": {}}}}
_ROWS: tuple[dict[str, Any], ...] = (
    {"text": _CODE},
    {"content": _CODE, "path": "a/b.py", "size": 5},
    {"prompt": "Add two numbers.", "completion": _CODE},
    {"instruction": "Add", "input": "", "output": _CODE},
    {"messages": [{"role": "user", "content": "Add"}, {"role": "assistant", "content": _CODE, "weight": 1}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Add"}]},
                  {"role": "assistant", "content": None,
                   "tool_calls": [{"id": "1", "type": "function", "function": {"name": "ls", "arguments": "{}"}}]},
                  {"role": "tool", "tool_call_id": "1", "content": "a.py"}, {"role": "assistant", "content": "a.py"}],
     "tools": [_TOOL]},
    {"conversations": [{"from": "human", "value": "Add"}, {"from": "gpt", "value": _CODE}]},
    {"prompt": "Add", "chosen": _CODE, "rejected": "no"},
    {"prompt": [{"role": "user", "content": "Add"}], "chosen": [{"role": "assistant", "content": _CODE}],
     "rejected": [{"role": "assistant", "content": "no"}]},
)  # fmt: skip
_SESSIONS: tuple[tuple[str, list[dict[str, Any]]], ...] = (
    ("claude.jsonl", [
        {"type": "user", "sessionId": "s", "uuid": "1", "parentUuid": None, "timestamp": "2026-01-01T00:00:00Z",
         "cwd": "/x", "message": {"role": "user", "content": "list"}},
        {"type": "assistant", "sessionId": "s", "uuid": "2", "parentUuid": "1", "message": {"id": "m", "content": [
            {"type": "tool_use", "id": "t", "name": "ls", "input": {"path": "."}}]}},
        {"type": "user", "sessionId": "s", "uuid": "3", "parentUuid": "2", "message": {"content": [
            {"type": "tool_result", "tool_use_id": "t", "content": "a.py", "is_error": False}]}},
    ]),
    ("codex.jsonl", [
        {"type": "session_meta", "timestamp": "2026-01-01T00:00:00Z", "payload": {"id": "s", "cwd": "/x"}},
        {"type": "response_item", "payload": {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "list"}]}},
        {"type": "response_item", "payload": {"type": "function_call", "name": "ls", "arguments": "{}", "call_id": "c"}},  # noqa: E501
        {"type": "response_item", "payload": {"type": "function_call_output", "call_id": "c", "output": "a.py"}},
    ]),
    ("swe.traj.json", [{"trajectory": [{"action": "ls", "observation": "a", "thought": "t"}],
                        "info": {"exit_status": "s"},
                        "history": [{"role": "user", "content": "list"}, {"role": "assistant", "content": "ls"}],
                        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}]),
    ("hands.json", [{"id": 1, "source": "user", "action": "message", "args": {"content": "list"}},
                    {"id": 2, "source": "agent", "action": "run", "args": {"command": "ls"}},
                    {"id": 3, "source": "agent", "observation": "run", "content": "a.py", "cause": 2}]),
)  # fmt: skip
_NOTEBOOK: dict[str, Any] = {
    "nbformat": 4, "nbformat_minor": 5,
    "metadata": {"kernelspec": {"name": "python3", "language": "python"}, "language_info": {"name": "python"}},
    "cells": [{"cell_type": "markdown", "source": ["# Title\n", "text"], "metadata": {}},
              {"cell_type": "code", "source": _CODE, "metadata": {}, "outputs": [], "execution_count": 1}],
}  # fmt: skip


def make(bench: Bench, rng: random.Random, folder: Path) -> list[str]:
    """Rows, a notebook in a repository, or sessions."""
    chance = rng.random()
    as_json = rng.choice([[], ["--json"]])
    if chance < 0.65:
        path = _rows(folder, rng)
        _damaged(path, rng)
        model = rng.choice([["--model", str(bench.model)]] * 4 + [[]])
        named = rng.choice(["", "", ":messages", ":text", ":text.x", ":", ":\x1b[31m"])
        return ["data", "--dataset", f"{path}{named}", *model, "--out", str(folder / "data"), *as_json]
    if chance < 0.8:
        repository = folder / "repository"
        repository.mkdir()
        shutil.copy(bench.repository / "locks.py", repository)
        path = repository / rng.choice(["a.ipynb", "b.ipynb"])
        path.write_bytes(odd_json(json.dumps(_NOTEBOOK).encode(), rng))
        _damaged(path, rng)
        return ["data", "--repo", str(repository), "--out", str(folder / "data"), *as_json]
    name, records = rng.choice(_SESSIONS)
    records = [odd(record, rng) if rng.random() < 0.5 else record for record in copy.deepcopy(records)]
    path = folder / "sessions" / name
    path.parent.mkdir()
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        path.write_text(json.dumps(records if name == "hands.json" else records[0]))
    _damaged(path, rng)
    return ["sessions", str(path.parent), *rng.choice([[], ["--out", str(folder / "chosen.jsonl")]]), *as_json]


def _damaged(path: Path, rng: random.Random) -> None:
    chance = rng.random()
    if chance < 0.1:
        damage(path, rng.choice(DAMAGES))
    elif chance < 0.25 and path.is_file():
        path.write_bytes(mutate(path.read_bytes(), rng))


def _rows(folder: Path, rng: random.Random) -> Path:
    kind = rng.choice(["jsonl", "jsonl", "json", "jsonl.gz", "json.gz", "ndjson", "parquet", "arrow"])
    rows: list[Any] = []
    for _ in range(rng.choice([0, 1, 3, 8])):
        row = copy.deepcopy(rng.choice(_ROWS) if rng.random() < 0.2 or not rows else _ROWS[0])
        rows.append(odd(row, rng) if rng.random() < 0.6 else row)
    path = folder / f"rows.{kind}"
    if kind in ("parquet", "arrow"):
        path.write_bytes(_table(rows, kind, rng))
        return path
    if kind.startswith("json.") or kind == "json":
        text = json.dumps(rows if rng.random() < 0.8 else rng.choice(ODD))
    else:
        text = "".join(json.dumps(row) + rng.choice(["\n", "\r\n", "\n\n"]) for row in rows)
    if rng.random() < 0.1:
        text = "\ufeff" + text
    content = text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
    return path


def _table(rows: list[Any], kind: str, rng: random.Random) -> bytes:
    """A table of the rows that Arrow takes; columns that it cannot type are texts."""
    mappings = [row for row in rows if isinstance(row, dict)]
    names = sorted({str(name) for row in mappings for name in row})
    columns: dict[str, pa.Array] = {}
    for name in names:
        values = [row.get(name) for row in mappings]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError, TypeError):
            columns[name] = pa.array([json.dumps(value) for value in values])
    table = pa.table(columns)
    stream = io.BytesIO()
    if kind == "arrow":
        opened = pa.ipc.new_stream if rng.random() < 0.5 else pa.ipc.new_file
        with opened(stream, table.schema) as writer:
            writer.write_table(table)
        return stream.getvalue()
    try:
        pyarrow.parquet.write_table(table, stream)
    except pa.ArrowException:  # a struct without fields
        pyarrow.parquet.write_table(pa.table({"text": [_CODE]}), stream)
    return stream.getvalue()
