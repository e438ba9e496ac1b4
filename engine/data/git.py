"""Runs git on a repository that may be hostile: its own settings cannot start a program, and it has a time limit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

GIT_TIMEOUT = 120.0
"Seconds that git may take; to list 100,000 files takes it less than one."


class GitError(Exception):
    """git could not do it. The message says why."""


def run_git(root: Path, timeout: float, *arguments: str) -> bytes:
    """What a git command prints, run in `root` as if by a stranger.

    Raises:
        GitError: git is missing, refuses or takes too long.
    """
    try:
        done = subprocess.run(
            git_command(root, *arguments),
            env=git_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"no answer within {timeout:g} s") from None
    except OSError as error:
        raise GitError(error.strerror or "not installed") from None
    if done.returncode != 0:
        raise GitError((os.fsdecode(done.stderr).strip().splitlines() or ["no reason given"])[-1])
    return done.stdout


def git_command(root: Path, *arguments: str) -> list[str]:
    """The command line of a git command in `root`."""
    settings = [part for setting in _settings() for part in ("-c", setting)]
    return ["git", "--no-pager", "--no-optional-locks", *settings, "-C", str(root), *arguments]


def _settings() -> Iterator[str]:
    """Settings on the command line win over the repository's own, which may be hostile."""
    yield "core.fsmonitor=false"
    yield "core.hooksPath=/dev/null"
    yield "core.untrackedCache=false"
    yield "core.alternateRefsCommand=false"
    yield "log.showSignature=false"
    yield "gpg.program=false"
    yield "protocol.allow=never"
    # The repository is read as text only, so whoever owns it may have it read.
    yield "safe.directory=*"
    home = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    yield f"core.excludesFile={home}/git/ignore"


def git_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment for git: nobody's configuration, no questions, nothing fetched."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        # Older git does not know that variable: without a protocol there is nothing that could be fetched.
        "GIT_ALLOW_PROTOCOL": "",
        "LC_ALL": "C",
    }
