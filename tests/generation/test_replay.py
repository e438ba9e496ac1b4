"""`engine replay`: text of the base model itself, the same from the same seed, written once, fit to be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import status_of
from support.conversations import tokenizer
from support.tiny import tiny_model
from transformers import PreTrainedTokenizerFast

from engine.cli import main
from engine.config import DataSection
from engine.data.dataset import build_dataset
from engine.generation.forward import open_forward
from engine.generation.writer import open_writer
from engine.randomness import derive_seed


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def chat_model(tmp_path: Path) -> tuple[Path, PreTrainedTokenizerFast]:
    words, folder = tokenizer("smollm2"), tmp_path / "model"
    tiny_model("llama", vocab_size=len(words), eos_token_id=words.eos_token_id).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder, words


def replay(capsys: pytest.CaptureFixture[str], model: object, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["replay", "--model", str(model), "--device", "cpu", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    lines = Path(found["path"]).read_text(encoding="utf-8").splitlines()
    assert len(lines) == found["rows"]
    return [json.loads(line) for line in lines]


def test_it_is_written_once_and_drawn_from_the_model(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--tokens", "90", "--longest", "14")
    first = replay(capsys, "demo", *words)
    assert not first["reused"]
    content = Path(first["path"]).read_bytes()
    assert Path(first["path"]).is_relative_to(cache)
    again = replay(capsys, "demo", *words)
    assert (again["reused"], again["path"], again["rows"]) == (True, first["path"], first["rows"])
    other = replay(capsys, "demo", *words, "--seed", "1")
    assert other["path"] != first["path"]
    assert Path(other["path"]).read_bytes() != content
    Path(first["path"]).unlink()
    assert Path(replay(capsys, "demo", *words)["path"]).read_bytes() == content
    # The first text, drawn by hand from the probabilities of the model.
    writer = open_writer("demo", device="cpu", notify=lambda _: None)
    draw = torch.Generator().manual_seed(derive_seed(0, "text", 0))
    with writer.opened("base") as model:
        forward, step, drawn = open_forward(model, 30), writer.encoder.encode_prompt(""), []
        while len(drawn) < 14:
            sums = forward.advance(torch.tensor(step)).double().softmax(-1).cumsum(-1).numpy()
            number = torch.rand((), generator=draw, dtype=torch.float64).item()
            step = [int(np.searchsorted(sums, number * sums[-1], side="right"))]
            if step[0] in writer.encoder.ends:
                break
            drawn += step
    text = writer.encoder.decode(drawn)
    kept = text[: text.rindex("\n") + 1] if "\n" in text and len(drawn) == 14 else text
    assert rows_of(first)[0] == {"prompt": "", "completion": kept}


def test_a_chat_model_writes_requests_and_answers(
    tmp_path: Path, cache: Path, chat_model: tuple[Path, PreTrainedTokenizerFast], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = chat_model
    rows = rows_of(replay(capsys, folder, "--tokens", "400", "--longest", "200"))
    assert rows
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert all(message["content"] for message in row["messages"])
    texts = rows_of(replay(capsys, folder, "--tokens", "60", "--longest", "20", "--template", "none"))
    assert {tuple(row) for row in texts} == {("prompt", "completion")}
    # What was written is trained on beside a repository, at its share.
    path, code = tmp_path / "replay.jsonl", tmp_path / "code"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code.mkdir()
    for number in range(6):
        (code / f"m{number}.py").write_text(f"x{number} = {number}\n" * 20)
    data = DataSection(
        repositories=[str(code)], datasets=[str(path)], mixture=["code=0.9", "replay=0.1"], near_duplicates="keep"
    )
    dataset = build_dataset(data, tokenizer=words, context=512, cache=tmp_path / "stores")
    assert [source.share for source in dataset.summary.sources] == [0.9, 0.1]
    assert dataset.summary.sources[1].loss_tokens > 0


def test_what_cannot_be_written_is_refused(
    tmp_path: Path, cache: Path, chat_model: tuple[Path, PreTrainedTokenizerFast], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = chat_model
    # No request comes to an end within a token.
    assert main(["replay", "--model", str(folder), "--device", "cpu", "--tokens", "9", "--longest", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "so there is nothing of its own to replay" in error
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    assert main(["replay", "--model", "demo", "--out", str(there)]) != 0
    assert there.read_text() == "mine"
    for wrong in (("--tokens", "0"), ("--longest", "0"), ("--seed", "-1")):
        assert status_of(["replay", "--model", "demo", *wrong]) == 2
    assert not list(cache.rglob("*.jsonl"))
