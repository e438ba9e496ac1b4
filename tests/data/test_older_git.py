"""A git that does not know GIT_NO_LAZY_FETCH: what a hostile partial clone lacks is not fetched through a program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest
from support.repositories import Write, run_git

from engine.data.git import GitError
from engine.data.history import read_patches
from engine.data.listing import list_files


@pytest.fixture(params=["as installed", "without the variable"])
def git(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is all in which an older git differs here."""
    if request.param == "as installed":
        return
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "git"
    program.write_text(f'#!/bin/sh\nunset GIT_NO_LAZY_FETCH\nexec {shutil.which("git")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def partial_clone(root: Path, mark: Path) -> None:
    """Makes a repository with two commits the clone of a remote that is a program."""
    run_git(root, "init", "-q")
    run_git(root, "add", ".")
    run_git(root, "commit", "-q", "-m", "first")
    (root / "a.py").write_text("x = 1\ny = 2\n")
    run_git(root, "commit", "-q", "-a", "-m", "second")
    for setting, value in (
        ("core.repositoryformatversion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.promisor", "true"),
        ("remote.origin.url", f"ext::sh -c touch% {mark}"),
        ("protocol.ext.allow", "always"),
    ):
        run_git(root, "config", setting, value)


def remove(root: Path, revision: str) -> None:
    name = subprocess.check_output(["git", "-C", str(root), "rev-parse", revision], text=True).strip()
    (root / ".git" / "objects" / name[:2] / name[2:]).unlink()


@pytest.mark.usefixtures("git")
def test_a_missing_file_of_the_history_is_not_fetched(write: Write, tmp_path: Path) -> None:
    root = write({"a.py": "x = 1\n"})
    partial_clone(root, tmp_path / "ran")
    remove(root, "HEAD~1:a.py")
    with pytest.raises(GitError):
        list(read_patches(root, 10, longest=10**6))
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("git")
def test_missing_ignore_rules_are_not_fetched(write: Write, tmp_path: Path) -> None:
    root = write({"a.py": "x = 1\n", ".gitignore": "*.log\n"})
    partial_clone(root, tmp_path / "ran")
    run_git(root, "update-index", "--skip-worktree", ".gitignore")
    remove(root, "HEAD:.gitignore")
    (root / ".gitignore").unlink()
    paths, _ = list_files(root)
    assert PurePosixPath("a.py") in paths
    assert not (tmp_path / "ran").exists()
