"""Layouts of files of JSON that hold the same rows, and such as hold none."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from data.test_rows_of_exports import answer, user

from engine.data.conversations import RowReader
from engine.data.rows import open_data_set
from engine.errors import EliteError

ROWS = [{"messages": [user(f"q{number} ü"), answer("a" * (100_000 - 331 * number))]} for number in range(1, 300, 7)]


def read_all(file: Path) -> list[Any]:
    with contextlib.closing(open_data_set(file, "")) as data:
        return [data.read(row) for row in data.rows()]


@pytest.mark.parametrize("form", ["array", "spread", "wide first", "lines"])
@pytest.mark.parametrize("packed", [False, True])
def test_layouts_of_json_hold_the_same_rows(tmp_path: Path, form: str, packed: bool) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    text = {
        "array": json.dumps(ROWS, ensure_ascii=False),
        "spread": "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "wide first": "\n".join([lines[0].replace('"messages": ', '"messages":\n'), *lines[1:]]),
        "lines": "\ufeff" + "\n".join(lines),
    }[form].encode()
    file = tmp_path / ("rows.json.gz" if packed else "rows.json")
    file.write_bytes(gzip.compress(text) if packed else text)
    assert read_all(file) == [RowReader({}).read(row) for row in ROWS]


def test_rows_in_front_of_a_broken_one_of_an_array(tmp_path: Path) -> None:
    broken = json.dumps(ROWS[:3])[:-1] + ', {"messages": [}, ' + json.dumps(ROWS[3:])[1:]
    (tmp_path / "rows.json").write_text(broken)
    data = open_data_set(tmp_path / "rows.json", "")
    assert len(list(data.rows())) == 3
    assert data.skipped == {"cut off": 1}
    assert "row 4: Expecting value" in data.examples["cut off"][0]


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_within_an_object_is_named(tmp_path: Path, indent: int | None) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"version": "1", "data": ROWS}, indent=indent))
    with pytest.raises(EliteError, match="whose list 'data' holds the rows"):
        read_all(file)
    file.write_text(json.dumps(ROWS[0], indent=indent))
    assert read_all(file) == [RowReader({}).read(ROWS[0])]
