"""From folders to the list of source files worth learning from. Reads names, sizes and first bytes only."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import ClassVar

from engine.data.contents import language_by_content, language_by_mode
from engine.data.filters import (
    HEAD_BYTES,
    REASONS,
    is_binary,
    reasons_by_head,
    reasons_by_path,
    reasons_by_size,
)
from engine.data.generated import is_part_of_documentation
from engine.data.gitattributes import Attributes, Marks
from engine.data.languages import LANGUAGES, NOTEBOOK, language_by_name, language_by_shebang, languages_named
from engine.data.listing import is_bare, list_files
from engine.data.manifests import is_manifest
from engine.data.notebooks import NOTEBOOK_BYTES
from engine.data.safe_files import Folder, NotRegularError
from engine.errors.data import (
    REPOSITORY_BARE,
    REPOSITORY_EMPTY,
    REPOSITORY_MISSING,
    REPOSITORY_NO_SOURCE,
    REPOSITORY_NOT_A_FOLDER,
    REPOSITORY_REMOTE,
    REPOSITORY_TOO_SMALL,
    REPOSITORY_UNREADABLE,
    REPOSITORY_UNSET,
)
from engine.home_folder import expand_home
from engine.quantities import counted

BYTES_PER_TOKEN = 3.57
"The demo tokenizer makes 3.54 of CPython 3.11.7's standard library (31.5 MB); larger vocabularies do better."
_MARKER_TOKENS = 12
"A document's path and end mark, in tokens."
_ADDRESS = re.compile(r"(?:^|/)((?:https?|ssh|git):/+.+|git@[\w.-]+:.+)$")
"What `git clone` takes, at the end of a path that may have been made absolute."
EXAMPLES = 5
"Files named of those that were left out for one reason."
MINIMUM_TOKENS = 64
"Below one window of the smallest context there is nothing to measure."


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file that the model may learn from."""

    repository: Path
    "Absolute, with links resolved."
    name: str
    """Its path below the repository. May hold any character, also line ends and bytes that are not UTF-8 (surrogates).
    Not a path object: of these, each with what it remembers of itself, half a million take half a gigabyte."""
    language: str
    size: int
    "Bytes."
    alone: ClassVar[bool] = False
    "Whether it is a document of its own, whatever data.documents says."

    @property
    def path(self) -> PurePosixPath:
        """`name` as a path."""
        return PurePosixPath(self.name)


@dataclass(frozen=True)
class Collection:
    """Source files by repository and path, and what was left out."""

    files: tuple[SourceFile, ...]
    skipped: Mapping[str, int]
    "Reason (a key of engine.data.filters.REASONS) → files."
    total_bytes: int
    listed_by: Mapping[Path, str]
    'Repository → "git", or how else its files were found.'
    submodules: tuple[str, ...] = ()
    "Repositories inside the repositories, by path; left out."
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    "Reason → the first few files that were left out for it."
    manifests: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)
    "Repository → paths of the files that build tools read, whether they are learnt or not."

    def by_language(self) -> dict[str, tuple[int, int]]:
        """Language → (files, bytes), the largest first."""
        table: dict[str, tuple[int, int]] = {}
        for file in self.files:
            files, size = table.get(file.language, (0, 0))
            table[file.language] = (files + 1, size + file.size)
        return dict(sorted(table.items(), key=lambda item: -item[1][1]))


