"""Token ids of many files in one memory-mapped file, named by what went into it.

    <cache>/<key>/tokens.bin       ids, little-endian, uint16 where the vocabulary allows, else uint32
    <cache>/<key>/borders.bin      first token of each definition that a window may be cut before, int64, ascending
    <cache>/<key>/newlines.bin     line ends in the text of each token id, uint8
    <cache>/<key>/depths.bin       brackets that each token id opens or closes: round and square, then curly, int8
    <cache>/<key>/learnt.bin       whether each token is predicted, a bit each; empty where all are
    <cache>/<key>/weights.bin      first token, int64, and weight in the loss, float64, of each run of predicted tokens
                                   that weigh the same; empty where all weigh 1
    <cache>/<key>/manifest.json    key, type, files with their token counts, SHA-256 of each block and of itself
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
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from engine import durable
from engine.data.conversations import LANGUAGE as CONVERSATION
from engine.data.labels import RUN, LearntTokens, TokenWeights
from engine.data.packing import Layout
from engine.errors.runs import OUTPUT_FULL, OUTPUT_UNWRITABLE

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = 5
"Raised when stores of before cannot be read any more; part of every key."
_BLOCK = 1 << 24
"Bytes that share one checksum."
_CHECKPOINT_SECONDS = 5.0


_TOKENS, _BORDERS, _NEWLINES, _DEPTHS = "tokens.bin", "borders.bin", "newlines.bin", "depths.bin"
_LEARNT, _WEIGHTS = "learnt.bin", "weights.bin"


class StoreDamagedError(Exception):
    """A store does not hold what its manifest says. The message says what differs."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file's place in a store."""

    path: str
    repository: int
    "Index into the list of repositories."
    language: str
    document: int
    "Number of the document that it is a part of: files of one document follow each other, and may see each other."
    tokens: int


