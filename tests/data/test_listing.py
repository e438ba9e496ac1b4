"""Against git itself: what a plain folder's .gitignore files exclude, and that a repository cannot run anything."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.repositories import Write, run_git

from engine.data import listing
from engine.data.git import GitError
from engine.data.listing import list_by_git, list_files, walk

segment = st.sampled_from(["a", "b", "build", "x.py", "y.log", "z"])
tree = st.lists(st.lists(segment, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12, unique=True)
PATTERNS = r"""
a b/ build/ *.log !y.log /x.py a/b **/z !z a/** !a/x.py b/*/z # \#x *.py !x.py ? [xy].* **/build/ !build/
a\ ! \ a/**/ **/ ** /* !/a * !*/ x.??
"""
pattern = st.sampled_from(["", "  ", "y.log ", *PATTERNS.split()])
rules = st.dictionaries(
    st.lists(st.sampled_from(["a", "b", "build"]), max_size=2).map("/".join), st.lists(pattern, max_size=5), max_size=3
)


def plant(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name
        if any(parent.is_file() for parent in path.parents) or path.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(names=tree, ignored=rules)
def test_a_plain_folder_is_read_as_git_would(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], ignored: dict[str, list[str]]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    plant(root, names)
    for folder, patterns in ignored.items():
        if (root / folder).is_dir():
            (root / folder / ".gitignore").write_text("\n".join(patterns) + "\n")
    plain = set(walk(root))
    run_git(root, "init", "-q")
    assert plain == list_by_git(root)


def test_order_of_the_paths_does_not_depend_on_who_lists_them(write: Write) -> None:
    root = write({"b.py": "x", "a/z.py": "x", "a.py": "x", "a/b/c.py": "x", "é.py": "x"})
    plain, how = list_files(root)
    assert how == "its .gitignore files"
    run_git(root, "init", "-q")
    assert list_files(root) == (plain, "git")


def trap(root: Path, name: str) -> str:
    """A program that leaves a mark when it runs."""
    program = root.parent / f"{name}.sh"
    program.write_text(f"#!/bin/sh\ntouch {root.parent}/ran-{name}\n")
    program.chmod(0o755)
    return str(program)


def test_a_repositorys_settings_start_no_program(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({"a.py": "x\n", "b.py": "x\n", ".gitattributes": "*.py filter=evil diff=evil\n"})
    run_git(root, "init", "-q")
    run_git(root, "add", ".")
    settings_of_program = (
        "core.fsmonitor core.sshCommand core.pager core.askPass core.gitProxy core.alternateRefsCommand core.editor "
        "filter.evil.clean filter.evil.smudge filter.evil.process diff.evil.command diff.evil.textconv pager.ls-files "
        "credential.helper sequence.editor uploadpack.packObjectsHook"
    )
    for setting in settings_of_program.split():
        run_git(root, "config", setting, trap(root, setting.replace(".", "-")))
    run_git(root, "config", "core.hooksPath", str(root / "hooks"))
    run_git(root, "config", "alias.ls-files", f"!{trap(root, 'alias')}")
    run_git(root, "config", "extensions.partialClone", "origin")
    run_git(root, "config", "remote.origin.url", f"ext::{trap(root, 'remote')}")
    for folder in (root / "hooks", root / ".git" / "hooks"):
        folder.mkdir(exist_ok=True)
        for hook in ("post-index-change", "fsmonitor-watchman", "pre-commit", "post-checkout"):
            Path(trap(root, f"hook-{hook}")).replace(folder / hook)
    (root / "a.py").write_text("changed\n")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", trap(root, "environment"))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    listed = list_by_git(root)
    assert listed is not None
    assert {path for path in listed if path.parts[0] != "hooks"} == {
        PurePosixPath(name) for name in (".gitattributes", "a.py", "b.py")
    }
    assert not list(root.parent.glob("ran-*"))


def test_listing_writes_nothing(write: Write) -> None:
    root = write({"a.py": "x\n"})
    run_git(root, "init", "-q")
    run_git(root, "add", ".")
    (root / "a.py").write_text("y\n")
    before = {path: path.stat().st_mtime_ns for path in (root / ".git").rglob("*")}
    list_by_git(root)
    assert {path: path.stat().st_mtime_ns for path in (root / ".git").rglob("*")} == before


def test_a_repository_of_another_user_is_read(as_plain_user: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    (as_plain_user / "a.py").write_text("x\n")
    run_git(as_plain_user, "init", "-q")
    os.seteuid(0)
    numbers = subprocess.check_output(["git", "version"], text=True).split()[2].split(".")
    if tuple(map(int, numbers[:2])) < (2, 38):  # which does not take the setting from its command line
        paths, how = list_files(as_plain_user)
        assert paths == [PurePosixPath("a.py")]
        assert how.startswith("its .gitignore files, because git could not list it: ")
    else:
        assert list_by_git(as_plain_user) == {PurePosixPath("a.py")}


@pytest.mark.parametrize("head", ["garbage\n", "ref: refs/heads/none\n"])
def test_a_broken_repository_is_read_as_a_plain_folder(write: Write, head: str) -> None:
    root = write({"a.py": "x\n", ".git/HEAD": head, ".git/config": "[core\n", ".gitignore": "b.py\n", "b.py": "x\n"})
    paths, how = list_files(root)
    assert paths == [PurePosixPath(".gitignore"), PurePosixPath("a.py")]
    assert how.startswith("its .gitignore files, because git could not list it: ")


def test_a_work_tree_that_points_elsewhere_lists_nothing_of_it(write: Write, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "private.py").write_text("x\n")
    root = write({"a.py": "x\n"})
    run_git(root, "init", "-q")
    run_git(root, "config", "core.worktree", str(elsewhere))
    paths, _ = list_files(root)
    assert paths == [PurePosixPath("a.py")]
    (root / ".git").rename(tmp_path / "gitdir")
    (root / ".git").write_text(f"gitdir: {tmp_path}/gitdir\n")
    paths, _ = list_files(root)
    assert PurePosixPath("a.py") in paths
    assert not any("private" in str(path) for path in paths)


def test_git_that_hangs_is_given_up(write: Write) -> None:
    root = write({"a.py": "x\n"})
    run_git(root, "init", "-q")
    (root / ".git" / "info").mkdir(exist_ok=True)
    (root / ".git" / "info" / "exclude").unlink(missing_ok=True)
    os.mkfifo(root / ".git" / "info" / "exclude")
    started = time.monotonic()
    with pytest.raises(GitError, match="no answer"):
        list_by_git(root, timeout=1.0)
    assert time.monotonic() - started < 60


def test_without_git(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write({"a.py": "x\n"})
    run_git(root, "init", "-q")

    def missing(*arguments: object, **options: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(subprocess, "run", missing)
    paths, how = listing.list_files(root)
    assert paths == [PurePosixPath("a.py")]
    assert "No such file" in how


def of_git(folder: Path) -> bool:
    """Whether git itself says that a folder is its own."""
    command = ["git", "-c", "safe.bareRepository=all", "-C", str(folder), "rev-parse", "--is-inside-git-dir"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "true"


@pytest.mark.parametrize(
    "layout", ["in a plain folder", "in a work tree", "beside its work trees", "with a linked HEAD"]
)
def test_no_file_of_git_is_listed_wherever_a_bare_repository_lies(write: Write, layout: str) -> None:
    root = write(
        {"a.py": "x = 1\n", "b.py": "x = 2\n", "sub/HEAD": "no branch\n", "sub/config": "", "sub/objects/c.py": "x"}
    )
    source = root.parent / "source"
    source.mkdir()
    (source / "m.py").write_text("y = 1\n")
    run_git(source, "init", "-q", "-b", "main")
    run_git(source, "add", ".")
    run_git(source, "commit", "-qm", "first")
    if layout == "in a work tree":
        run_git(root, "init", "-q")
    bare = root / (".bare" if layout == "beside its work trees" else "deep/copy.git")
    run_git(root, "clone", "-q", "--bare", str(source), str(bare))
    (bare / "hooks").mkdir(exist_ok=True)
    (bare / "hooks" / "mine.py").write_text("z = 1\n")
    if layout == "beside its work trees":
        (root / ".git").write_text("gitdir: ./.bare\n")
        run_git(root, "worktree", "add", "-q", "tree", "main")
    if layout == "with a linked HEAD":
        (bare / "HEAD").unlink()
        (bare / "HEAD").symlink_to("refs/heads/main")
    assert of_git(bare / "hooks")
    listed, _ = list_files(root)
    assert [path for path in listed if of_git((root / path).parent)] == []
    assert bare.relative_to(root) in map(Path, listed)  # where it is counted
    assert {PurePosixPath(name) for name in ("a.py", "b.py", "sub/HEAD", "sub/objects/c.py")} <= set(listed)
    assert (PurePosixPath("tree/m.py") in listed) == (layout == "beside its work trees")
    for folder in (bare, bare / "hooks", source / ".git" / "hooks"):
        assert listing.is_bare(folder)
    assert not listing.is_bare(source)
    assert not listing.is_bare(root)


def test_what_git_does_not_know_is_named(write: Write) -> None:
    root = write({"a.py": "x = 1\n"})
    run_git(root, "init", "-q")
    run_git(root, "config", "core.repositoryFormatVersion", "1")
    run_git(root, "config", "extensions.neverHeardOf", "true")
    with pytest.raises(GitError, match=r"extension.*neverheardof"):
        list_by_git(root)
    assert "neverheardof" in list_files(root)[1]
