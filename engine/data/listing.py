"""Lists a folder's files as git would: tracked ones, and untracked ones that are not ignored.

In a git work tree git itself is asked; elsewhere .gitignore files are read here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from engine.data.git import GIT_TIMEOUT, GitError, run_git
from engine.data.gitignore import IgnoreRules
from engine.data.safe_files import Folder, NotRegularError

_IGNORE_FILE_LIMIT = 1 << 20
_HEAD = re.compile(rb"ref:\s*refs/|[0-9a-f]{40}")
_GIT_FOLDERS = frozenset({".git", ".hg", ".svn", ".jj"})


def is_bare(root: Path) -> bool:
    """Whether a folder is a repository without a work tree, the .git folder of one, or lies in such a folder."""
    for folder in (root, *root.parents):
        if os.path.lexists(folder / ".git"):
            return False
        if _is_git_folder(folder):
            return True
    return False


def _is_git_folder(folder: Path) -> bool:
    """Whether git keeps a repository in a folder. Tells it as git does: by a HEAD that names a branch or a commit."""
    if not ((folder / "objects").is_dir() and (folder / "config").is_file()):
        return False
    head = folder / "HEAD"
    try:
        if head.is_symlink():  # as git wrote it once, and still reads it
            return str(head.readlink()).startswith("refs/")
        return _HEAD.match(Folder(str(folder)).read(PurePosixPath("HEAD"), 128)) is not None
    except (OSError, NotRegularError):
        return False


def list_files(root: Path) -> tuple[list[PurePosixPath], str]:
    """Paths below `root`, in order, and "git" or, with the reason, how else they were found.

    Paths may name anything: links, pipes, submodules and bare repositories are told apart by whoever opens them.
    """
    try:
        listed = list_by_git(root)
    except GitError as error:
        return _sorted(root, walk(root)), f"its .gitignore files, because git could not list it: {error}"
    if listed is None:
        return _sorted(root, walk(root)), "its .gitignore files"
    return _sorted(root, listed), "git"


def _sorted(root: Path, paths: Iterable[PurePosixPath]) -> list[PurePosixPath]:
    """Sorts paths. A bare repository among them is one path, as a submodule is, in place of git's own files."""
    found = set(paths)
    inner = {path.parent for path in found if path.name == "HEAD" and path.parent.parts}
    inner = {
        folder for folder in inner if not os.path.lexists(root / folder / ".git") and _is_git_folder(root / folder)
    }
    if inner:
        found = {path for path in found if inner.isdisjoint(path.parents)} | inner
    return sorted(found)


def list_by_git(root: Path, timeout: float = GIT_TIMEOUT) -> set[PurePosixPath] | None:
    """What git lists below `root`; None where `root` is in no work tree, or is ignored by the one it is in.

    Raises:
        GitError: there is a repository, but git is missing, refuses or takes too long.
    """
    inside = any(os.path.lexists(folder / ".git") for folder in (root, *root.parents))
    if not inside:
        return None
    top = run_git(root, timeout, "rev-parse", "--show-toplevel").removesuffix(b"\n")
    if Path(os.fsdecode(top)) not in (root, *root.parents):
        # core.worktree may name any folder: what git would list then is not what was asked for.
        raise GitError("its work tree is another folder")
    names = run_git(root, timeout, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split(b"\0")
    if names == [b""] and not os.path.lexists(root / ".git"):
        return None
    # A nested repository that is not a submodule is listed as a folder, with a slash at its end.
    return {PurePosixPath(os.fsdecode(name)) for name in names if name}


# --- without git -------------------------------------------------------------------------------------------


def walk(root: Path) -> Iterator[PurePosixPath]:
    """Paths of everything below `root` but folders, less what .gitignore files exclude. Follows no link."""
    folder = Folder(str(root))
    # git's rule: the nearest .gitignore that has an opinion decides, and nothing below an ignored folder returns.
    pending: list[tuple[PurePosixPath, tuple[_Rules, ...]]] = [(PurePosixPath(), ())]
    while pending:
        here, rules = pending.pop()
        rules = _with_rules_of(folder, here, rules)
        try:
            with os.scandir(f"{root}/{here}") as found:
                entries = list(found)
        except OSError:
            # Named as a path, so that it is counted as unreadable.
            yield here
            continue
        for entry in entries:
            path = here / entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if (is_folder and entry.name in _GIT_FOLDERS) or _is_ignored(path, is_folder, rules):
                continue
            if is_folder:
                pending.append((path, rules))
            else:
                yield path


_Rules = tuple[PurePosixPath, IgnoreRules]


def _with_rules_of(folder: Folder, here: PurePosixPath, rules: tuple[_Rules, ...]) -> tuple[_Rules, ...]:
    try:
        content = folder.read(here / ".gitignore", _IGNORE_FILE_LIMIT)
    except NotRegularError:
        return rules
    return ((here, IgnoreRules(content)), *rules)


def _is_ignored(path: PurePosixPath, is_folder: bool, rules: tuple[_Rules, ...]) -> bool:
    for base, ignore in rules:
        verdict = ignore.verdict(str(path.relative_to(base)), is_folder=is_folder)
        if verdict is not None:
            return verdict
    return False
