"""Data sets on disk as documents: JSON Lines and arrays, Parquet, Arrow, and folders saved by Hugging Face datasets.

Each row is a document: a text, or a conversation. Files are opened as they lie: nothing is downloaded, no loading
script is run, no pickle read.
A first pass finds where each row lies; then they are read one by one, in order as far as can be.
"""

from __future__ import annotations

import bisect
import contextlib
import gzip
import os
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

from engine.data.collect import SourceFile
from engine.data.conversations import LANGUAGE, Conversation, RowReader
from engine.data.json_arrays import JsonWindow, elements, is_array, is_spread, objects
from engine.data.json_lines import Repeated, lines, object_of, problem_of, refuse_other_encodings
from engine.data.languages import language_by_name
from engine.data.messages import NoConversationError, kind_of
from engine.data.row_files import (
    common_kind,
    data_files,
    ending,
    is_list_of_rows,
    may_be_array,
    opened_json,
    refuse_other_contents,
)
from engine.data.tables import RowGroups, arrow_groups, parquet_groups, row_values
from engine.errors import EliteError
from engine.errors.data import DATA_SET_COLUMN, DATA_SET_LIBRARY, DATA_SET_UNUSABLE
from engine.home_folder import expand_home

TEXT_COLUMNS = ("text", "content", "code", "body", "prompt_completion", "whole_func_string", "func_code_string")
"Tried in this order where none is named. The first row decides for its data set: another column may hold answers."
PATH_COLUMNS = ("path", "file_path", "max_stars_repo_path", "filename", "file_name", "func_path")
_LONGEST_LINE = 64 << 20
"Bytes of one line of JSON; longer ones are left out."
_COMPRESSION = 3
"Source text compresses to about a third; an estimate."
_ROWS_AT_ONCE = 256
TEXT = "Text"
"Language of a row that names no path, or one of no known kind."
ROW_EXAMPLES = 50
"Rows named of those that are left out for one reason."


@dataclass(frozen=True, slots=True)
class Row(SourceFile):
    """One row of a data set. `repository` is the data set, `path` its file and number, or the path that it names."""

    alone: ClassVar[bool] = True
    part: int = 0
    "Which file of the data set."
    position: int = 0
    "Byte at which its line begins, or its number."
    weight: float = 1.0
    "Factor of the loss of a text; a conversation holds its own."


