"""Everything that a configuration names as data, found but not read: repositories and data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.data.collect import EXAMPLES, Collection, SourceFile
from engine.data.conversations import RowReader
from engine.data.documents import Texts
from engine.data.repositories import collect_repositories
from engine.data.rows import ROW_EXAMPLES, DataSet, open_data_set

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.config import DataSection
    from engine.tokenization.chat_template import ChatTemplate


@dataclass(frozen=True)
class Sources:
    """What was found, and how to read it."""

    collection: Collection
    texts: Texts


@contextmanager
def open_sources(
    data: DataSection,
    progress: Callable[[int, int], None] | None = None,
    chat: ChatTemplate | None = None,
    *,
    preferences: bool = False,
) -> Iterator[Sources]:
    """The sources that a configuration names, readable within.

    Args:
        data: Names them.
        progress: Called with files looked at and files in all.
        chat: The template of conversations.
        preferences: Whether rows are pairs of a chosen and a rejected answer.

    Raises:
        EliteError: REPOSITORY_* or DATA_SET_*.
    """
    collection = collect_repositories(data, progress) if data.repositories else Collection((), {}, 0, {})
    fields = dict(field.split("=", 1) for field in data.fields)
    dated = chat is not None and chat.names_date
    reader = RowReader(
        fields, data.train_on, data.mask_errors, pairs=chat is not None, dated=dated, preferences=preferences
    )
    data_sets = [open_data_set(Path(path), data.dataset_column, reader) for path in dict.fromkeys(data.datasets)]
    try:
        by_path = {data_set.path: data_set for data_set in data_sets}
        yield Sources(_with_rows(collection, by_path), Texts(collection.listed_by, data.max_file_bytes, by_path))
    finally:
        for data_set in data_sets:
            data_set.close()


def _with_rows(collection: Collection, data_sets: Mapping[Path, DataSet]) -> Collection:
    """The collection with every row of the data sets after its files."""
    files: list[SourceFile] = list(collection.files)
    listed_by = dict(collection.listed_by)
    skipped = Counter(collection.skipped)
    examples = {reason: list(named) for reason, named in collection.examples.items()}
    for path, data_set in data_sets.items():
        before = len(files)
        files += data_set.rows()
        read = len(files) - before
        what = "conversations" if data_set.conversational else "text"
        listed_by[path] = f"{read:,} of {data_set.total:,} rows, with {what} in column {data_set.column}"
        skipped.update(data_set.skipped)
        for reason, named in data_set.examples.items():
            examples[reason] = [*examples.get(reason, [])[:EXAMPLES], *named][:ROW_EXAMPLES]
        for file, reason in data_set.others:
            skipped[reason] += 1
            if len(examples.setdefault(reason, [])) < EXAMPLES:
                examples[reason].append(str(file))
    return replace(
        collection,
        files=tuple(files),
        skipped=dict(skipped.most_common()),
        total_bytes=sum(file.size for file in files),
        listed_by=listed_by,
        examples={reason: tuple(named) for reason, named in examples.items()},
    )
