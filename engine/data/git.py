"""Runs git on a repository that may be hostile: its own settings cannot start a program, and it has a time limit."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from engine.quantities import format_seconds

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
        raise GitError(f"no answer within {format_seconds(timeout)}") from None
    except OSError as error:
        raise GitError(error.strerror or "not installed") from None
    if done.returncode != 0:
        raise GitError(_reason(os.fsdecode(done.stderr)))
    return done.stdout


def _reason(said: str) -> str:
    """Returns the last line of what git said, with the one before where that ends in a colon."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason given"]
    return " ".join(lines[-2:] if lines[-2:-1] and lines[-2].endswith(":") else lines[-1:])


def git_command(root: Path, *arguments: str) -> list[str]:
    """The command line of a git command in `root`."""
    excludes = f"core.excludesFile={_excludes_file(str(root), tuple(sorted(_home(os.environ).items())))}"
    settings = [part for setting in (*_SETTINGS, excludes) for part in ("-c", setting)]
    return ["git", "--no-pager", "--no-optional-locks", *settings, "-C", str(root), *arguments]


_SETTINGS = (
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.untrackedCache=false",
    "core.alternateRefsCommand=false",
    "log.showSignature=false",
    "gpg.program=false",
    "protocol.allow=never",
    # The repository is read as text only, so whoever owns it may have it read.
    "safe.directory=*",
)
"Settings on the command line win over the repository's own, which may be hostile."


_SETTING_TIMEOUT = 5.0
"Seconds to wait for one setting, which git reads from two small files."


@functools.cache
def _excludes_file(root: str, home: tuple[tuple[str, str], ...]) -> str:
    """The file of ignore rules that the repository or its user names, else the one that git takes by default."""
    environment = {name: value for name, value in git_environment(os.environ).items() if name != "GIT_CONFIG_GLOBAL"}
    environment |= dict(home)
    for scope in ("--local", "--global"):
        command = ["git", "-c", "safe.directory=*", "-C", root, "config", scope, "--path", "--get", "core.excludesFile"]
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SETTING_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            break
        named = os.fsdecode(done.stdout.removesuffix(b"\n"))
        # A pipe or a device would never end.
        if done.returncode == 0 and named and (Path(root) / named).is_file():
            return str(Path(root) / named)
    config = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return f"{config}/git/ignore"


def _home(inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables by which git finds its user's settings."""
    return {name: inherited[name] for name in ("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL") if name in inherited}


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