class DataSet(ABC):
    """The rows of one data set.

    Attributes:
        column: That holds the text or the conversation; "" until the first row is read, where none is named.
        conversational: Whether rows are conversations.
        found: Whether a row has text.
        total: Rows that were met; each is yielded or counted in `skipped`.
        skipped: Reason (a key of engine.data.filters.REASONS) → rows that are left out.
        examples: Reason → the first few of them.
        others: Files of its folder that are not read, each with the reason.
    """

    def __init__(self, path: Path, files: Sequence[Path], column: str, reader: RowReader) -> None:
        self.path, self.files, self.column = path, files, column
        self._named, self._reader = bool(column), reader
        self._dates: dict[int, datetime] = {}
        self.conversational = False
        self.found = False
        self.total = 0
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.others: list[tuple[Path, str]] = []

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every row that has text, in order; `skipped` counts the others under a reason. Once."""

    @abstractmethod
    def read(self, row: Row) -> str | Conversation | None:
        """A row's text or conversation; None where it is no longer there."""

    def text(self, row: Row) -> str | None:
        """A row's text, or all texts of its conversation; None where it is no longer there."""
        found = self.read(row)
        return "\n".join(found.texts()) if isinstance(found, Conversation) else found

    @abstractmethod
    def close(self) -> None:
        """Lets go of open files."""

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Makes what a damaged file brings about one kind of error."""
        try:
            yield
        except (OSError, EOFError, ValueError, zlib.error) as error:
            problem = "not all of it was written by gzip" if isinstance(error, gzip.BadGzipFile) else error
            raise DATA_SET_UNUSABLE(path=self.path, problem=problem) from error

    def _taken(self, part: int, number: int, position: int, values: Mapping[str, Any]) -> Row | None:
        """The row; None, and counted, where it has no text in the column."""
        if self.conversational:
            return self._taken_conversation(part, number, position, values)
        text = _text_of(values, self.column)
        if text is None:
            elsewhere = not self._named and any(isinstance(values.get(name), str) for name in TEXT_COLUMNS)
            given = any(values.get(name) is not None for name in _parts(self.column))
            self._skip("another column" if elsewhere else "not text" if given else "no text", part, number)
            return None
        try:
            weight = self._reader.weight(values)
        except NoConversationError as error:
            self._skip(error.reason, part, number, problem=str(error))
            return None
        if not weight:
            self._skip("not trained", part, number, problem="its weight is 0")
            return None
        self.found = True
        self.total += 1
        row = self._row(part, number, position, values, len(text.encode("utf-8", "replace")))
        return row if weight == 1 else replace(row, weight=weight)

    def _taken_conversation(self, part: int, number: int, position: int, values: Mapping[str, Any]) -> Row | None:
        try:
            texts = self._reader.read(values).texts()
        except NoConversationError as error:
            self._skip(error.reason, part, number, problem=str(error))
            return None
        self.found = True
        self.total += 1
        return self._row(part, number, position, values, sum(len(text.encode("utf-8", "replace")) for text in texts))

    def _content(self, part: int, values: Mapping[str, Any]) -> str | Conversation | None:
        """What the row with these values holds."""
        if not self.conversational:
            return _text_of(values, self.column)
        try:
            return self._reader.read(values, self._date(part) if self._reader.dated else None)
        except NoConversationError:
            return None

    def _date(self, part: int) -> datetime:
        """When a file was written: what a template that names the day is told, today and tomorrow."""
        if part not in self._dates:
            self._dates[part] = datetime.fromtimestamp(self.files[part].stat().st_mtime)  # noqa: DTZ006 - a local day
        return self._dates[part]

    def _choose(self, names: Collection[str], values: Mapping[str, Any] | None) -> None:
        """Decides by the first row, or a table's columns, what holds the text or the conversation."""
        if self._named:
            if values is not None and not self.conversational and isinstance(values.get(self.column), list):
                self._reader, self.conversational = self._reader.reading(self.column), True
            return
        if not self.column:
            form = self._reader.form(names, values)
            if not form and not _known_column(names):
                # Each row then says what is wrong with its messages.
                form = self._reader.named_messages(names)
            self.conversational = bool(form)
            self.column = form or _known_column(names)

    def _skip(self, reason: str, part: int, number: int, rows: int = 1, problem: str = "") -> None:
        """Counts rows, from one with a number on, that are left out."""
        if not rows:
            return
        self.total += rows
        self.skipped[reason] += rows
        named = self.examples.setdefault(reason, [])
        if len(named) < ROW_EXAMPLES:
            named.append(f"{self.files[part]}, row {number + 1:,}" + (f": {problem}" if problem else ""))

    def _nothing_found(self, names: Sequence[str]) -> EliteError:
        if not self.total:
            return DATA_SET_UNUSABLE(path=self.path, problem="it holds no row")
        if self.conversational:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.most_common())
            first = next(iter(self.examples.values()))[0]
            problem = f"no row holds a conversation to learn ({counts}; the first: {first})"
            return DATA_SET_UNUSABLE(path=self.path, problem=problem)
        column = _column_of(names, self.column, self.path)
        return DATA_SET_UNUSABLE(path=self.path, problem=f"no row holds text in its column {column}")

    def _row(self, part: int, number: int, position: int, values: Mapping[str, Any], size: int) -> Row:
        named = next((values[name] for name in PATH_COLUMNS if isinstance(values.get(name), str)), "")
        place = PurePosixPath(self.files[part].name) / f"{number:08d}"
        path = place / named.lstrip("/") if named else place
        if self.conversational:
            return Row(self.path, str(place), LANGUAGE, size, part, position)
        language = language_by_name(path.name) if named else None
        return Row(self.path, str(path), language or TEXT, size, part, position)


