"""Data sets on disk as documents: JSON Lines and arrays, Parquet, Arrow, and folders saved by Hugging Face datasets.

Each row is a document. Files are opened as they lie: nothing is downloaded, no loading script is run, no pickle read.
A first pass finds where each row lies; then they are read one by one, in order as far as can be.
"""

from __future__ import annotations

import bisect
import contextlib
import gzip
import itertools
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar, cast

from engine import errors
from engine.data.collect import EXAMPLES, SourceFile
from engine.data.json_arrays import element_at, elements, is_array
from engine.data.languages import language_by_name

COLUMN_GROUPS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "code"),
    ("instruction", "input", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("problem", "solution"),
)
"Columns of which each holds a part of the text; they are joined, and named with a + between them."
TEXT_COLUMNS = ("text", "content", "code", "body", "prompt_completion", "whole_func_string", "func_code_string")
"Tried in this order where none is named. The first row decides for its data set: another column may hold answers."
PATH_COLUMNS = ("path", "file_path", "max_stars_repo_path", "filename", "file_name", "func_path")
_LONGEST_LINE = 64 << 20
"Bytes of one line of JSON; longer ones are left out."
_COMPRESSION = 3
"Source text compresses to about a third; an estimate."
_ROWS_AT_ONCE = 256
_NOTES = ("state.json", "dataset_info.json", "dataset_dict.json")
"What a saved data set says about itself."


@dataclass(frozen=True, slots=True)
class Row(SourceFile):
    """One row of a data set. `repository` is the data set, `path` its file and number, or the path that it names."""

    alone: ClassVar[bool] = True
    part: int = 0
    "Which file of the data set."
    position: int = 0
    "Byte at which its line begins, or its number."


class DataSet(ABC):
    """The rows of one data set.

    Attributes:
        column: That holds the text; "" until the first row is read, where none is named.
        found: Whether a row has text.
        total: Rows that were met; each is yielded or counted in `skipped`.
        skipped: Reason (a key of engine.data.filters.REASONS) → rows that are left out.
        examples: Reason → the first few of them.
    """

    def __init__(self, path: Path, files: Sequence[Path], column: str) -> None:
        self.path, self.files, self.column = path, files, column
        self._named = bool(column)
        self.found = False
        self.total = 0
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row that has text, in order; `skipped` counts the others under a reason. Once."""

    @abstractmethod
    def text(self, row: Row) -> str | None:
        """A row's text; None where it is no longer there."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of open files."""

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Makes what a damaged file brings about one kind of error."""
        try:
            yield
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise errors.DATA_SET_UNUSABLE(path=self.path, problem=error) from error

    def _taken(self, part: int, number: int, position: int, values: Mapping[str, Any]) -> Row | None:
        """The row; None, and counted, where it has no text in the column."""
        text = _text_of(values, self.column)
        if text is None:
            elsewhere = not self._named and any(isinstance(values.get(name), str) for name in TEXT_COLUMNS)
            given = any(values.get(name) is not None for name in _parts(self.column))
            self._skip("another column" if elsewhere else "not text" if given else "no text", part, number)
            return None
        self.found = True
        self.total += 1
        return self._row(part, number, position, values, len(text.encode("utf-8", "replace")))

    def _skip(self, reason: str, part: int, number: int, rows: int = 1) -> None:
        """Counts rows, from one with a number on, that are left out."""
        if not rows:
            return
        self.total += rows
        self.skipped[reason] += rows
        named = self.examples.setdefault(reason, [])
        if len(named) < EXAMPLES:
            named.append(f"{self.files[part]}, row {number + 1:,}")

    def _row(self, part: int, number: int, position: int, values: Mapping[str, Any], size: int) -> Row:
        named = next((values[name] for name in PATH_COLUMNS if isinstance(values.get(name), str)), "")
        place = PurePosixPath(self.files[part].name) / f"{number:08d}"
        path = place / named.lstrip("/") if named else place
        language = language_by_name(path.name) if named else None
        return Row(self.path, str(path), language or "Text", size, part, position)


def open_data_set(given: Path, column: str) -> DataSet:
    """The data set at a path.

    Args:
        given: A .jsonl, .json, .ndjson (or .gz of these), .parquet or .arrow file, or a folder of such.
        column: Of the text, or several with + between them; "" for the first known one.

    Raises:
        EliteError: DATA_SET_UNUSABLE, DATA_SET_COLUMN or DATA_SET_LIBRARY.
    """
    path = Path(os.path.realpath(given.expanduser()))
    if not path.exists():
        raise errors.DATA_SET_UNUSABLE(path=given, problem="it does not exist")
    files = sorted(_data_files(path)) if path.is_dir() else [path]
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1 or "" in kinds:
        problem = "it holds no .jsonl, .parquet or .arrow file" if not files else "its files are of several kinds"
        raise errors.DATA_SET_UNUSABLE(path=given, problem="its kind is not known" if kinds == {""} else problem)
    return (JsonLines if kinds == {"json"} else Table)(path, files, column)


def estimate_text_bytes(given: Path) -> int:
    """About how many bytes of text a data set holds, from the sizes of its files.

    Raises:
        EliteError: as open_data_set.
    """
    files = open_data_set(given, "").files
    return sum(file.stat().st_size * (_COMPRESSION if file.suffix in (".gz", ".parquet") else 1) for file in files)


def _data_files(folder: Path) -> Iterator[Path]:
    """Files with rows below a folder; links are not followed. Of a saved data set only what its state names."""
    for here, folders, names in os.walk(folder):
        folders.sort()
        listed = _saved_files(Path(here))
        for name in sorted(names if listed is None else listed):
            file = Path(here) / name
            if _kind(file) and not file.is_symlink() and file.is_file():
                yield file


def _saved_files(folder: Path) -> list[str] | None:
    """The files that `save_to_disk` wrote into a folder, of which others may be caches; None if it is not of it."""
    try:
        state = json.loads((folder / "state.json").read_bytes())
        return [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _kind(file: Path) -> str:
    name = file.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson", ".json")) and name not in _NOTES:
        return "json"
    return "table" if file.suffix in (".parquet", ".arrow") else ""


def _known_column(names: Collection[str]) -> str:
    """The column or joined columns that hold the text of a row with these names; "" for none that is known."""
    group = next(("+".join(group) for group in COLUMN_GROUPS if set(group) <= set(names)), "")
    plain = next((name for name in TEXT_COLUMNS if name in names), "")
    # "text" is the whole where there are parts of it too; "code" may be an answer alone.
    return plain if plain == TEXT_COLUMNS[0] or not group else group


def _parts(column: str) -> list[str]:
    return column.split("+")


def _text_of(values: Mapping[str, Any], column: str) -> str | None:
    """A row's text; None where a part of it is missing or no text."""
    if isinstance(values.get(column), str):
        return str(values[column])
    parts = [values.get(name) for name in _parts(column)]
    # Alpaca's "input" is often empty.
    texts = [part for part in parts if isinstance(part, str) and part]
    return "\n".join(texts) if len(parts) > 1 and all(isinstance(part, str) for part in parts) else None


