"""Every file of a data set's folder is read or counted, whatever it is called; against a list of the folder by hand."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.json
import pytest
from support.repositories import module

from engine.config import DataSection
from engine.data.json_lines import object_of
from engine.data.rows import DataSet, open_data_set
from engine.data.sources import open_sources
from engine.errors import EliteError


def line(number: int) -> str:
    return json.dumps({"text": module(f"m{number}", 9)}) + "\n"


def texts(path: Path) -> list[str]:
    data_set = open_data_set(path, "")
    found = [str(data_set.text(row)) for row in list(data_set.rows())]
    data_set.close()
    return found


def reasons(data_set: DataSet) -> dict[str, str]:
    return {str(file.relative_to(data_set.path)): reason for file, reason in data_set.others}


def test_every_file_of_a_folder_is_read_or_counted(tmp_path: Path) -> None:
    files = {
        "a.jsonl": line(0).encode(),
        "B.JSONL": line(1).encode(),
        "sub/c.JSON.GZ": gzip.compress(f"[{line(2)}]".encode()),
        "d.jsonl.bz2": bz2.compress(line(3).encode()),
        "e.csv": b"text\nx\n",
        "sub/README.md": b"# About\n",
        ".cache/x.lock": b"",
        ".git/config": b"",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "f.jsonl").symlink_to("a.jsonl")
    (tmp_path / "g.jsonl").symlink_to("gone")
    data_set = open_data_set(tmp_path, "")
    read = [str(file.relative_to(tmp_path)) for file in data_set.files]
    assert read == ["B.JSONL", "a.jsonl", "sub/c.JSON.GZ"]
    assert reasons(data_set) == {
        "d.jsonl.bz2": "not rows",
        "e.csv": "not rows",
        "f.jsonl": "symlink",
        "g.jsonl": "symlink",
        "sub/README.md": "not rows",
    }
    assert texts(tmp_path) == [module(f"m{number}", 9) for number in (1, 0, 2)]
    with open_sources(DataSection(datasets=[str(tmp_path)])) as sources:
        assert sources.collection.skipped == {"not rows": 3, "symlink": 2}
        assert str(tmp_path / "e.csv") in sources.collection.examples["not rows"]


def test_a_snapshot_in_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "datasets--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number in range(3):
        (blobs / f"blob{number}").write_text(line(number))
    (snapshot / "data").mkdir()
    (snapshot / "data" / "0.jsonl").symlink_to("../../../blobs/blob0")
    (snapshot / "1.jsonl").symlink_to(blobs / "blob1")
    (tmp_path / "outside").write_text(line(2))
    (snapshot / "2.jsonl").symlink_to(tmp_path / "outside")
    assert sorted(texts(snapshot)) == [module(f"m{number}", 9) for number in range(2)]
    assert reasons(open_data_set(snapshot, "")) == {"2.jsonl": "symlink"}
    (snapshot / "1.jsonl").unlink()
    (snapshot / "data" / "0.jsonl").unlink()
    with pytest.raises(EliteError, match=r"but links, such as 2\.jsonl"):
        open_data_set(snapshot, "")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", bz2.compress(b"{}\n"), "compressed by bzip2"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd" + bytes(20), "compressed by zstd"),
        ("a.jsonl", b"PAR1" + bytes(20), "Parquet"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_a_name_that_does_not_tell_the_content_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EliteError, match=said):
        list(open_data_set(tmp_path / name, "").rows())


TWICE = [
    '{"text": "a", "text": "b"}',
    '{"text": "a", "x": {"y": "c", "y": "d"}}',
    '{"text": "a", "x": [{"y": ["c"], "y": []}]}',
]


@pytest.mark.parametrize("twice", TWICE)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_that_names_a_field_twice_is_counted_as_other_readers_refuse_it(
    tmp_path: Path, twice: str, name: str
) -> None:
    with pytest.raises(pyarrow.ArrowInvalid):
        pyarrow.json.read_json(io.BytesIO(twice.encode()))
    rows = [line(0).strip(), twice, line(1).strip()]
    (tmp_path / name).write_text("\n".join(rows) if name == "a.jsonl" else f"[{','.join(rows)}]")
    data_set = open_data_set(tmp_path / name, "")
    assert [data_set.text(row) for row in data_set.rows()] == [module(f"m{number}", 9) for number in range(2)]
    assert data_set.skipped == {"not a row": 1}
    repeated = "y" if "y" in twice else "text"
    assert data_set.examples["not a row"] == [f"{tmp_path / name}, row 2: it names {repeated!r} twice"]
    data_set.close()


@pytest.mark.parametrize("first", ['"a"', "5", "null", "true"])
def test_of_a_field_that_is_given_twice_the_last_is_read_where_no_text_is_lost(tmp_path: Path, first: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": {first}, "text": "a"}}\n')
    assert texts(tmp_path / "a.jsonl") == ["a"]


def test_threads_that_read_rows_at_once_do_not_mix_what_they_find() -> None:
    once = json.dumps({"messages": [{"content": str(number)} for number in range(300)]}).encode()
    twice = b'{"messages": [' + b", ".join(b'{"content": "%d", "content": "x"}' % n for n in range(300)) + b"]}"
    expected = json.loads(once)
    read: list[bool] = []
    refused: list[bool] = []

    def reads() -> None:
        read.extend(object_of(once) == expected for _ in range(1000))

    def refuses() -> None:
        for _ in range(1000):
            with pytest.raises(ValueError, match="twice"):
                object_of(twice)
            refused.append(True)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(each) for each in (reads, refuses, reads, refuses)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
    assert (sum(read), len(refused)) == (2000, 2000)