def open_data_set(given: Path, column: str, reader: RowReader | None = None) -> DataSet:
    """The data set at a path.

    Args:
        given: A .jsonl, .json, .ndjson (or .gz of these), .parquet or .arrow file, or a folder of such.
        column: Of the text, or several with + between them; "" for the first known one.
        reader: Reads conversations.

    Raises:
        EliteError: DATA_SET_UNUSABLE, DATA_SET_COLUMN or DATA_SET_LIBRARY.
    """
    path = Path(os.path.realpath(expand_home(given)))
    try:
        if not path.exists():
            raise DATA_SET_UNUSABLE(path=given, problem="it does not exist")
        files, others = data_files(path) if path.is_dir() else ([path], [])
        if odd := next((file for file in files if not file.is_file()), None):
            # Rows are read twice, and a FIFO would be waited for.
            raise DATA_SET_UNUSABLE(path=given, problem=f"{odd.name} is no regular file")
        kind = common_kind(files, others)
    except OSError as error:  # such as a name too long for a path
        raise DATA_SET_UNUSABLE(path=given, problem=error.strerror or error) from error
    except ValueError as error:
        raise DATA_SET_UNUSABLE(path=given, problem=error) from error
    data_set: DataSet = (JsonLines if kind == "json" else Table)(path, files, column, reader or RowReader({}))
    data_set.others = others
    return data_set


def estimate_text_bytes(given: Path) -> int:
    """About how many bytes of text a data set holds, from the sizes of its files.

    Raises:
        EliteError: as open_data_set.
    """
    files = open_data_set(given, "").files
    return sum(file.stat().st_size * (_COMPRESSION if ending(file) in (".gz", ".parquet") else 1) for file in files)


def _known_column(names: Collection[str]) -> str:
    """The column that holds the text of a row with these names; "" for none that is known."""
    return next((name for name in TEXT_COLUMNS if name in names), "")


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
        shown = ", ".join(sorted(names)[:12]) or "no columns"
        raise DATA_SET_COLUMN(path=path, column=wanted or "text, content or code", columns=shown)
    return column


# --- JSON -------------------------------------------------------------------------------------------------


