"""Commits as documents: a message and the changes that it speaks of, without names, addresses and dates.

git prints the changes as text and runs nothing for it. A change to a file that is held out, or that is not learnt, is
left out of its commit; so is one that shows lines of a held-out file, added, removed or around these, wherever they
lay then.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from engine.data.collect import SourceFile
from engine.data.git import GIT_TIMEOUT, GitError, git_command, git_environment, run_git
from engine.data.near_duplicates import telling_lines
from engine.data.shared_runs import runs_of, runs_of_text

LANGUAGE = "Diff"
_OPTIONS = (
    *("--patch", "--no-color", "--no-ext-diff", "--no-textconv", "--find-renames", "--no-merges", "--no-notes"),
    *("--no-mailmap", "--relative", "--submodule=short", "--src-prefix=a/", "--dst-prefix=b/", "--unified=3"),
    *("--diff-algorithm=myers", "--no-indent-heuristic"),
)
_TRAILER = re.compile(r"^(?:[A-Z][\w-]+-by|Change-Id|Cc|CC|Reported-and-tested-by|git-svn-id): ")
_ADDRESS = re.compile(r"[\w.+-]{1,200}@[\w-]+(?:\.[\w-]+)+")
_QUOTED = re.compile(r'\\(?:([abfnrtv"\\])|([0-7]{3}))')
_ESCAPES = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, '"': 34, "\\": 92}


_FEWEST_LINES = 3
_MOST_KNOWN = 0.5
"Share of a change's telling lines that held-out files may hold; it counts from _FEWEST_LINES such lines on."


@dataclass(frozen=True, slots=True)
class Commit(SourceFile):
    """One commit of a repository; `path` is "commits/<hash>"."""

    alone: ClassVar[bool] = True
    revision: str = ""
    "Its full hash."
    files: tuple[str, ...] = ()
    "Files whose changes belong to its text."


@dataclass(frozen=True)
class Change:
    """What a commit did to one file."""

    paths: frozenset[str]
    "The file's path after it, and before."
    text: str
    "From its --- line on."

    def lines(self, signs: str) -> list[str]:
        """Lines that begin with one of the signs: "+" added, "-" removed, " " around these; without the sign."""
        body = self.text.split("\n")[2:]
        return [line[1:] for line in body if line[:1] and line[0] in signs]


@dataclass(frozen=True)
class Patch:
    """A commit as git prints it."""

    revision: str
    message: str
    changes: tuple[Change, ...]

    def text(self, files: tuple[str, ...]) -> str:
        """The document: the message, and the changes to the given files."""
        wanted = frozenset(files)
        kept = [change.text for change in self.changes if change.paths & wanted]
        return "\n".join([self.message, "", *kept])


class KnownText:
    """What held-out files hold today, by which a change gives them away.

    Args:
        texts: Of the files.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        lines, runs = [np.empty(0, dtype=np.uint32)], [np.empty(0, dtype=np.uint64)]
        for text in texts:
            lines.append(telling_lines(text.split("\n")))
            runs.append(runs_of_text(text))
        self._lines, self._runs = np.unique(np.concatenate(lines)), np.unique(np.concatenate(runs))

    def holds(self, change: Change) -> bool:
        """Whether a change shows six lines of a held-out file, or half of what it adds or removes stands in one."""
        # What stood there before, and what stands there after it.
        for signs in ("- ", "+ "):
            runs = runs_of(line.encode("utf-8", "replace") for line in change.lines(signs))
            if np.isin(runs, self._runs).any():
                return True
        for signs in ("+", "-", " "):
            told = telling_lines(change.lines(signs))
            if len(told) >= _FEWEST_LINES and float(np.isin(told, self._lines).mean()) >= _MOST_KNOWN:
                return True
        return False


def read_patches(
    root: Path, count: int, *, longest: int, revision: str = "HEAD", timeout: float = GIT_TIMEOUT
) -> Iterator[Patch]:
    """The latest commits below a folder, newest first; merges and those with more than `longest` bytes are left out.

    Raises:
        GitError: no repository, no commits, git refuses, or takes longer than `timeout`.
    """
    mark = secrets.token_hex(16)  # what no commit can hold, so that no message passes for the next commit
    command = git_command(
        root, "log", f"--max-count={count}", f"--format=format:{mark} %H%n%B%n{mark}", *_OPTIONS, revision, "--", "."
    )
    with tempfile.TemporaryFile() as complaints, _process(command, complaints, timeout) as process:
        assert process.stdout is not None
        start, end = f"{mark} ".encode(), mark.encode()
        lines: list[bytes] = []
        size = 0
        for line in process.stdout:
            if line.startswith(start):
                if lines and size <= longest:
                    yield _patch(lines, start, end)
                lines, size = [], 0
            size += len(line)
            if size <= longest:
                lines.append(line)
        if process.wait() != 0:
            complaints.seek(0)
            raise GitError((os.fsdecode(complaints.read(4096)).strip().splitlines() or ["no answer in time"])[-1])
        if lines and size <= longest:
            yield _patch(lines, start, end)


