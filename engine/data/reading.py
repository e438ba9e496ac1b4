"""The first reading of every source: what is no text, a copy or a secret is found; the rest is ordered and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from engine.data.chats import TEMPLATES, Chats
from engine.data.collect import EXAMPLES, Collection, SourceFile, tokens_of
from engine.data.documents import Document, Edit, Texts, edited, edited_conversation
from engine.data.encoded import without_encoded
from engine.data.filters import reasons_by_path
from engine.data.git import GitError
from engine.data.history import LANGUAGE as DIFF
from engine.data.history import Change, Commit, KnownText, commit_of, has_history, read_patches
from engine.data.languages import language_by_name
from engine.data.licences import find_header
from engine.data.licences import fingerprint as header_fingerprint
from engine.data.manifests import read_manifests
from engine.data.near_duplicates import NearDuplicates
from engine.data.order import FileOrder, order_by_path, order_files
from engine.data.packages import packages
from engine.data.rows import ROW_EXAMPLES
from engine.data.secrets import PLACEHOLDER, SearchTooLongError, find_secrets, fingerprint, hint
from engine.data.shared_runs import SharedRuns
from engine.data.split import held_out_files, is_held_out
from engine.data.syntax import outline
from engine.errors.data import CHAT_TEMPLATE_MISSING
from engine.tokenization.chat_template import RenderError
from engine.tokenization.marked_conversation import SplitError

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.config import DataSection
    from engine.data.conversations import Conversation

Progress = Callable[[int, int, str], None]
"Done, total, and what is counted: files, or bytes."


@dataclass(frozen=True)
class FoundSecret:
    """A secret that was kept out of the dataset."""

    file: SourceFile
    line: int
    "Counts from 1."
    kind: str
    hint: str
    "Its first characters."
    fingerprint: str
    "What data.allowed_secrets calls it by."


@dataclass(frozen=True)
class Twin:
    """A file that is almost the same as an earlier one."""

    file: SourceFile
    like: SourceFile
    side: str
    '"left out", "training" or "held out".'


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A source that makes part of the dataset."""

    file: SourceFile
    digest: bytes
    "SHA-256 of its bytes when it was read."
    cuts: bytes
    "Lines of its edited text that are worth a cut before them, as uint32: an array object takes 112 bytes more."
    document: int
    "Number of the document that it is a part of."
    edits: tuple[Edit, ...]
    "What is replaced in its text."

    @property
    def definitions(self) -> npt.NDArray[np.uint32]:
        """`cuts` as numbers, ascending. Shape (definitions,)."""
        return np.frombuffer(self.cuts, dtype=np.uint32)


@dataclass(frozen=True)
class Reading:
    """What makes the dataset, in the store's order, as it was when it was read."""

    files: tuple[ReadFile, ...]
    held_out: int
    "How many, at the end of the list."
    skipped: Counter[str]
    examples: dict[str, list[str]]
    secrets: tuple[FoundSecret, ...]
    twins: tuple[Twin, ...]
    licence_headers: int
    "Repeated ones that are taken out."
    order: FileOrder
    leak: float = 0.0
    "Share of the six-line runs of held-out files that training files hold too."
    notes: tuple[str, ...] = ()
    "Sentences that a person should see."
    crlf_files: int = 0
    "Files whose lines ended as on Windows throughout, and are read without the carriage returns."

    @property
    def estimated_tokens(self) -> int:
        """Estimates the tokens that are left once secrets, repeated headers and encoded data are cut out."""
        cut = sum(edit.end - edit.start - len(edit.replacement) for read in self.files for edit in read.edits)
        return tokens_of(sum(read.file.size for read in self.files) - cut, len(self.files))

    @property
    def repositories(self) -> list[Path]:
        """In the order in which their numbers in the store count."""
        return sorted({read.file.repository for read in self.files})


