"""Lists a folder's files as git would: tracked ones, and untracked ones that are not ignored.

In a git work tree git itself is asked; elsewhere .gitignore files are read here. git runs with a configuration
under which a repository's own settings cannot start a program, and with a time limit.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from engine.data.gitignore import IgnoreRules
from engine.data.safe_files import Folder, NotRegularError

GIT_TIMEOUT = 120.0
"Seconds that git may take; 100,000 files take it less than one."
_IGNORE_FILE_LIMIT = 1 << 20
_GIT_FOLDERS = frozenset({".git", ".hg", ".svn", ".jj"})


class GitListingError(Exception):
    """git could not list the folder. The message says why."""


def list_files(root: Path) -> tuple[list[PurePosixPath], str]:
    """Paths below `root`, in order, and "git" or, with the reason, how else they were found.

    Paths may name anything but a folder: links, pipes and submodules are told apart by whoever opens them.
    """
    try:
        listed = list_by_git(root)
    except GitListingError as error:
        return sorted(walk(root)), f"its .gitignore files, because git could not list it: {error}"
    return (sorted(walk(root)), "its .gitignore files") if listed is None else (sorted(listed), "git")


def list_by_git(root: Path, timeout: float = GIT_TIMEOUT) -> set[PurePosixPath] | None:
    """What git lists below `root`; None where `root` is in no work tree, or is ignored by the one it is in.

    Raises:
        GitListingError: there is a repository, but git is missing, refuses or takes too long.
    """
    inside = any(os.path.lexists(folder / ".git") for folder in (root, *root.parents))
    if not inside:
        return None
    top = _git(root, timeout, "rev-parse", "--show-toplevel").removesuffix(b"\n")
    if Path(os.fsdecode(top)) not in (root, *root.parents):
        # core.worktree may name any folder: what git would list then is not what was asked for.
        raise GitListingError("its work tree is another folder")
    names = _git(root, timeout, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split(b"\0")
    if names == [b""] and not os.path.lexists(root / ".git"):
        return None
    # A nested repository that is not a submodule is listed as a folder, with a slash at its end.
    return {PurePosixPath(os.fsdecode(name)) for name in names if name}


def _git(root: Path, timeout: float, *arguments: str) -> bytes:
    """What a git command prints, run in `root` as if by a stranger."""
    settings = [part for setting in _settings() for part in ("-c", setting)]
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *settings, "-C", str(root), *arguments],
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitListingError(f"no answer within {timeout:g} s") from None
    except OSError as error:
        raise GitListingError(error.strerror or "not installed") from None
    if done.returncode != 0:
        raise GitListingError((os.fsdecode(done.stderr).strip().splitlines() or ["no reason given"])[-1])
    return done.stdout


def _settings() -> Iterator[str]:
    """Settings on the command line win over the repository's own, which may be hostile."""
    yield "core.fsmonitor=false"
    yield "core.hooksPath=/dev/null"
    yield "core.untrackedCache=false"
    yield "core.alternateRefsCommand=false"
    yield "protocol.allow=never"
    # The repository is read as text only, so whoever owns it may have it read.
    yield "safe.directory=*"
    home = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    yield f"core.excludesFile={home}/git/ignore"


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in inherited.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
    }


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