@contextlib.contextmanager
def _process(command: list[str], complaints: object, timeout: float) -> Iterator[subprocess.Popen[bytes]]:
    """Git at work, ended after `timeout` seconds, or when its output is not wanted any more."""
    environment = git_environment(os.environ)
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,  # type: ignore[call-overload]
        )
    except OSError as error:
        raise GitError(error.strerror or "not installed") from None
    alarm = threading.Timer(timeout, process.kill)
    alarm.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        alarm.cancel()


def has_history(root: Path) -> bool:
    """Whether git knows commits of a folder."""
    try:
        return bool(run_git(root, GIT_TIMEOUT, "rev-parse", "--verify", "--quiet", "HEAD"))
    except GitError:
        return False


def commit_of(root: Path, patch: Patch, keeps: Callable[[Change], bool]) -> tuple[Commit, str] | None:
    """A commit and its text, of the changes that are kept; None if none is."""
    kept = [change for change in patch.changes if keeps(change)]
    files = tuple(sorted({path for change in kept for path in change.paths}))
    # A path that one change keeps and another one drops would bring the dropped one back.
    dropped = {path for change in patch.changes if not keeps(change) for path in change.paths}
    files = tuple(path for path in files if path not in dropped)
    text = patch.text(files)
    if not files or not text.strip():
        return None
    name, size = f"commits/{patch.revision[:12]}", len(text.encode("utf-8", "replace"))
    return Commit(root, name, LANGUAGE, size, patch.revision, files), text


def read_commit(commit: Commit, longest: int) -> str | None:
    """A commit's text once more; None where it is gone."""
    try:
        patch = next(read_patches(commit.repository, 1, longest=longest, revision=commit.revision), None)
    except GitError:
        return None
    return patch.text(commit.files) if patch is not None and patch.revision == commit.revision else None


# --- what git prints ---------------------------------------------------------------------------------------


def _patch(lines: list[bytes], start: bytes, end: bytes) -> Patch:
    revision = lines[0][len(start) :].strip().decode("ascii", "replace")
    message_end = next((index for index, line in enumerate(lines) if line.strip() == end), len(lines))
    message = [line.decode("utf-8", "replace").rstrip() for line in lines[1:message_end]]
    kept = [_ADDRESS.sub("…", line) for line in message if not _TRAILER.match(line)]
    changes = []
    change: list[str] = []
    for raw in [*lines[message_end + 1 :], b"diff --git "]:
        line = raw.decode("utf-8", "replace").removesuffix("\n")
        if line.startswith("diff --git "):
            if (made := _change(change)) is not None:
                changes.append(made)
            change = []
        else:
            change.append(line)
    return Patch(revision, "\n".join(kept).strip(), tuple(changes))


def _change(lines: list[str]) -> Change | None:
    """A change from git's lines about it; None for files that are not text, or only renamed."""
    body = next((index for index, line in enumerate(lines) if line.startswith("--- ")), None)
    if body is None or body + 1 >= len(lines) or not lines[body + 1].startswith("+++ "):
        return None
    names = [_name(lines[body][4:], "a/"), _name(lines[body + 1][4:], "b/")]
    paths = frozenset(name for name in names if name)
    text = "\n".join(lines[body:]).rstrip("\n")
    return Change(paths, text) if paths else None


def _name(written: str, prefix: str) -> str:
    """A path as git writes it: quoted where it holds odd letters; "" for /dev/null."""
    written = written.removesuffix("\t")
    if written.startswith('"'):
        raw = _QUOTED.sub(lambda found: chr(_ESCAPES[found[1]] if found[1] else int(found[2], 8)), written[1:-1])
        written = os.fsdecode(raw.encode("latin-1", "replace"))
    return written.removeprefix(prefix) if written.startswith(prefix) else ""
