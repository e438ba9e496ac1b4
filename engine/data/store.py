"""Token ids of many documents in one memory-mapped file, named by what went into it.

    <cache>/<key>/tokens.bin       ids, little-endian, uint16 where the vocabulary allows, else uint32
    <cache>/<key>/manifest.json    key, type, documents with their token counts, SHA-256 of each block and of itself
    <cache>/<key>.building/        a store being written: it becomes <key>/ by one rename, when it is complete
    <cache>/<key>.lock             held while it is written

The same key is never built twice; a store whose bytes do not match its manifest is built again.
A build that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import errors

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = 1
"Raised when stores of before cannot be read any more; part of every key."
_BLOCK = 1 << 24
"Bytes that share one checksum."
_CHECKPOINT_SECONDS = 5.0


class StoreDamagedError(Exception):
    """A store does not hold what its manifest says. The message says what differs."""


@dataclass(frozen=True)
class DocumentEntry:
    """One document's place in a store."""

    path: str
    repository: int
    "Index into the list of repositories."
    language: str
    tokens: int


@dataclass(frozen=True)
class TokenStore:
    """A complete, checked store.

    Attributes:
        tokens: Ids of all documents, one after the other, as a read-only memory map. Shape (tokens,).
        documents: In the order of their tokens.
    """

    path: Path
    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    documents: tuple[DocumentEntry, ...]

    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each document starts, and where the last one ends. Shape (documents + 1,)."""
        lengths = [0, *(document.tokens for document in self.documents)]
        return np.cumsum(np.array(lengths, dtype=np.int64))


def token_type(vocabulary: int) -> np.dtype[Any]:
    """The narrowest type that holds ids below `vocabulary`."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


def open_store(cache: Path, key: str) -> TokenStore | None:
    """The store of that key, each of its bytes checked; None where there is none.

    Raises:
        StoreDamagedError: there is one, but it is not what was written.
    """
    path = cache / key
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except FileNotFoundError:
        if path.exists():
            raise StoreDamagedError("its manifest is missing") from None
        return None
    except (OSError, ValueError) as error:
        raise StoreDamagedError(f"its manifest cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != _digest(manifest):
        raise StoreDamagedError("its manifest was changed")
    if manifest["key"] != key or manifest["format"] != FORMAT:
        raise StoreDamagedError("it is another store under this name")
    dtype = np.dtype(manifest["dtype"])
    documents = tuple(DocumentEntry(*entry) for entry in manifest["documents"])
    count = sum(document.tokens for document in documents)
    try:
        if (path / "tokens.bin").stat().st_size != count * dtype.itemsize:
            raise StoreDamagedError("its tokens are not as many as they were")
        blocks = list(_block_digests(path / "tokens.bin"))
    except OSError as error:
        raise StoreDamagedError(f"its tokens cannot be read: {error.strerror}") from error
    if blocks != manifest["blocks"]:
        raise StoreDamagedError("its tokens were changed")
    # An empty file cannot be mapped.
    tokens: Any = np.memmap(path / "tokens.bin", dtype=dtype, mode="r") if count else np.empty(0, dtype)
    return TokenStore(path, tokens, documents)


def remove_store(cache: Path, key: str) -> None:
    """Takes a store away, so that it can be built again."""
    shutil.rmtree(cache / key)


@contextlib.contextmanager
def locked(cache: Path, key: str) -> Iterator[None]:
    """Holds the right to build one store, alone among processes, waiting for it if need be.

    Raises:
        EliteError: OUTPUT_UNWRITABLE, the cache cannot be written; also for an OSError within.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{key}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise errors.OUTPUT_UNWRITABLE(path=cache, problem=error.strerror or error) from error


class StoreBuilder:
    """Writes documents in order. What was checkpointed survives the process; what cannot be written is removed."""

    def __init__(self, cache: Path, key: str, dtype: np.dtype[Any]) -> None:
        self._final = cache / key
        self._path = cache / f"{key}.building"
        self._key = key
        self._dtype = dtype
        self._path.mkdir(exist_ok=True)
        self._lengths = self._read_checkpoint()
        self._file = (self._path / "tokens.bin").open("r+b" if self._lengths else "wb")
        self._file.truncate(sum(self._lengths) * dtype.itemsize)
        self._file.seek(0, os.SEEK_END)
        self._saved_at = time.monotonic()

    def __enter__(self) -> StoreBuilder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, OSError):
            # A full disk: what was written so far would only be in the way.
            with contextlib.suppress(OSError):
                self._file.close()
            shutil.rmtree(self._path, ignore_errors=True)
        else:
            self._file.close()

    @property
    def documents(self) -> int:
        """Documents that are in the store: those that a build before this one left, and those appended."""
        return len(self._lengths)

    def append(self, ids: npt.NDArray[np.uint32]) -> None:
        """Adds the next document's token ids. Shape (tokens,)."""
        self._file.write(ids.astype(self._dtype).tobytes())
        self._lengths.append(len(ids))
        if time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Makes the documents appended so far survive a kill or a power cut."""
        self._sync_tokens()
        _write_synced(self._path / "checkpoint.json", _sealed({"lengths": self._lengths}))
        self._saved_at = time.monotonic()

    def finish(self, documents: Sequence[tuple[str, int, str]]) -> None:
        """Completes the store under its name.

        Args:
            documents: Path, repository index and language of each document appended.
        """
        entries = [DocumentEntry(*names, tokens) for names, tokens in zip(documents, self._lengths, strict=True)]
        self._sync_tokens()
        manifest = {
            "format": FORMAT,
            "key": self._key,
            "dtype": self._dtype.str,
            "documents": [list(asdict(entry).values()) for entry in entries],
            "blocks": list(_block_digests(self._path / "tokens.bin")),
        }
        _write_synced(self._path / "manifest.json", _sealed(manifest))
        (self._path / "checkpoint.json").unlink(missing_ok=True)
        _sync_folder(self._path)
        self._path.rename(self._final)
        _sync_folder(self._final.parent)

    def _sync_tokens(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read_checkpoint(self) -> list[int]:
        """Token counts of the documents that an earlier, unfinished build left complete."""
        try:
            saved = json.loads((self._path / "checkpoint.json").read_bytes())
            written = (self._path / "tokens.bin").stat().st_size
        except (OSError, ValueError):
            return []
        if not isinstance(saved, dict) or saved.pop("digest", None) != _digest(saved):
            return []
        lengths: list[int] = saved["lengths"]
        return lengths if sum(lengths) * self._dtype.itemsize <= written else []


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sealed(value: dict[str, Any]) -> bytes:
    return json.dumps({**value, "digest": _digest(value)}, separators=(",", ":")).encode()


def _block_digests(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield hashlib.sha256(block).hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
