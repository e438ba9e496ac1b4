"""Arrow and Parquet files, read a group of rows at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def without_nothing(value: Any) -> Any:
    """The value without empty fields: a table gives every object of a column the fields of all."""
    if isinstance(value, dict):
        return {key: without_nothing(inner) for key, inner in value.items() if inner is not None}
    return [without_nothing(inner) for inner in value] if isinstance(value, list) else value


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
    return RowGroups(opened.schema_arrow.names, first, lambda index, names: opened.read_row_group(index, columns=names))


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
    return RowGroups(reader.schema.names, first, lambda index, names: batches[index].select(names))