class JsonLines(DataSet):
    """One JSON object a line, or an array of them.

    Compressed files are read from their start again, so they are read in order.
    """

    def __init__(self, path: Path, files: Sequence[Path], column: str, reader: RowReader) -> None:
        super().__init__(path, files, column, reader)
        self._open: tuple[int, BinaryIO, JsonWindow] | None = None
        self._whole: dict[int, Callable[[BinaryIO, int], Iterator[tuple[int, Any]]]] = {}
        "How files are read that are an array of rows, or objects of many lines."

    def rows(self) -> Iterator[Row]:
        """See DataSet."""
        first: dict[str, Any] | None = None
        for part, file in enumerate(self.files):
            with self._reading(), opened_json(file) as opened:
                refuse_other_contents(file)
                refuse_other_encodings(opened)
                if may_be_array(file) and is_array(opened):
                    self._whole[part] = elements
                elif is_spread(opened, _LONGEST_LINE):
                    self._whole[part] = objects
                for number, position, values in self._objects(opened, part):
                    first = values if first is None else first
                    self._choose(values, values)
                    if row := self._taken(part, number, position, values):
                        yield row
        if first is None:
            named = next(iter(self.examples.values()), [])
            if not self.total:
                raise DATA_SET_UNUSABLE(path=self.path, problem="it holds no row")
            problem = "no line or element of it is a JSON object" + "".join(f" (the first: {one})" for one in named[:1])
            raise DATA_SET_UNUSABLE(path=self.path, problem=problem)
        if not self.found:
            inner = next((name for name, value in first.items() if is_list_of_rows(value)), None)
            if self.total == 1 and inner is not None and not self.conversational:
                problem = f"it is one object, whose list {inner!r} holds the rows; make a file of that list alone"
                raise DATA_SET_UNUSABLE(path=self.path, problem=problem)
            raise self._nothing_found(list(first))

    def _objects(self, file: BinaryIO, part: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Number, first byte and values of each row of a file that is a JSON object; the others are counted."""
        number = -1
        if part in self._whole:
            try:
                for number, (position, values) in enumerate(self._whole[part](file, _LONGEST_LINE)):
                    if isinstance(values, dict):
                        yield number, position, values
                    else:
                        repeated = isinstance(values, Repeated)
                        problem = values.problem if repeated else f"it is {kind_of(values)}, no object"
                        self._skip("not a row", part, number, problem=problem)
            except ValueError as error:
                # Where an array is broken nothing tells where its next row begins.
                self._skip("cut off", part, number + 1, problem=problem_of(error))
            return
        for number, (position, line) in enumerate(lines(file, _LONGEST_LINE)):
            if line is None:
                self._skip("too large", part, number)
            elif line.strip():
                try:
                    yield number, position, object_of(line)
                except ValueError as error:
                    self._skip("not a row", part, number, problem=problem_of(error))

    def read(self, row: Row) -> str | Conversation | None:
        """See DataSet."""
        try:
            if self._open is None or self._open[0] != row.part:
                self.close()
                opened = opened_json(self.files[row.part])
                self._open = row.part, opened, JsonWindow(opened)
            _, file, window = self._open
            if row.part in self._whole:
                window.seek(row.position)
                values = window.value(_LONGEST_LINE)
            else:
                file.seek(row.position)
                values = object_of(file.readline(_LONGEST_LINE))
        except (OSError, EOFError, ValueError, zlib.error):
            return None
        return self._content(row.part, values) if isinstance(values, dict) else None

    def close(self) -> None:
        """See DataSet."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


# --- Arrow and Parquet -------------------------------------------------------------------------------------


class Table(DataSet):
    """Columns in Arrow's or Parquet's form, read through pyarrow a group of rows at a time."""

    def __init__(self, path: Path, files: Sequence[Path], column: str, reader: RowReader) -> None:
        super().__init__(path, files, column, reader)
        try:
            import pyarrow  # noqa: F401 - an optional dependency: asked for before any work is done
        except ImportError:
            raise DATA_SET_LIBRARY(path=path) from None
        self._part: tuple[int, RowGroups] | None = None
        self._group: tuple[int, int, Any] | None = None

    def rows(self) -> Iterator[Row]:
        """See DataSet."""
        names: dict[str, None] = {}
        for part in range(len(self.files)):
            with self._reading():
                refuse_other_contents(self.files[part])
                groups = self._groups(part)
                names |= dict.fromkeys(groups.names)
                self._choose(groups.names, self._first_values(groups))
                columns = self._columns(groups.names)
                if not set(columns) <= set(groups.names):
                    elsewhere = not self._named and not set(TEXT_COLUMNS).isdisjoint(groups.names)
                    self._skip("another column" if elsewhere else "no text", part, 0, groups.first[-1])
                    continue
                others = {*PATH_COLUMNS, self._reader.fields.get("weight", "weight")} - set(columns)
                wanted = [*columns, *(name for name in groups.names if name in others)]
                number = 0
                for index in range(len(groups.first) - 1):
                    table = groups.read(index, wanted)
                    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
                        for values in row_values(table.slice(start, _ROWS_AT_ONCE)):
                            if row := self._taken(part, number, number, values):
                                yield row
                            number += 1
        if not self.found:
            raise self._nothing_found(list(names))

    def _columns(self, names: Sequence[str]) -> list[str]:
        if self.conversational:
            return self._reader.columns(names)
        return [self.column] if self.column in names else _parts(self.column)

    def _first_values(self, groups: RowGroups) -> dict[str, Any] | None:
        """The first row of a file, where it takes one to tell what it holds."""
        unknown = not self.column or (self._named and self.column in groups.names and not self.conversational)
        if not unknown or not groups.first[-1]:
            return None
        index = next(index for index in range(len(groups.first) - 1) if groups.first[index + 1] > groups.first[index])
        wanted = [self.column] if self.column else self._reader.columns(groups.names)
        first = row_values(groups.read(index, wanted).slice(0, 1))
        return first[0] if first else None

    def read(self, row: Row) -> str | Conversation | None:
        """See DataSet."""
        try:
            groups = self._groups(row.part)
            index = bisect.bisect_right(groups.first, row.position) - 1
            if self._group is None or self._group[:2] != (row.part, index):
                self._group = row.part, index, groups.read(index, self._columns(groups.names))
            table = self._group[2].slice(row.position - groups.first[index], 1)
            return self._content(row.part, row_values(table)[0])
        except (OSError, ValueError, IndexError, KeyError):
            return None

    def _groups(self, part: int) -> RowGroups:
        if self._part is None or self._part[0] != part:
            file = self.files[part]
            self._part = part, parquet_groups(file) if ending(file) == ".parquet" else arrow_groups(file)
        return self._part[1]

    def close(self) -> None:
        """See DataSet."""
        self._part = self._group = None