def collect(
    repositories: Sequence[Path],
    *,
    max_file_bytes: int,
    include: Iterable[str] = (),
    extensions: Iterable[str] = (),
    any_size: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Collection:
    """The source files of one or more folders.

    Args:
        repositories: git work trees, parts of them, or plain folders.
        max_file_bytes: Larger files are left out.
        include: Reasons (of engine.data.filters.SWITCHABLE) for which no file is left out, and "notebook".
        extensions: Endings or names of files with their languages, such as "inc=PHP".
        any_size: Whether less than MINIMUM_TOKENS is enough, since there is more to learn from elsewhere.
        progress: Called now and then with files looked at and files in all, of the present repository.

    Raises:
        EliteError: REPOSITORY_UNSET, _MISSING, _NOT_A_FOLDER, _UNREADABLE, _BARE, _EMPTY, _NO_SOURCE or _TOO_SMALL.
    """
    if not repositories:
        raise REPOSITORY_UNSET()
    rules = _Rules(max_file_bytes, frozenset(include), languages_named(extensions))
    files: list[SourceFile] = []
    skipped: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    submodules: list[str] = []
    listed_by: dict[Path, str] = {}
    seen: set[str] = set()
    manifests: dict[Path, tuple[str, ...]] = {}
    for given in repositories:
        root = _check_folder(given)
        if root in listed_by:
            continue
        paths, listed_by[root] = list_files(root)
        if not paths:
            raise REPOSITORY_EMPTY(path=given)
        # One --repo may lie within another: its files count once.
        all_seen = seen.issuperset(f"{root}/{path}" for path in paths)
        paths = [path for path in paths if f"{root}/{path}" not in seen]
        seen.update(f"{root}/{path}" for path in paths)
        manifests[root] = tuple(str(path) for path in paths if is_manifest(path) and not _is_foreign(path))
        found, reasons = _sort_out(root, paths, rules, progress)
        if not found and not all_seen:
            counts = dict(Counter(reasons.values()).most_common())
            raise REPOSITORY_NO_SOURCE(path=given, skipped=describe_skipped(counts))
        files += found
        skipped.update(reasons.values())
        for path, reason in reasons.items():
            named = examples.setdefault(reason, [])
            if len(named) < EXAMPLES:
                named.append(f"{root}/{path}")
        submodules += [str(path) for path, reason in reasons.items() if reason == "submodule"]
    order = {reason: position for position, reason in enumerate(REASONS)}
    collection = Collection(
        files=tuple(files),
        skipped=dict(sorted(skipped.items(), key=lambda item: (-item[1], order[item[0]]))),
        total_bytes=sum(file.size for file in files),
        listed_by=listed_by,
        submodules=tuple(submodules),
        examples={reason: tuple(named) for reason, named in examples.items()},
        manifests=manifests,
    )
    tokens = estimate_tokens(collection)
    if not any_size and (len(files) < 2 or tokens < MINIMUM_TOKENS):
        where = ", ".join(map(str, repositories))
        raise REPOSITORY_TOO_SMALL(path=where, tokens=f"about {tokens:,}", files=counted(len(files), "file"))
    return collection


def estimate_tokens(collection: Collection) -> int:
    """About how many tokens the files make: an estimate from BYTES_PER_TOKEN; a model's own tokenizer differs."""
    return tokens_of(collection.total_bytes, len(collection.files))


def tokens_of(size: int, files: int) -> int:
    """Estimates the tokens of files of together `size` bytes, with a path and an end mark for each."""
    return round(size / BYTES_PER_TOKEN) + _MARKER_TOKENS * files


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """The counts in words: "skipped 1,204 files: 880 vendored, 324 binary"."""
    if not skipped:
        return "skipped nothing"
    total = sum(skipped.values())
    counts = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
    return f"skipped {total:,} file{'s' if total != 1 else ''}: {counts}"


def _check_folder(given: Path) -> Path:
    """The folder's absolute path, once it is known to exist and to be readable."""
    try:
        root = Path(os.path.realpath(expand_home(given), strict=True))
        if not root.is_dir():
            raise REPOSITORY_NOT_A_FOLDER(path=given)
        if is_bare(root):
            raise REPOSITORY_BARE(path=given)
        with os.scandir(root):
            return root
    except (FileNotFoundError, NotADirectoryError):
        if address := _ADDRESS.search(str(given)):
            # A Path keeps one slash of two.
            raise REPOSITORY_REMOTE(path=re.sub(r"^(\w+):/+", r"\1://", address[1])) from None
        raise REPOSITORY_MISSING(path=given) from None
    except OSError as error:
        raise REPOSITORY_UNREADABLE(path=given, problem=error.strerror or error) from error
    except ValueError as error:  # a NUL in the path
        raise REPOSITORY_UNREADABLE(path=given, problem=error) from error


def _is_foreign(path: PurePosixPath) -> bool:
    """Whether a file is another project's, or a tool's."""
    return any(reason in ("vendored", "build output") for reason in reasons_by_path(path))


def _sort_out(
    root: Path,
    paths: Sequence[PurePosixPath],
    rules: _Rules,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[SourceFile], dict[PurePosixPath, str]]:
    """Files that are kept, and the reason for each that is not."""
    folder = Folder(str(root))
    attributes = Attributes(folder, paths)
    kept: list[SourceFile] = []
    reasons: dict[PurePosixPath, str] = {}
    for position, path in enumerate(paths):
        if progress is not None and position % 500 == 0:
            progress(position, len(paths))
        verdict = _judge(folder, path, rules, attributes)
        if isinstance(verdict, str):
            reasons[path] = verdict
        else:
            kept.append(SourceFile(root, str(path), *verdict))
    if progress is not None:
        progress(len(paths), len(paths))
    written = _written_documentation(reasons)
    if written:
        for file in [file for file in kept if is_part_of_documentation(file.path, file.language, written)]:
            reasons[file.path] = "generated"
        kept = [file for file in kept if file.path not in reasons]
    return kept, reasons


def _written_documentation(reasons: Mapping[PurePosixPath, str]) -> frozenset[PurePosixPath]:
    """Folders, below the top, whose first page a tool wrote: what lies beside it is of the same tool."""
    return frozenset(
        path.parent
        for path, reason in reasons.items()
        if reason == "generated" and path.name in ("index.html", "index.htm") and path.parent.parts
    )


@dataclass(frozen=True)
class _Rules:
    max_file_bytes: int
    include: frozenset[str]
    languages: Mapping[str, str]
    "The user's own, by ending or name."

    def first(self, reasons: Iterable[str]) -> str | None:
        """The first reason that is not switched off."""
        return next((reason for reason in reasons if reason not in self.include), None)


def _judge(folder: Folder, path: PurePosixPath, rules: _Rules, attributes: Attributes) -> tuple[str, int] | str:
    """Language and size of a file to keep, or the reason to leave it out."""
    marks = attributes.of(path)
    marked = (reason for reason, value in marks.items() if value is True)
    # What people mark as their own is theirs, whatever its folder is called.
    told = (reason for reason in reasons_by_path(path) if marks.get(reason) is not False)
    reason = rules.first((*marked, *told))
    if reason is not None:
        return reason
    try:
        size = folder.size(path)
        language = language_by_name(path.name, rules.languages)
        if language == NOTEBOOK and "notebook" not in rules.include:
            return "notebook"
        # Most of a notebook are outputs, which are not learnt: its cells are measured when they are read.
        limit = NOTEBOOK_BYTES if language == NOTEBOOK else rules.max_file_bytes
        reason = rules.first(reasons_by_size(size, language, limit))
        if reason is not None:
            return reason
        head = folder.read(path, HEAD_BYTES)
    except NotRegularError as error:
        return str(error)
    if is_binary(head):
        return "binary"
    language = _language(path.name, language, head, marks)
    if language is None:
        return "not source"
    told = (reason for reason in reasons_by_head(head, language, path.name) if marks.get(reason) is not False)
    return rules.first(told) or (sys.intern(language), size)


def _language(name: str, by_name: str | None, head: bytes, marks: Marks) -> str | None:
    """A file's language: as its user or its repository says, else as its name and first bytes tell."""
    if by_name is not None and language_by_name(name) != by_name:
        return by_name  # the user's own
    marked = marks.get("language")
    if isinstance(marked, str):
        return LANGUAGES.get(marked.lower(), marked)
    language = language_by_content(name, by_name, head) or language_by_shebang(head)
    return language or language_by_mode(head, LANGUAGES)
