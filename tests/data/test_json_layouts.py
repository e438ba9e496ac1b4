"""Layouts of files of JSON that hold the same rows, and such as hold none."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from data.test_rows_of_exports import answer, user
from hypothesis import example, given
from hypothesis import strategies as st

from engine.data import json_arrays
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


_PLAIN = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.recursive(
    _PLAIN | st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('ab"\\é😀', max_size=6), inner, max_size=4),
    max_leaves=10,
)


@example([1.3510798882109864e16], None, False, 20)  # What was read ended with the point.
@given(st.lists(_VALUES, max_size=6), st.sampled_from([None, 1, "\t"]), st.booleans(), st.integers(16, 60))
def test_values_are_read_wherever_a_chunk_ends(values: list[Any], indent: Any, plain: bool, size: int) -> None:
    array = json.dumps(values, indent=indent, ensure_ascii=plain)
    rows = "\n".join(json.dumps(value, indent=indent, ensure_ascii=plain) for value in values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "_CHUNK", size)
        for read, text in ((json_arrays.elements, array), (json_arrays.objects, rows)):
            file = io.BytesIO(text.encode())
            found = list(read(file, 1 << 20))
            assert [value for _, value in found] == values
            for position, value in reversed(found):
                window = json_arrays.JsonWindow(file)
                window.seek(position)
                assert window.value(1 << 20) == value
