"""A repository made to do harm: everything that a file system allows and a reader may not expect."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from engine.data.collect import collect

OUTSIDE = "this line lies outside the repository"

NAMES = (
    b"[@click=quit]x.py",
    b"[bold red].py",
    b"[[]].py",
    b"\x1b[2J\x1b]0;owned\x07.py",
    b"a\nb.py",
    b"tab\tand\rreturn.py",
    b" leading and trailing .py",
    b"-rf.py",
    b"$(id).py",
    b"`id`;&&|.py",
    b"'quotes\".py",
    b"%s%n{0}.py",
    b"..\xe2\x88\x95..\xe2\x88\x95up.py",  # slashes that are none
    "\u202egnp.py".encode(),  # right to left
    "\u200b\ufeff.py".encode(),  # no width at all
    b"\xff\xfe.py",  # not UTF-8
    b"lone \xed\xa0\x80.py",  # half of a surrogate pair
    "e\u0301.py".encode(),
    "\u00e9.py".encode(),  # the same to the eye, composed
    b"Case.py",
    b"case.py",
    b"CASE.PY",
    b"CON.py",
    b"n" * 250 + b".py",
)
"""Names of files with source text, each of which must be read."""


def plant(root: Path, sources: Sequence[str]) -> int:
    """Fills a folder; returns how many cases it holds. A sound file of every name is learnt, and nothing else is read.

    Args:
        root: A folder that does not exist yet.
        sources: Texts of the sound files.

    Raises:
        AssertionError: a file was found or left out that should not have been.
    """
    odd = root / "[bold red]"
    odd.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        text = f"{sources[number % len(sources)]}\n# {number} \x1b[31m [bold]{name!r}[/]\n"
        Path(os.fsdecode(os.fsencode(odd) + b"/" + name)).write_text(text)
    cases = (
        len(NAMES) + _plant_links(root) + _plant_no_files(root) + _plant_contents(root) + _plant_depths(root, sources)
    )
    found = {os.fsencode(file.path.name) for file in collect([root], max_file_bytes=1 << 20).files}
    assert set(NAMES) <= found, f"not read: {set(NAMES) - found}"
    assert b"deep.py" in found
    assert not [name for name in found if name.startswith(b"not-")], found
    return cases


def _plant_links(root: Path) -> int:
    outside = root.parent / "outside.py"
    outside.write_text(f"# {OUTSIDE}\nx = 1\n" * 50)
    links = {
        "loop": root,
        "not-self.py": "not-self.py",
        "not-there.py": "nowhere.py",
        "not-ours.py": "/etc/passwd",
        "not-inside.py": outside,
        "not-endless.py": "/dev/zero",
        "not-a.py": "not-b.py",
        "not-b.py": "not-a.py",
        "up": "..",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    for depth in ("x", "y"):
        (root / "mutual" / depth).mkdir(parents=True)
    (root / "mutual/x/to-y").symlink_to("../y")
    (root / "mutual/y/to-x").symlink_to("../x")
    return len(links) + 2


def _plant_no_files(root: Path) -> int:
    os.mkfifo(root / "not-a-pipe.py")
    os.mkfifo(root / ".gitignore")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)  # a socket's path must be short
        server.bind("not-a-socket.py")
        os.chdir(here)
    cases = 3
    with contextlib.suppress(PermissionError):  # only root may make a device
        os.mknod(root / "not-a-device.py", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        cases += 1
    (root / "not-a-file.py").mkdir()
    return cases + 1


def _plant_contents(root: Path) -> int:
    (root / "not-text.py").write_bytes(bytes(range(256)) * 500)
    (root / "not-lines.py").write_text("x = 1; " * 100_000)
    (root / "not-filled.py").write_bytes(bytes(5000))
    (root / "empty.py").touch()
    with (root / "not-small.py").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte, of which nothing is on the disk
    cases = 5
    if os.geteuid():  # root may read anything
        (root / "not-readable.py").write_text("x = 1\n")
        (root / "not-readable.py").chmod(0)
        (root / "shut").mkdir(mode=0)
        cases += 2
    return cases


def _plant_depths(root: Path, sources: Sequence[str]) -> int:
    deep = root
    for _ in range(60):
        deep /= "d"
    deep.mkdir(parents=True)
    (deep / "deep.py").write_text(sources[0] + "# deep\n")
    # Deeper than a path may be long: made, and entered, one folder at a time.
    here = os.open(root, os.O_RDONLY)
    for _ in range(50):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("not-within-reach.py", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    return 2