def read(
    collection: Collection, data: DataSection, texts: Texts, report: Progress, chats: Chats | None = None
) -> Reading:
    """Reads every source once, drops what turns out to be no text or a copy, and orders and splits the rest."""
    reader = _Reader(data, texts, chats)
    for position, file in enumerate(collection.files):
        if position % 100 == 0:
            report(position, len(collection.files), "files read")
        reader.take(file)
    report(len(collection.files), len(collection.files), "files read")
    reader.find_twins()
    reader.split()
    if data.history:
        repositories = {file.repository for file in collection.files if not file.alone}
        reader.take_history([root for root in collection.listed_by if root in repositories], report)
    return reader.finish(read_manifests(collection.manifests))


@dataclass(slots=True)
class _Kept:
    file: SourceFile
    digest: bytes
    imports: tuple[str, ...]
    cuts: bytes
    edits: tuple[Edit, ...]
    header_taken_out: bool
    had_crlf: bool
    like: int | None
    "Number of the earlier file that it is a copy or near-duplicate of."


@dataclass
class _Reader:
    """Takes sources in the order of their paths."""

    data: DataSection
    texts: Texts
    chats: Chats | None
    kept: list[_Kept] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    secrets: list[FoundSecret] = field(default_factory=list)
    twins: list[tuple[SourceFile, SourceFile]] = field(default_factory=list)
    held_out: list[bool] = field(default_factory=list)
    "For each kept file, once they are split."
    notes: list[str] = field(default_factory=list)
    leak: float = 0.0
    "Share of the six-line runs of held-out files that training files hold too."

    def __post_init__(self) -> None:
        self._digests: dict[bytes, int] = {}
        self._headers: set[bytes] = set()
        self._alike: NearDuplicates | None = NearDuplicates()
        self._requests: dict[bytes, int] = {}
        self._allowed = frozenset(self.data.allowed_secrets)
        self._shared = SharedRuns()

    def take(self, file: SourceFile) -> None:
        """Reads one source, and keeps it unless there is a reason not to."""
        self._consider(file, self.texts.read(file))

    def _consider(self, file: SourceFile, document: Document | str) -> bool:
        """Whether a source is kept."""
        if isinstance(document, str):
            return self._skip(file, document)
        copy_of = self._digests.get(document.digest)
        if copy_of is not None and "duplicate" not in self.data.include:
            return self._skip(file, "duplicate")
        try:
            edits, has_secrets = self._edits(file, document)
        except SearchTooLongError:
            return self._skip(file, "not searched")
        if has_secrets and self.data.secrets == "skip":
            return self._skip(file, "secrets")
        if document.conversation is not None:
            return self._consider_conversation(file, document, edits, copy_of)
        if "encoded" not in self.data.include:
            uncoded = without_encoded(document.text, edits)
            if uncoded is None:
                return self._skip(file, "encoded")
            edits = uncoded
        header = self._repeated_header(document.text)
        if header is not None:
            edits = [header, *(edit for edit in edits if edit.start >= header.end)]
        text = edited(document.text, edits)
        if not text.strip():
            return self._skip(file, "empty")
        if copy_of is None:
            self._digests[document.digest] = len(self.kept)
            if self._alike is not None:
                self._alike.add(len(self.kept), text)
                self._shared.add(len(self.kept), text)
        found = outline(text, file.language, file.path)
        self.kept.append(
            _Kept(
                file,
                document.digest,
                found.imports,
                found.definitions.tobytes(),
                tuple(edits),
                header is not None,
                document.had_crlf,
                copy_of,
            )
        )
        return True

    def _consider_conversation(
        self, file: SourceFile, document: Document, edits: list[Edit], copy_of: int | None
    ) -> bool:
        """Whether a conversation is kept: one whose answers can be told in what the template makes of it."""
        conversation = edited_conversation(document, edits)
        try:
            written = self._written(conversation)
            if conversation.rejected is not None and written == self._written(conversation.rejected):
                # They differed in what the template strips, or in a secret.
                return self._skip(file, "no pair", "its chosen and its rejected answer are written alike")
        except RenderError as error:
            return self._skip(file, "template", str(error))
        except SplitError as error:
            return self._skip(file, "not split", str(error))
        number = len(self.kept)
        # Several attempts at one request stand on one side, though their words differ.
        like = self._requests.setdefault(document.conversation.first_request(), number)  # type: ignore[union-attr]
        if copy_of is None:
            self._digests[document.digest] = number
            self._shared.add(number, conversation.answers())
        like = like if copy_of is None else copy_of
        self.kept.append(
            _Kept(
                file,
                document.digest,
                (),
                b"",
                tuple(edits),
                header_taken_out=False,
                had_crlf=False,
                like=None if like == number else like,
            )
        )
        return True

    def _written(self, conversation: Conversation) -> object:
        """What is made tokens of a conversation.

        Raises:
            EliteError: CHAT_TEMPLATE_MISSING.
            RenderError, SplitError: as Chats.render.
        """
        if conversation.is_continued:
            return conversation.texts()
        if self.chats is None:
            raise CHAT_TEMPLATE_MISSING(known=", ".join(TEMPLATES))
        return self.chats.render(conversation)

    def find_twins(self) -> None:
        """Drops near-duplicates of earlier files, or notes what they are like, as the configuration asks. Once."""
        assert self._alike is not None
        found = self._alike.find(self._text_again)
        self._alike = None  # commits are not compared, and memory is needed for the order
        # Whatever is a copy of a near-duplicate is one, too.
        found |= {n: found[kept.like] for n, kept in enumerate(self.kept) if kept.like in found}
        self.twins = [(self.kept[number].file, self.kept[like].file) for number, like in sorted(found.items())]
        for number, like in found.items():
            self.kept[number].like = like
        if self.data.near_duplicates == "keep":
            return
        for number in sorted(found):
            self._skip(self.kept[number].file, "near-duplicate")
        left = [number for number in range(len(self.kept)) if number not in found]
        place = {number: position for position, number in enumerate(left)}
        self.kept = [self.kept[number] for number in left]
        self._shared.renumber(place)
        for kept in self.kept:
            kept.like = None if kept.like is None else place[kept.like]

    def _skip(self, file: SourceFile, reason: str, problem: str = "") -> bool:
        self.skipped[reason] += 1
        named = self.examples.setdefault(reason, [])
        if len(named) < (ROW_EXAMPLES if problem else EXAMPLES):
            named.append(f"{file.repository}/{file.name}" + (f": {problem}" if problem else ""))
        return False

    def _edits(self, file: SourceFile, document: Document) -> tuple[list[Edit], bool]:
        if self.data.secrets == "keep":
            return [], False
        # A change may be to a file of any language: values without quotation marks count as well.
        language = "YAML" if file.language == DIFF else file.language
        secrets = find_secrets(document.text, language, self._allowed)
        for secret in secrets:
            line = document.text.count("\n", 0, secret.start) + 1
            value = document.text[secret.start : secret.end]
            self.secrets.append(FoundSecret(file, line, secret.kind, hint(value), fingerprint(value)))
        return [Edit(secret.start, secret.end, PLACEHOLDER) for secret in secrets], bool(secrets)

    def _repeated_header(self, text: str) -> Edit | None:
        """The edit that takes out a licence header that an earlier file has."""
        if self.data.licence_headers == "keep" or (found := find_header(text)) is None:
            return None
        start, end = found
        print_ = header_fingerprint(text[start:end])
        if print_ in self._headers:
            return Edit(start, end)
        self._headers.add(print_)
        return None

    def _text_again(self, number: int) -> str:
        kept = self.kept[number]
        document = self.texts.read(kept.file)
        # A file that has changed since its first reading is noticed by its digest when it is tokenised.
        return "" if isinstance(document, str) else edited(document.text, kept.edits)

    def split(self) -> None:
        """Decides for each kept file whether it is held out; those that share text go where the first of them goes."""
        group = self._shared.clusters([kept.file.size for kept in self.kept])
        owner = [group[number if kept.like is None else kept.like] for number, kept in enumerate(self.kept)]
        sizes: Counter[int] = Counter()
        for number, first in enumerate(owner):
            sizes[first] += self.kept[number].file.size
        firsts = sorted(sizes)
        together = [
            SourceFile(file.repository, file.name, file.language, sizes[first])
            for first, file in ((first, self.kept[first].file) for first in firsts)
        ]
        side = dict(zip(firsts, held_out_files(together, self.data.held_out_fraction), strict=True))
        self.held_out = [side[first] for first in owner]
        self.leak = self._shared.leak(self.held_out)
        self._shared = SharedRuns()  # commits share text with what they changed

    def take_history(self, roots: Sequence[Path], report: Progress) -> None:
        """Adds the latest commits to the training side, without what is held out."""
        limit = self.data.max_file_bytes
        for root in roots:
            if not has_history(root):
                self.notes.append(f"{root} has no git history to learn")
                continue
            keeps = self._learnable(root)
            try:
                for position, patch in enumerate(read_patches(root, self.data.history, longest=limit)):
                    report(position, self.data.history, "commits read")
                    made = commit_of(root, patch, keeps)
                    if made is None:
                        named = Commit(root, f"commits/{patch.revision[:12]}", DIFF, 0)
                        self._skip(named, "held out")
                    elif self._consider(made[0], self.texts.document(made[1])):
                        self.held_out.append(False)
            except GitError as error:
                self.notes.append(f"the history of {root} could not be read to its end: {error}")

    def _learnable(self, root: Path) -> Callable[[Change], bool]:
        """Whether a change may be learnt: one of a file that is learnt, and of no text that is held out."""
        fraction, include = self.data.held_out_fraction, frozenset(self.data.include)
        side = [kept.file for kept, held_out in zip(self.kept, self.held_out, strict=True) if held_out]
        paths = {file.name for file in side if file.repository == root}
        numbers = [number for number, held_out in enumerate(self.held_out) if held_out]
        known = KnownText(map(self._text_again, numbers))

        def learnable(change: Change) -> bool:
            for name in change.paths:
                path = PurePosixPath(name)
                if name in paths or is_held_out(path, fraction) or language_by_name(path.name) is None:
                    return False
                if not include.issuperset(reasons_by_path(path)):
                    return False
            return not known.holds(change)

        return learnable

    def finish(self, manifests: Mapping[Path, Mapping[str, str]]) -> Reading:
        """Puts what was kept in its order. Once."""
        self._digests.clear()
        files = [kept.file for kept in self.kept]
        order = order_by_path(len(files))
        if self.data.order == "imports":
            order = order_files(files, [kept.imports for kept in self.kept], manifests)
        positions = sorted(order.positions, key=lambda number: self.held_out[number])
        documents = list(_documents(files, positions, self.held_out, self.data, manifests))
        # Files of one document follow each other; a stable sort, so that each keeps its order.
        in_order = sorted(range(len(positions)), key=documents.__getitem__)
        placed = ((self.kept[positions[place]], documents[place]) for place in in_order)
        return Reading(
            files=tuple(ReadFile(kept.file, kept.digest, kept.cuts, document, kept.edits) for kept, document in placed),
            held_out=sum(self.held_out),
            skipped=self.skipped,
            examples=self.examples,
            secrets=tuple(self.secrets),
            twins=tuple(self._twins()),
            licence_headers=sum(kept.header_taken_out for kept in self.kept),
            order=order,
            leak=self.leak,
            notes=tuple(self.notes),
            crlf_files=sum(kept.had_crlf for kept in self.kept),
        )

    def _twins(self) -> Iterator[Twin]:
        if self.data.near_duplicates == "skip":
            yield from (Twin(file, like, "left out") for file, like in self.twins)
            return
        held_out = {kept.file: held_out for kept, held_out in zip(self.kept, self.held_out, strict=True)}
        for file, like in self.twins:
            yield Twin(file, like, "held out" if held_out[file] else "training")


def _documents(
    files: Sequence[SourceFile],
    positions: Sequence[int],
    held_out: Sequence[bool],
    data: DataSection,
    manifests: Mapping[Path, Mapping[str, str]],
) -> Iterator[int]:
    """Number of the document of each file at `positions`, counted as they first appear."""
    numbers: dict[object, int] = {}
    package_of = packages(files, manifests) if data.documents == "package" else None
    for number in positions:
        file = files[number]
        key: object = (file.repository, held_out[number])
        if data.documents == "file" or file.alone:
            key = number
        elif package_of is not None:
            key = (file.repository, held_out[number], package_of[number])
        yield numbers.setdefault(key, len(numbers))