@dataclass(frozen=True)
class TokenStore:
    """A complete, checked store.

    Attributes:
        tokens: Ids of all files, one after the other, as a read-only memory map. Shape (tokens,).
        files: In the order of their tokens.
        borders: First token of each definition, ascending, as a read-only memory map.
        newlines: Line ends in the text of each token id. Shape (vocabulary,).
        depths: Brackets that the text of each token id opens. Shape (2, vocabulary).
        learnt: Which tokens are predicted. None: all are, but the first of each document.
        weights: Factor of the loss of each predicted token. None: all are 1.
    """

    path: Path
    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    files: tuple[FileEntry, ...]
    borders: npt.NDArray[np.int64]
    newlines: npt.NDArray[np.uint8]
    depths: npt.NDArray[np.int8] | None = None
    learnt: LearntTokens | None = None
    weights: TokenWeights | None = None
    shortened: int = 0
    "Conversations of which output of tools was left out."

    def loss_tokens(self) -> int:
        """Tokens that are predicted where no document is cut."""
        starts = self.layout().documents
        if self.learnt is None:
            return len(self.tokens) - len(starts)
        return self.learnt.count() - sum(int(self.learnt.among(int(start), int(start) + 1)[0]) for start in starts)

    def conversations(self) -> npt.NDArray[np.int64]:
        """Tokens of each conversation."""
        return np.array([file.tokens for file in self.files if file.language == CONVERSATION], dtype=np.int64)

    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each file starts, and where the last one ends. Shape (files + 1,)."""
        lengths = [0, *(file.tokens for file in self.files)]
        return np.cumsum(np.array(lengths, dtype=np.int64))

    def layout(self) -> Layout:
        """What begins where in `tokens`."""
        starts = self.offsets()[:-1]
        numbers = np.array([file.document for file in self.files], dtype=np.int64)
        new = np.append(True, np.diff(numbers) != 0)[: len(starts)]
        talks = np.array([file.language == CONVERSATION for file in self.files], dtype=bool)
        return Layout(
            documents=starts[new],
            files=starts,
            definitions=self.borders,
            newlines=self.newlines,
            depths=self.depths,
            whole=talks[new] if talks.any() else None,
        )


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
    files = tuple(
        FileEntry(path, repository, sys.intern(language), document, tokens)
        for path, repository, language, document, tokens in manifest.pop("files")
    )
    count = sum(file.tokens for file in files)
    sizes = {_TOKENS: count * dtype.itemsize, _BORDERS: manifest["borders"] * 8, _NEWLINES: manifest["vocabulary"]}
    sizes[_DEPTHS] = 2 * manifest["vocabulary"]
    sizes[_LEARNT] = -(-count // 8) if manifest["masked"] else 0
    sizes[_WEIGHTS] = manifest["runs"] * RUN.itemsize
    named = (
        (_TOKENS, "tokens"),
        (_BORDERS, "borders"),
        (_NEWLINES, "line ends"),
        (_DEPTHS, "brackets"),
        (_LEARNT, "labels"),
        (_WEIGHTS, "weights"),
    )
    for name, what in named:
        try:
            if (path / name).stat().st_size != sizes[name]:
                raise StoreDamagedError(f"its {what} are not as many as they were")
            blocks = list(_block_digests(path / name))
        except OSError as error:
            raise StoreDamagedError(f"its {what} cannot be read: {error.strerror}") from error
        if blocks != manifest["blocks"][name]:
            raise StoreDamagedError(f"its {what} were changed")
    return TokenStore(
        path,
        _mapped(path / _TOKENS, dtype),
        files,
        _mapped(path / _BORDERS, np.dtype("<i8")),
        np.fromfile(path / _NEWLINES, dtype=np.uint8),
        np.fromfile(path / _DEPTHS, dtype=np.int8).reshape(2, -1),
        LearntTokens(_mapped(path / _LEARNT, np.dtype(np.uint8)), 0, count) if manifest["masked"] else None,
        TokenWeights(_mapped(path / _WEIGHTS, RUN), 0, count) if manifest["runs"] else None,
        int(manifest["shortened"]),
    )


def _mapped(path: Path, dtype: np.dtype[Any]) -> Any:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def remove_store(cache: Path, key: str) -> None:
    """Takes a store away, so that it can be built again."""
    shutil.rmtree(cache / key)


@contextlib.contextmanager
def locked(cache: Path, key: str) -> Iterator[None]:
    """Holds the right to build one store, alone among processes, waiting for it if need be.

    Raises:
        EliteError: OUTPUT_FULL or OUTPUT_UNWRITABLE, the cache cannot be written; also for an OSError within.
    """
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds the text of private repositories
        with (cache / f"{key}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if durable.is_full(error):
            raise OUTPUT_FULL(path=cache, free="no space", needed="room for its tokens") from error
        raise OUTPUT_UNWRITABLE(path=cache, problem=error.strerror or error) from error


class StoreBuilder:
    """Writes files in order. What was checkpointed survives the process; what cannot be written is removed."""

    def __init__(self, cache: Path, key: str, dtype: np.dtype[Any], *, masked: bool = False) -> None:
        """Begins a store, or goes on with one that was not completed.

        Args:
            cache, key: Its place.
            dtype: Of the ids.
            masked: Whether some tokens are not predicted.
        """
        self._final = cache / key
        self._path = cache / f"{key}.building"
        self._key = key
        self._dtype = dtype
        self._path.mkdir(exist_ok=True)
        self._masked, self._shortened = masked, 0
        self._runs, self._weight = 0, 1.0
        self._lengths, self._borders, self._rest = self._read_checkpoint()
        self._total = sum(self._lengths)
        self._tokens_file = self._open(_TOKENS, self._total * dtype.itemsize)
        self._borders_file = self._open(_BORDERS, self._borders * 8)
        self._learnt_file = self._open(_LEARNT, self._total // 8 if masked else 0)
        self._weights_file = self._open(_WEIGHTS, self._runs * RUN.itemsize)
        self._saved_at = time.monotonic()

    def _open(self, name: str, size: int) -> BinaryIO:
        file = (self._path / name).open("r+b" if self._lengths else "wb")
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        return file

    def __enter__(self) -> StoreBuilder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A full disk: what was written so far would only be in the way.
        full = kind is not None and issubclass(kind, OSError)
        with contextlib.suppress(OSError) if full else contextlib.nullcontext():
            for file in self._files:
                file.close()
        if full:
            shutil.rmtree(self._path, ignore_errors=True)

    @property
    def _files(self) -> tuple[BinaryIO, ...]:
        return self._tokens_file, self._borders_file, self._learnt_file, self._weights_file

    @property
    def files(self) -> int:
        """Files that are in the store: those that a build before this one left, and those appended."""
        return len(self._lengths)

    def append(
        self,
        ids: npt.NDArray[np.uint32],
        definitions: npt.NDArray[np.int64],
        learnt: npt.NDArray[np.bool_] | None = None,
        weights: npt.NDArray[np.float64] | None = None,
        *,
        shortened: bool = False,
    ) -> None:
        """Adds the next file.

        Args:
            ids: Its tokens. Shape (tokens,).
            definitions: First token of each of its definitions, ascending, counted from its own first one.
            learnt: Whether each token is predicted. Shape (tokens,). None: all are.
            weights: Factor of the loss of each token. Shape (tokens,). None: 1 of all.
            shortened: Whether it is a conversation of which output of tools was left out.
        """
        self._shortened += shortened
        if self._masked:
            bits = np.concatenate([self._rest, np.ones(len(ids), dtype=bool) if learnt is None else learnt])
            bytes_full = len(bits) // 8 * 8
            self._learnt_file.write(np.packbits(bits[:bytes_full]).tobytes())
            self._rest = bits[bytes_full:]
        self._weigh(len(ids), learnt, weights)
        self._tokens_file.write(ids.astype(self._dtype).tobytes())
        self._borders_file.write((definitions + self._total).astype("<i8").tobytes())
        self._lengths.append(len(ids))
        self._borders += len(definitions)
        self._total += len(ids)
        if time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS:
            self.checkpoint()

    def _weigh(
        self, tokens: int, learnt: npt.NDArray[np.bool_] | None, weights: npt.NDArray[np.float64] | None
    ) -> None:
        """Writes where the weight of predicted tokens changes in the next file."""
        places = np.arange(tokens) if learnt is None else np.flatnonzero(learnt)
        if not len(places) or (weights is None and self._weight == 1):
            return
        values = np.ones(len(places)) if weights is None else weights[places]
        changes = np.flatnonzero(values != np.append(self._weight, values[:-1]))
        runs = np.empty(len(changes), dtype=RUN)
        runs["start"], runs["weight"] = places[changes] + self._total, values[changes]
        self._weights_file.write(runs.tobytes())
        self._runs += len(runs)
        self._weight = float(values[-1])

    def checkpoint(self) -> None:
        """Makes the files appended so far survive a kill or a power cut."""
        self._sync_tokens()
        saved: dict[str, Any] = {
            "lengths": self._lengths,
            "borders": self._borders,
            "rest": self._rest.astype(int).tolist(),
        }
        saved["shortened"] = self._shortened
        saved |= {"runs": self._runs, "weight": self._weight.hex()}
        _write_synced(self._path / "checkpoint.json", _sealed(saved))
        self._saved_at = time.monotonic()

    def finish(
        self,
        files: Sequence[tuple[str, int, str, int]],
        newlines: npt.NDArray[np.uint8],
        depths: npt.NDArray[np.int8] | None = None,
    ) -> None:
        """Completes the store under its name.

        Args:
            files: Path, repository index, language and document number of each file appended.
            newlines: Line ends in the text of each token id. Shape (vocabulary,).
            depths: Brackets that the text of each token id opens. Shape (2, vocabulary). None: none.
        """
        self._learnt_file.write(np.packbits(self._rest).tobytes())
        self._sync_tokens()
        _write_synced(self._path / _NEWLINES, newlines.tobytes())
        depths = np.zeros((2, len(newlines)), dtype=np.int8) if depths is None else depths
        _write_synced(self._path / _DEPTHS, depths.tobytes())
        manifest = {
            "format": FORMAT,
            "key": self._key,
            "dtype": self._dtype.str,
            "vocabulary": len(newlines),
            "borders": self._borders,
            "masked": self._masked,
            "shortened": self._shortened,
            "runs": self._runs,
            "files": [[*names, tokens] for names, tokens in zip(files, self._lengths, strict=True)],
            "blocks": {
                name: list(_block_digests(self._path / name))
                for name in (_TOKENS, _BORDERS, _NEWLINES, _DEPTHS, _LEARNT, _WEIGHTS)
            },
        }
        _write_synced(self._path / "manifest.json", _sealed(manifest))
        (self._path / "checkpoint.json").unlink(missing_ok=True)
        durable.sync_path(self._path)
        self._path.rename(self._final)
        durable.sync_path(self._final.parent)

    def _sync_tokens(self) -> None:
        for file in self._files:
            file.flush()
            durable.sync(file.fileno())

    def _read_checkpoint(self) -> tuple[list[int], int, npt.NDArray[np.bool_]]:
        """What an earlier, unfinished build left complete.

        Returns:
            Tokens of each file, the number of their borders, and the labels that fill no byte yet.
        """
        nothing: tuple[list[int], int, npt.NDArray[np.bool_]] = [], 0, np.empty(0, dtype=bool)
        try:
            saved = json.loads((self._path / "checkpoint.json").read_bytes())
            written = (self._path / _TOKENS).stat().st_size // self._dtype.itemsize
            borders_written = (self._path / _BORDERS).stat().st_size // 8
            labels_written = (self._path / _LEARNT).stat().st_size * 8
            runs_written = (self._path / _WEIGHTS).stat().st_size // RUN.itemsize
        except (OSError, ValueError):
            return nothing
        if not isinstance(saved, dict) or saved.pop("digest", None) != _digest(saved):
            return nothing
        lengths: list[int] = saved["lengths"]
        borders: int = saved["borders"]
        rest = np.array(saved["rest"], dtype=bool)
        self._shortened = int(saved["shortened"])
        total = sum(lengths)
        labels = not self._masked or total - len(rest) <= labels_written
        whole = total <= written and borders <= borders_written and labels and saved["runs"] <= runs_written
        if not whole:
            return nothing
        self._runs, self._weight = int(saved["runs"]), float.fromhex(saved["weight"])
        return lengths, borders, rest


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
        durable.sync(file.fileno())
    aside.rename(path)