def _column_of(names: Sequence[str], wanted: str, path: Path) -> str:
    column = wanted or _known_column(names)
    if column not in names and not set(_parts(column)) <= set(names):
        shown = ", ".join(sorted(names)[:12])
        raise errors.DATA_SET_COLUMN(path=path, column=wanted or "text, content or code", columns=shown)
    return column


# --- JSON -------------------------------------------------------------------------------------------------


class JsonLines(DataSet):
    """One JSON object a line, or an array of them.

    Compressed files are read from their start again, so they are read in order.
    """

    def __init__(self, path: Path, files: Sequence[Path], column: str) -> None:
        super().__init__(path, files, column)
        self._open: tuple[int, BinaryIO] | None = None
        self._arrays: set[int] = set()
        "Files that are an array of rows."

    def rows(self) -> Iterator[Row]:
        """See DataSet."""
        first: dict[str, Any] | None = None
        for part, file in enumerate(self.files):
            with self._reading(), _opened(file) as opened:
                if file.name.removesuffix(".gz").endswith(".json") and is_array(opened):
                    self._arrays.add(part)
                for number, position, values in self._objects(opened, part):
                    first = values if first is None else first
                    self.column = self.column or _known_column(values)
                    if row := self._taken(part, number, position, values):
                        yield row
        if first is None:
            raise errors.DATA_SET_UNUSABLE(path=self.path, problem="no line or element of it is a JSON object")
        if not self.found:
            column = _column_of(list(first), self.column, self.path)
            raise errors.DATA_SET_UNUSABLE(path=self.path, problem=f"no row holds text in its column {column}")

    def _objects(self, file: BinaryIO, part: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Number, first byte and values of each row of a file that is a JSON object; the others are counted."""
        number = -1
        if part in self._arrays:
            try:
                for number, (position, values) in enumerate(elements(file, _LONGEST_LINE)):
                    if isinstance(values, dict):
                        yield number, position, values
                    else:
                        self._skip("not a row", part, number)
            except ValueError:
                # Where an array is broken nothing tells where its next row begins.
                self._skip("cut off", part, number + 1)
            return
        for number, (position, line) in enumerate(_lines(file)):
            values = None if line is None else _object(line)
            if values is not None:
                yield number, position, values
            elif line is None or line.strip():
                self._skip("too large" if line is None else "not a row", part, number)

    def text(self, row: Row) -> str | None:
        """See DataSet."""
        try:
            if self._open is None or self._open[0] != row.part:
                self.close()
                self._open = row.part, _opened(self.files[row.part])
            file = self._open[1]
            if row.part in self._arrays:
                values = element_at(file, row.position, _LONGEST_LINE)
            else:
                file.seek(row.position)
                values = _object(file.readline(_LONGEST_LINE))
        except (OSError, EOFError, ValueError, zlib.error):
            return None
        return _text_of(values, self.column) if isinstance(values, dict) else None

    def close(self) -> None:
        """See DataSet."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Where each line begins, and the line; None for one longer than _LONGEST_LINE."""
    position = 0
    while line := file.readline(_LONGEST_LINE):
        begin, position = position, position + len(line)
        whole = line.endswith(b"\n") or len(line) < _LONGEST_LINE
        yield begin, line if whole else None
        while not whole and (line := file.readline(_LONGEST_LINE)):
            position += len(line)
            whole = line.endswith(b"\n")


def _opened(file: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


# --- Arrow and Parquet -------------------------------------------------------------------------------------


class Table(DataSet):
    """Columns in Arrow's or Parquet's form, read through pyarrow a group of rows at a time."""

    def __init__(self, path: Path, files: Sequence[Path], column: str) -> None:
        super().__init__(path, files, column)
        try:
            import pyarrow  # noqa: F401 - an optional dependency: asked for before any work is done
        except ImportError:
            raise errors.DATA_SET_LIBRARY(path=path) from None
        self._part: tuple[int, _Groups] | None = None
        self._group: tuple[int, int, Any] | None = None

    def rows(self) -> Iterator[Row]:
        """See DataSet."""
        names: dict[str, None] = {}
        for part in range(len(self.files)):
            with self._reading():
                groups = self._groups(part)
                names |= dict.fromkeys(groups.names)
                self.column = self.column or _known_column(groups.names)
                columns = [self.column] if self.column in groups.names else _parts(self.column)
                if not set(columns) <= set(groups.names):
                    elsewhere = not self._named and not set(TEXT_COLUMNS).isdisjoint(groups.names)
                    self._skip("another column" if elsewhere else "no text", part, 0, groups.first[-1])
                    continue
                wanted = [*columns, *(name for name in PATH_COLUMNS if name in groups.names)]
                number = 0
                for index in range(len(groups.first) - 1):
                    table = groups.read(index, wanted)
                    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
                        for values in table.slice(start, _ROWS_AT_ONCE).to_pylist():
                            if row := self._taken(part, number, number, values):
                                yield row
                            number += 1
        if not self.found:
            column = _column_of(list(names), self.column, self.path)
            raise errors.DATA_SET_UNUSABLE(path=self.path, problem=f"no row holds text in its column {column}")

    def text(self, row: Row) -> str | None:
        """See DataSet."""
        try:
            groups = self._groups(row.part)
            index = bisect.bisect_right(groups.first, row.position) - 1
            if self._group is None or self._group[:2] != (row.part, index):
                columns = [self.column] if self.column in groups.names else _parts(self.column)
                self._group = row.part, index, groups.read(index, columns)
            table = self._group[2].slice(row.position - groups.first[index], 1)
            return _text_of(table.to_pylist()[0], self.column)
        except (OSError, ValueError, IndexError, KeyError):
            return None

    def _groups(self, part: int) -> _Groups:
        if self._part is None or self._part[0] != part:
            file = self.files[part]
            self._part = part, _parquet(file) if file.suffix == ".parquet" else _arrow(file)
        return self._part[1]

    def close(self) -> None:
        """See DataSet."""
        self._part = self._group = None


@dataclass(frozen=True)
class _Groups:
    """One file's rows in groups that can be read alone."""

    names: list[str]
    "Of the columns."
    first: list[int]
    "Number of each group's first row, and of all rows at the end."
    read: Callable[[int, list[str]], Any]
    "The columns of one group, as a table."


def _parquet(file: Path) -> _Groups:
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(file)
    counts = [opened.metadata.row_group(index).num_rows for index in range(opened.num_row_groups)]
    first = [0, *itertools.accumulate(counts)]
    return _Groups(opened.schema_arrow.names, first, lambda index, names: opened.read_row_group(index, columns=names))


def _arrow(file: Path) -> _Groups:
    import pyarrow

    source = pyarrow.memory_map(str(file))
    try:
        reader = pyarrow.ipc.open_stream(source)
        batches = list(reader)  # views of the mapped file
    except pyarrow.ArrowInvalid:
        opened = pyarrow.ipc.open_file(source)
        reader, batches = opened, [opened.get_batch(index) for index in range(opened.num_record_batches)]
    first = [0, *itertools.accumulate(batch.num_rows for batch in batches)]
    return _Groups(reader.schema.names, first, lambda index, names: batches[index].select(names))
