from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.planted_secrets import FORMATS, fill
from support.repositories import Write, module

from engine.config import DataSection
from engine.data.preview import preview
from engine.models.catalogue import find_model

FILES: dict[str, str | bytes] = {f"m{i}.py": module(f"m{i}", 60) for i in range(20)}


def test_everything_that_a_screen_shows(write: Write, tmp_path: Path) -> None:
    first, name = module("m0", 60), "\x1b[31m[red]\n.py"
    planted, _ = fill(FORMATS["GitHub"], random.Random(1))
    root = write(
        {
            **FILES,
            name: "import m1\n" + module("odd"),
            "zz.py": first + "# one line more\n",
            "leak.py": f"token = '{planted}'\n" + module("leak"),
            "vendor/x.py": module("x"),
        }
    )
    said: list[str] = []
    report = preview(
        DataSection(repositories=[str(root)]),
        model=find_model("demo"),
        cache=tmp_path / "cache",
        progress=lambda done, total, what: said.append(what),
    )
    assert json.loads(json.dumps(dataclasses.asdict(report)))["files"] == report.files == 22
    assert {row.reason: row.kept_by for row in report.skipped} == {
        "vendored": "data.include=[vendored]",
        "near-duplicate": "data.near_duplicates=keep",
    }
    assert report.skipped_files == 2
    (twin,) = report.near_duplicates
    assert (Path(twin.file).name, Path(twin.like).name, twin.side) == ("zz.py", "m0.py", "left out")
    (secret,) = report.secrets
    assert (Path(secret.file).name, secret.line, secret.hint) == ("leak.py", 1, "ghp_…")
    assert (report.order.by, report.order.imports, report.order.linked) == ("imports", 1, 2)
    assert len(report.order.head) == min(20, report.files - report.held_out.files)
    assert len(report.windows) == 11
    assert report.notes == ()
    assert all(text.isprintable() for text in report.order.head)
    assert set(said) == {"files found", "files read", "bytes tokenised"}


def test_a_model_that_is_not_on_disk_is_counted_with_the_demos_tokenizer(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    data = DataSection(repositories=[str(write(FILES))])
    demo = preview(data, model=find_model("demo"), cache=tmp_path / "cache")
    other = preview(data, model=find_model("qwen2.5-coder-0.5b"), cache=tmp_path / "cache")
    assert other.tokens == demo.tokens
    assert "not on disk" in other.notes[0]
    assert demo.fim is not None
    assert demo.fim.share == 0.5
    assert other.fim is None  # what has no tokens does not rearrange


def test_a_preview_that_is_abandoned_is_gone_on_with(write: Write, tmp_path: Path) -> None:
    class AbandonedError(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if what == "bytes tokenised":
            raise AbandonedError

    data = DataSection(repositories=[str(write(FILES))])
    with pytest.raises(AbandonedError):
        preview(data, model=find_model("demo"), cache=tmp_path / "cache", progress=stop)
    assert not preview(data, model=find_model("demo"), cache=tmp_path / "cache").reused
    assert preview(data, model=find_model("demo"), cache=tmp_path / "cache").reused


def test_no_torch() -> None:
    program = "import sys, engine.data.preview; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout == "False False\n"
