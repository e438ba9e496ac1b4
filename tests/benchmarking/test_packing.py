from __future__ import annotations

import json
from pathlib import Path

from engine.cli import main
from engine.commands.bench import _describe_packing


def test_packed_padded_and_one_by_one(tmp_path: Path, capsys) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    for number in range(8):
        text = "".join(f"def f{number}_{line}(x):\n    return x + {line}\n\n" for line in range(2))
        (repository / f"m{number}.py").write_text(text)
    arguments = ["bench", "packing", "--repo", str(repository), "--context", "64", "--context", "128"]
    assert main([*arguments, "--device", "cpu", "--repeats", "1", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert [row["context"] for row in measured["rows"]] == [64, 128]
    for row in measured["rows"]:
        assert min(row[f"{way}_per_second"] for way in ("packed", "padded", "alone")) > 0
        assert row["empty_packed"] < row["empty_padded"]
        assert row["documents"] > row["windows"]
    assert measured["model"] == "demo"
    assert measured["versions"]["torch"]
    assert "gain" in _describe_packing(measured)
