"""Trees made to trap a reader: nothing outside is read, nothing blocks, nothing raises."""

from __future__ import annotations

import os
import socket
from pathlib import Path, PurePosixPath

import pytest
from support.repositories import Write, module, run_git

from engine.data.collect import collect
from engine.data.safe_files import Folder, NotRegularError

GOOD: dict[str, str | bytes] = {"a.py": module("a"), "b.py": module("b")}


def names(root: Path, **skipped: int) -> list[str]:
    collection = collect([root], max_file_bytes=1_000_000)
    assert collection.skipped == skipped
    return [str(file.path) for file in collection.files]


@pytest.fixture(params=["plain", "git"])
def tree(request: pytest.FixtureRequest, write: Write) -> Path:
    root = write(GOOD)
    if request.param == "git":
        run_git(root, "init", "-q")
    return root


def test_links(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.py").write_text(module("secret"))
    (tree / "file.py").symlink_to(outside / "secret.py")
    (tree / "folder").symlink_to(outside, target_is_directory=True)
    (tree / "loop").symlink_to(tree, target_is_directory=True)
    (tree / "self.py").symlink_to("self.py")
    (tree / "broken.py").symlink_to("nowhere.py")
    (tree / "inside.py").symlink_to("a.py")
    collection = collect([tree], max_file_bytes=1_000_000)
    assert [str(file.path) for file in collection.files] == ["a.py", "b.py"]
    assert collection.skipped == {"symlink": 6}


def test_tracked_file_below_what_became_a_link(write: Write, tmp_path: Path) -> None:
    root = write({**GOOD, "folder/secret.py": module("inside")})
    run_git(root, "init", "-q")
    run_git(root, "add", ".")
    (root / "folder").rename(tmp_path / "outside")
    (root / "folder").symlink_to(tmp_path / "outside", target_is_directory=True)
    collection = collect([root], max_file_bytes=1_000_000)
    assert [str(file.path) for file in collection.files] == ["a.py", "b.py"]
    assert collection.skipped["symlink"] >= 1


def test_pipes_sockets_and_devices(tree: Path) -> None:
    os.mkfifo(tree / "pipe.py")
    os.mkfifo(tree / ".gitignore.py")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "socket.py"))
        (tree / "null.py").symlink_to("/dev/zero")
        skipped = collect([tree], max_file_bytes=1_000_000).skipped
    # git does not list pipes and sockets at all.
    assert skipped in ({"symlink": 1}, {"special": 3, "symlink": 1})


def test_pipe_where_rules_are_expected(write: Write) -> None:
    root = write(GOOD)
    os.mkfifo(root / ".gitignore")
    assert names(root, special=1) == ["a.py", "b.py"]


@pytest.mark.parametrize(
    "name",
    [
        b"new\nline.py",
        b"\x1b[31mred.py",
        b"[bold]x[nope].py",
        b"\xff\xfe.py",
        "é\u202e.py".encode(),
        b"-rf.py",
        b" .py",
    ],
)
def test_names(tree: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/" + name)).write_text(module("odd"))
    assert sorted(names(tree)) == sorted(["a.py", "b.py", os.fsdecode(name)])


def test_deep_and_long(tree: Path) -> None:
    here = os.open(tree, os.O_RDONLY)
    try:
        for _ in range(60):
            os.mkdir("d" * 100, dir_fd=here)
            below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(os.open("x.py", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    finally:
        os.close(here)
    collection = collect([tree], max_file_bytes=1_000_000)
    assert [str(file.path) for file in collection.files] == ["a.py", "b.py"]
    assert sum(collection.skipped.values()) <= 1


def test_a_link_planted_after_listing_is_not_followed(write: Write, tmp_path: Path) -> None:
    root = write({"folder/a.py": "x"})
    (tmp_path / "outside.py").write_text("secret")
    folder = Folder(str(root))
    assert folder.read(PurePosixPath("folder/a.py"), 10) == b"x"
    (root / "folder/a.py").unlink()
    (root / "folder/a.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(NotRegularError, match="symlink"):
        folder.read(PurePosixPath("folder/a.py"), 10)


@pytest.mark.parametrize("path", ["../outside.py", "folder/../../outside.py", "/etc/passwd"])
def test_paths_that_leave_the_folder_are_refused(write: Write, path: str) -> None:
    root = write({"folder/a.py": "x"})
    (root.parent / "outside.py").write_text("secret")
    with pytest.raises(NotRegularError):
        Folder(str(root)).read(PurePosixPath(path), 10)


def test_an_index_that_names_what_git_forbids(write: Write) -> None:
    root = write(GOOD)
    run_git(root, "init", "-q")
    run_git(root, "add", ".")
    (root.parent / "outside.py").write_text(module("outside"))
    index = root / ".git" / "index"
    # Same length, so the index stays readable: "b.py" becomes "../b" where git lets it pass.
    index.write_bytes(index.read_bytes().replace(b"b.py", b"../b"))
    collection = collect([root], max_file_bytes=1_000_000) if _lists(root) else None
    assert collection is None or all(".." not in file.path.parts for file in collection.files)


def _lists(root: Path) -> bool:
    return len([path for path in root.iterdir() if path.suffix == ".py"]) >= 2


def test_many_files(tree: Path) -> None:
    for folder in range(10):
        (tree / f"d{folder}").mkdir()
        for file in range(300):
            (tree / f"d{folder}" / f"f{file}.py").write_text(f"x = {file}\n")
    assert len(names(tree)) == 3002
