from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.repositories import Write, module
from tokenizers import Tokenizer

from engine.config import DataSection
from engine.data.dataset import Dataset, build_dataset
from engine.data.json_lines import object_of, problem_of
from engine.data.repositories import estimate_data_tokens
from engine.data.rows import open_data_set
from engine.errors import EliteError
from engine.tokenization.encoder import demo_encoder

ROWS = [{"path": f"src/a{i}.py", "content": module(f"a{i}"), "stars": i} for i in range(700)]


def write_json(path: Path, rows: list[object] = ROWS) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_parquet(path: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=100)
    return path


def write_stream(path: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=150)
    return path


def write_file(path: Path) -> Path:
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=150)
    return path


def write_saved(path: Path) -> Path:
    """A data set dictionary as `datasets` saves it, with a cache beside that does not belong to it."""
    for split, rows in (("train", ROWS[:500]), ("test", ROWS[500:])):
        (path / split).mkdir(parents=True)
        write_stream(path / split / "data-00000-of-00001.arrow", rows)
        write_stream(path / split / "cache-1234.arrow", rows)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (path / split / "state.json").write_text(json.dumps(state))
        (path / split / "dataset_info.json").write_text("{}")
    (path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return path


WRITERS = {
    "rows.jsonl": write_json,
    "rows.jsonl.gz": write_json,
    "rows.parquet": write_parquet,
    "rows.arrow": write_stream,
    "file.arrow": write_file,
    "saved": write_saved,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_row_once_and_again(tmp_path: Path, name: str) -> None:
    data_set = open_data_set(WRITERS[name](tmp_path / name), "")
    rows = list(data_set.rows())
    texts = [data_set.text(row) for row in rows]
    assert sorted(map(str, texts)) == sorted(row["content"] for row in ROWS)
    for number in (699, 0, 350, 349, 1):
        assert data_set.text(rows[number]) == texts[number]
    assert {row.language for row in rows} == {"Python"}
    assert len({row.path for row in rows}) == 700
    data_set.close()


def build(path: Path, tmp_path: Path, **options: object) -> Dataset:
    tokenizer = Tokenizer.from_str(demo_encoder()._tokenizer.to_str())
    data = DataSection(datasets=[str(path)], **options)
    return build_dataset(data, tokenizer=tokenizer, context=512, cache=tmp_path / "cache")


def test_rows_are_documents_packed_and_held_out(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.jsonl")
    dataset = build(path, tmp_path)
    summary = dataset.summary
    assert len(summary.files) == 700
    assert 30 < summary.held_out_files < 120
    assert len({file.document for file in dataset.store.files}) == 700
    assert dataset.train.figures.waste < 0.02
    assert dataset.train.with_context(4096).figures.documents == 700 - summary.held_out_files
    assert summary.collection.listed_by == {path: "700 of 700 rows, with text in column content"}
    again = build(path, tmp_path)
    assert again.summary.reused
    assert estimate_data_tokens(DataSection(datasets=[str(path)])) > 1000


def test_rows_beside_a_repository(write: Write, tmp_path: Path) -> None:
    root = write({"one.py": module("one")})
    dataset = build(write_json(tmp_path / "rows.jsonl"), tmp_path, repositories=[str(root)])
    assert len(dataset.summary.files) == 701
    assert len(dataset.store.files) == 701


def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path) -> None:
    rows = [3, {"text": 5}, {"text": "x = 1\n" * 40}, {"other": "y"}, [], {"text": "half \ud800 of a letter\n" * 30}]
    path = write_json(tmp_path / "odd.jsonl", rows)
    path.write_bytes(b"not json\n\n" + path.read_bytes() + b'{"text": "cut off')
    data_set = open_data_set(path, "text")
    found = list(data_set.rows())
    assert len(found) == 2
    assert data_set.text(found[0]) == "x = 1\n" * 40
    data_set.close()
    dataset = build(path, tmp_path, dataset_column="text")
    assert len(dataset.summary.files) == 2


@pytest.mark.parametrize(
    ("make", "code", "named"),
    [
        (lambda path: path / "missing.jsonl", "data-set-unusable", "does not exist"),
        (lambda path: path, "data-set-unusable", "holds no"),
        (lambda path: write_json(path / "a.jsonl", [{"x": "y"}]), "data-set-column", "it has x"),
        (lambda path: write_json(path / "a.jsonl", [1, 2]), "data-set-unusable", "no line"),
        (lambda path: write_json(path / "a.csv", []), "data-set-unusable", "kind"),
        (lambda path: write_json(path / "a.parquet", []), "data-set-unusable", "arquet"),
        (lambda path: write_json(path / "a.arrow", []), "data-set-unusable", "a.arrow"),
        (lambda path: write_json(path / "a.jsonl.gz", []).with_suffix(".gz"), "data-set-unusable", "holds no row"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, make: object, code: str, named: str) -> None:
    with pytest.raises(EliteError) as caught:
        build(make(tmp_path), tmp_path / "out")  # type: ignore[operator]
    assert caught.value.code == code
    assert named in str(caught.value)


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    secret = write_json(tmp_path / "outside.jsonl")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.jsonl").symlink_to(secret)
    with pytest.raises(EliteError, match="holds no"):
        open_data_set(folder, "")


@given(st.lists(st.dictionaries(st.sampled_from(["text", "path"]), st.text() | st.none() | st.integers())))
def test_any_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[object]) -> None:
    path = write_json(tmp_path_factory.mktemp("any") / "a.jsonl", rows)
    data_set = open_data_set(path, "text")
    texts = [row["text"] for row in rows if isinstance(row.get("text"), str)]  # type: ignore[attr-defined]
    if not texts:
        with pytest.raises(EliteError, match="data set"):
            list(data_set.rows())
    else:
        assert [data_set.text(row) for row in data_set.rows()] == texts
    data_set.close()


KNOWN = {"text", "content", "code", "body", "prompt_completion", "whole_func_string", "func_code_string"}


def counted(rows: list[object], column: str) -> dict[str, int]:
    """What becomes of rows, by the rule alone."""
    found = {"read": 0, "another column": 0, "no text": 0, "not a row": 0}
    for row in rows:
        if not isinstance(row, dict):
            found["not a row"] += 1
        elif isinstance(row.get(column), str):
            found["read"] += 1
        else:
            found["another column" if any(isinstance(row.get(name), str) for name in KNOWN) else "no text"] += 1
    return {reason: count for reason, count in found.items() if count}


MIXED: list[object] = [
    *({"text": module(f"t{i}")} for i in range(9)),
    *({"content": module(f"c{i}"), "text": None} for i in range(8)),
    *({"body": module(f"b{i}"), "text": 5} for i in range(7)),
    *({"other": module(f"o{i}")} for i in range(6)),
    *({"text": None} for _ in range(5)),
    3,
    ["text"],
]


def test_every_row_of_a_json_file_is_read_or_counted(tmp_path: Path) -> None:
    path = write_json(tmp_path / "rows.jsonl", MIXED)
    path.write_bytes(path.read_bytes() + b'\n\n{"text": "cut off')
    summary = build(path, tmp_path).summary
    wanted = counted([*MIXED, "cut off"], "text")
    assert len(summary.files) == wanted.pop("read") == 9
    assert dict(summary.skipped) == wanted == {"another column": 15, "no text": 11, "not a row": 3}
    assert summary.examples["another column"][0] == f"{path}, row 10"
    named = build(path, tmp_path, dataset_column="content").summary
    assert len(named.files) == 8
    assert dict(named.skipped) == {"no text": 27, "not a row": 3}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_every_row_of_tables_is_read_or_counted(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    parts: list[list[dict[str, object]]] = [
        [{"text": module(f"t{i}") if i % 3 else None} for i in range(12)],
        [{"content": module(f"d{i}"), "path": f"d{i}.py"} for i in range(5)],
        [{"other": "nothing"} for _ in range(4)],
    ]
    for number, rows in enumerate(parts):
        if kind == "parquet":
            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, folder / f"{number}.parquet", row_group_size=3)
        else:
            write_stream(folder / f"{number}.arrow", rows)
    summary = build(folder, tmp_path).summary
    wanted = counted([row for rows in parts for row in rows], "text")
    assert len(summary.files) == wanted.pop("read") == 8
    assert dict(summary.skipped) == wanted == {"another column": 5, "no text": 8}
    data_set = open_data_set(folder, "")
    assert {data_set.text(row) for row in list(data_set.rows())} == {row["text"] for row in parts[0] if row["text"]}
    data_set.close()


def test_a_line_that_is_too_long_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.data.rows._LONGEST_LINE", 4000)
    rows: list[object] = [{"text": "x = 1\n" * 2000}, *({"text": module(f"a{i}", 3)} for i in range(4))]
    path = write_json(tmp_path / "rows.jsonl", rows)
    data_set = open_data_set(path, "")
    found = list(data_set.rows())
    assert [data_set.text(row) for row in found] == [row["text"] for row in rows[1:]]  # type: ignore[index]
    assert data_set.skipped == {"too large": 1}
    data_set.close()


def write_array(path: Path, rows: list[object], indent: int | None = 1) -> Path:
    path.write_text("\ufeff \n" + json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_of_a_json_array(tmp_path: Path, indent: int | None) -> None:
    rows: list[object] = [{"text": f'größe {i} 設定 {{["' * (1 + 3000 * (i % 7 == 0)), "n": [i, {}]} for i in range(40)]
    data_set = open_data_set(write_array(tmp_path / "rows.json", rows, indent), "")
    found = list(data_set.rows())
    wanted = [row["text"] for row in rows]  # type: ignore[index]
    assert [data_set.text(row) for row in found] == wanted
    assert [data_set.text(row) for row in reversed(found)] == wanted[::-1]
    data_set.close()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ROW = st.fixed_dictionaries({}, optional={"text": JSON_VALUES, "content": JSON_VALUES, "other": JSON_VALUES})


@given(st.lists(ROW | JSON_VALUES), st.booleans())
def test_every_row_has_a_fate(tmp_path_factory: pytest.TempPathFactory, rows: list[object], array: bool) -> None:
    folder = tmp_path_factory.mktemp("fates")
    good = {"text": "x = 1"}
    rows = [good, *rows]
    path = write_array(folder / "a.json", rows) if array else write_json(folder / "a.jsonl", rows)
    data_set = open_data_set(path, "")
    read = list(data_set.rows())
    assert len(read) + sum(data_set.skipped.values()) == data_set.total == len(rows)
    for reason, count in data_set.skipped.items():
        assert 1 <= len(data_set.examples[reason]) <= count
    data_set.close()


def test_an_array_that_breaks_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.json", [{"text": module(f"a{i}")} for i in range(9)])
    path.write_bytes(path.read_bytes()[:-300])
    summary = build(path, tmp_path).summary
    assert len(summary.files) == 8
    assert summary.skipped == {"cut off": 1}
    [line] = summary.examples["cut off"]
    assert line.startswith(f"{path}, row 9: ")


@pytest.mark.parametrize(
    ("between", "read", "problem"),
    [
        (" ", 1, "no comma stands before it"),
        (",,", 1, "Expecting value"),
        ("; ", 1, "no comma stands before it"),
        ("]", 1, "something follows the array"),
        (", ", 9, ""),
    ],
)
def test_commas_alone_part_the_rows_of_an_array(tmp_path: Path, between: str, read: int, problem: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f"[{between.join(json.dumps({'text': f'a {i}'}) for i in range(9))},\n]")
    data_set = open_data_set(path, "")
    assert len(list(data_set.rows())) == read
    assert data_set.skipped == ({"cut off": 1} if problem else {})
    assert problem in data_set.examples.get("cut off", [""])[0]


def test_what_is_left_out_is_named_where_too_little_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"} {"text": "b"} {"text": "c"}]')
    with pytest.raises(EliteError, match=r"skipped 1 file: 1 cut off\) fills only"):
        build(path, tmp_path)


def test_rows_are_parted_before_the_first_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[,{"text": "a"}]')
    with pytest.raises(EliteError, match="Expecting value"):
        list(open_data_set(path, "").rows())


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf\r\n"])
def test_objects_of_many_lines(tmp_path: Path, name: str, mark: bytes) -> None:
    rows = [{"text": f"größe {i}", "more": {"x": [i, "}\n{"]}} for i in range(40)]
    content = mark + "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in rows).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    data_set = open_data_set(path, "")
    found = list(data_set.rows())
    assert [data_set.read(row) for row in found] == [row["text"] for row in rows]
    assert data_set.total == 40
    data_set.close()
    path.write_bytes(gzip.compress(content[:-30]) if name.endswith("gz") else content[:-30])
    data_set = open_data_set(path, "")
    assert len(list(data_set.rows())) == 39
    assert data_set.skipped == {"cut off": 1}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", gzip.compress(b'{"text": "a"}\n'), "compressed by gzip, and its name does not end in .gz"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n') + b"more", "not all of it was written by gzip"),
        ("a.jsonl.gz", b'{"text": "a"}\n', "not all of it was written by gzip"),
        ("a.json", b"[]", "it holds no row"),
        ("a.jsonl", b"\n \n", "it holds no row"),
    ],
    ids=["another name", "bytes behind it", "plain text", "an empty array", "blank lines"],
)
def test_files_that_are_no_data_set_say_why(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(EliteError, match=problem):
        list(open_data_set(path, "").rows())


def test_what_is_no_text_differs_from_what_is_missing(tmp_path: Path) -> None:
    rows: list[object] = [{"text": module(f"a{i}")} for i in range(9)]
    rows += [{"text": 5}, {"text": ["x"]}, {"text": None}, {}, {"text": " \n"}]
    summary = build(write_json(tmp_path / "a.jsonl", rows), tmp_path).summary
    assert summary.skipped == {"not text": 2, "no text": 2, "empty": 1}


def test_parts_of_a_text_are_joined(tmp_path: Path) -> None:
    rows: list[object] = [
        {"prompt": f"# add {i}", "completion": f"def add{i}(): ...", "content": "other"} for i in range(3)
    ]
    rows += [{"prompt": "# no answer", "completion": None}]
    for path in (write_json(tmp_path / "a.jsonl", rows), tmp_path / "a.parquet"):
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        data_set = open_data_set(path, "")
        found = list(data_set.rows())
        assert data_set.column == "prompt+completion"
        assert [data_set.text(row) for row in found] == [f"# add {i}\ndef add{i}(): ..." for i in range(3)]
        assert sum(data_set.skipped.values()) == 1
        data_set.close()
    named = open_data_set(tmp_path / "a.jsonl", "completion+prompt")
    assert named.text(next(named.rows())) == "def add0(): ...\n# add 0"
    named.close()


@pytest.mark.parametrize("line", [b'{"text": "a\nb"}', b'{"text": "a', b"{text: 1}"])
def test_what_is_wrong_with_a_line_is_a_sentence(line):
    with pytest.raises(ValueError, match="line 1 column") as caught:
        object_of(line)
    assert " at its character " in problem_of(caught.value)
    assert " at at " not in problem_of(caught.value)


@pytest.mark.parametrize("content", ["{}\n", "[{}, {}]", "{}\n{}\n"])
def test_rows_without_any_column_say_so(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(EliteError, match=r"no column text, content or code; .*; it has no columns$"):
        list(open_data_set(path, "").rows())
