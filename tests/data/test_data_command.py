from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.repositories import Write, module

from engine.assets import asset
from engine.cli import main

FILES: dict[str, str | bytes] = {f"m{i}.py": module(f"m{i}") for i in range(8)}


def test_figures_as_json(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write({**FILES, "x.png": b"\0", "yarn.lock": "a\n"})
    arguments = ["data", "--repo", str(root), "--out", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    size = sum(len(text) for text in FILES.values())
    assert first["languages"] == [{"language": "Python", "files": 8, "bytes": size}]
    assert {row["reason"]: (row["files"], row["examples"]) for row in first["skipped"]} == {
        "lock": (1, [f"{root}/yarn.lock"]),
        "binary": (1, [f"{root}/x.png"]),
    }
    assert all(row["explanation"] for row in first["skipped"])
    assert [row["kept_by"] for row in first["skipped"] if row["reason"] == "lock"] == ["data.include=[lock]"]
    assert first["tokens"] == first["train_tokens"] + first["held_out"]["tokens"]
    assert first["held_out"]["files"] >= 1
    assert [row["context"] for row in first["windows"]] == sorted(row["context"] for row in first["windows"])
    assert first["windows"][-1]["train"] == 1
    assert Path(first["store"]).parent == tmp_path / "out"
    assert main(arguments) == 0
    second = json.loads(capsys.readouterr().out)
    assert (first["reused"], second["reused"]) == (False, True)
    assert second["fim"] == {"share": 0.5, "files": 8 - second["held_out"]["files"]}
    assert main([*arguments, "--set", "data.fim=0"]) == 0
    assert json.loads(capsys.readouterr().out)["fim"]["share"] == 0


@pytest.mark.parametrize("count", [3, 40])
def test_too_few_held_out_tokens_are_noted_as_the_table_counts_them(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    root = write({f"m{i}.py": module(f"m{i}") for i in range(count)})
    assert main(["data", "--repo", str(root), "--out", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    few = [note for note in report["notes"] if "held out: too few" in note]
    assert (report["held_out"]["tokens"] < 500) is (count == 3)
    assert len(few) == (count == 3)


def test_a_cache_that_cannot_be_written_is_called_one(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a read-only home folder; /proc takes no folder, from root neither."""
    root = write(FILES)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert main(["data", "--repo", str(root)]) == 2
    told = capsys.readouterr().err
    assert "the cache /proc/nowhere/elite-tui/datasets cannot be written" in told
    assert "engine data --out" in told
    assert "--output" not in told
    assert told.count("\n") == 1


def test_tables_for_people(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write({**FILES, "[red]x[/nonsense].py": module("odd"), "\x1b[31mred\n.py": module("red"), "a.png": b"\0"})
    assert main(["data", "--repo", str(root), "--out", str(tmp_path / "[/out]")]) == 0
    shown = capsys.readouterr().out
    assert "skipped 1 file: 1 binary" in shown
    assert "[/out]" in shown
    assert "\x1b" not in shown
    assert "1,048,576" in shown
    assert "fill-in-the-middle in 50% of " in shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--repo"),
        (["--repo", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--repo", ".", "--set", "data.max_file_bytes=0"], "data.max_file_bytes"),
        (["--repo", ".", "--set", "nonsense"], "nonsense"),
        (["--repo", ".", "--model", "no-such-model"], "no-such-model"),
    ],
)
def test_wrong_usage(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert named in line


def test_output_that_cannot_be_written(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["data", "--repo", str(write(FILES)), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_options_of_data_reach_the_collection(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write({**FILES, "big.py": module("big", 600)})
    overrides = ["--set", "data.max_file_bytes=5000", "--set", "data.held_out_fraction=0.4"]
    assert main(["data", "--repo", str(root), "--out", str(tmp_path / "out"), "--json", *overrides]) == 0
    (row,) = json.loads(capsys.readouterr().out)["skipped"]
    assert (row["reason"], row["files"]) == ("too large", 1)


def test_another_models_tokenizer(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(asset("demo-model"), model)
    (model / "model.safetensors").touch()
    root = write(FILES)
    counts = []
    for name in ("demo", str(model)):
        arguments = ["data", "--repo", str(root), "--out", str(tmp_path / "out"), "--json", "--model", name]
        assert main(arguments) == 0
        counts.append(json.loads(capsys.readouterr().out)["tokens"])
    assert counts[0] == counts[1]


def test_needs_neither_torch_nor_transformers(write: Write, tmp_path: Path) -> None:
    program = (
        "import sys; from engine.cli import main; status = main(sys.argv[1:]);"
        "print([name for name in ('torch', 'transformers') if name in sys.modules], file=sys.stderr)"
    )
    arguments = ["data", "--repo", str(write(FILES)), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stderr == "[]\n"


def test_a_finding_is_allowed_by_the_fingerprint_that_is_shown(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write({**FILES, "settings.py": 'password = "k9Xq2LmZ7w"\ntoken = "Zt8vQ1mN4cRw7yBd"\n'})
    arguments = ["data", "--repo", str(root), "--out", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    prints = {row["line"]: row["fingerprint"] for row in first["secrets"]}
    assert set(prints) == {1, 2}
    assert main([*arguments, "--allow-secret", prints[1]]) == 0
    second = json.loads(capsys.readouterr().out)
    assert [row["line"] for row in second["secrets"]] == [2]
    # Another text is another store.
    assert second["store"] != first["store"]
    assert main(arguments[:-1]) == 0
    shown = capsys.readouterr().out
    assert prints[1] in shown
    assert "--allow-secret" in shown
    assert "k9Xq2LmZ7w" not in shown


def test_a_token_in_a_path_reaches_neither_store_nor_report(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "ghp_aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dE3fG6"
    root = write({**FILES, f"{token}.py": module("x"), f"{token}/y.bin": b"\0\0"})
    assert main(["data", "--repo", str(root), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert token not in capsys.readouterr().out
    stored = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert stored
    assert all(token.encode() not in file.read_bytes() for file in stored)
