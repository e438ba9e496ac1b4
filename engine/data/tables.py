"""Arrow and Parquet files, read a group of rows at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any


def row_values(table: Any) -> list[dict[str, Any]]:
    """The rows of a table as JSON would hold them.

    Fields without a value are left out, since a table gives every object of a column the fields of all. A map is an
    object, a decimal a number, bytes the UTF-8 text that they hold, a date text. Other bytes stay.

    Raises:
        ValueError: Python has no such date, or a map's keys are lists or objects.
    """
    try:
        rows: list[dict[str, Any]] = _as_json(table.to_pylist(maps_as_pydicts="lossy"))
    except (OverflowError, TypeError) as error:
        raise ValueError(f"a value of it cannot be written as JSON ({error})") from None
    return rows


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {_as_json(key): _as_json(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_as_json(inner) for inner in value]
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    return str(value) if isinstance(value, timedelta) else value


@dataclass(frozen=True)
class RowGroups:
    """One file's rows in groups that can be read alone."""

    names: list[str]
    "Of the columns."
    first: list[int]
    "Number of each group's first row, and of all rows at the end."
    read: Callable[[int, list[str]], Any]
    "The columns of one group, as a table."


def parquet_groups(file: Path) -> RowGroups:
    """The row groups of a Parquet file."""
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(file)
    counts = [opened.metadata.row_group(index).num_rows for index in range(opened.num_row_groups)]
    first = [0, *itertools.accumulate(counts)]
    names = _distinct(opened.schema_arrow.names)
    return RowGroups(names, first, lambda index, names: opened.read_row_group(index, columns=names))


def arrow_groups(file: Path) -> RowGroups:
    """The record batches of an Arrow file or stream, which is mapped into memory."""
    import pyarrow

    source = pyarrow.memory_map(str(file))
    try:
        reader = pyarrow.ipc.open_stream(source)
        batches = list(reader)  # views of the mapped file
    except pyarrow.ArrowInvalid:
        opened = pyarrow.ipc.open_file(source)
        reader, batches = opened, [opened.get_batch(index) for index in range(opened.num_record_batches)]
    first = [0, *itertools.accumulate(batch.num_rows for batch in batches)]
    return RowGroups(_distinct(reader.schema.names), first, lambda index, names: batches[index].select(names))


def _distinct(names: Sequence[str]) -> list[str]:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"several of its columns are called {twice[0]!r}")
    return list(names)
