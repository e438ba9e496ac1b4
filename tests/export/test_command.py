"""`engine export`, as a person runs it; and the card that comes with the files."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from support.exports import finished_run, save_base

from engine import cli
from engine.export.exporting import export

REPORT = """# tiny

Fine-tuned on `/home/somebody/secret-project`. The run completed.

## Held-out perplexity

| | perplexity |
|---|---|
| base model | 8.20 |
| with the adapter | 5.10 |

## Data

| | |
|---|---|
| files | 120 to train on, 13 held out |

## Settings

| | |
|---|---|
| base model | `/home/somebody/models/tiny`, bf16 |
"""


def test_json_is_one_document(qwen_run, tmp_path, capsys):
    status = cli.main(["export", str(qwen_run.path), "--to", "adapter", "--output", str(tmp_path / "out"), "--json"])
    written = json.loads(capsys.readouterr().out)
    assert status == 0
    assert written["path"] == str(tmp_path / "out")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= set(written["files"])


def test_people_are_told_what_was_written_and_how_it_was_merged(qwen_run, tmp_path, capsys):
    arguments = ["export", str(qwen_run.path), "--to", "gguf", "--output", str(tmp_path / "out"), "--check"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "tiny-f32.gguf" in said.err
    assert "original weights" in said.err
    assert "100% of the most likely tokens are the same" in said.err


def test_an_error_is_one_line_with_its_exit_code(qwen_run, tmp_path, capsys):
    arguments = ["export", str(qwen_run.path), "--to", "adapter", "--output", str(tmp_path)]
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_place_it_goes_below_the_run(tmp_path, qwen_run):
    run = type(qwen_run)(tmp_path / qwen_run.id)
    shutil.copytree(qwen_run.path, run.path)
    assert export(run, "merged", dtype="bf16").path == run.path / "exports" / "merged-bf16"


@pytest.mark.parametrize("to", ["adapter", "merged", "gguf"])
def test_the_card_has_figures_and_settings_and_names_no_folder_of_this_machine(to, tmp_path, qwen_run):
    run = type(qwen_run)(tmp_path / qwen_run.id)
    shutil.copytree(qwen_run.path, run.path)
    run.report_path.write_text(REPORT)
    card = (export(run, to, tmp_path / "out").path / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "base"
    assert front["library_name"] == {"adapter": "peft", "merged": "transformers", "gguf": "llama.cpp"}[to]
    for text in ("| with the adapter | 5.10 |", "120 to train on", "rank 4, alpha 8", "## Licence"):
        assert text in card
    assert "somebody" not in card
    assert str(tmp_path) not in card


def test_names_that_are_not_text_for_a_terminal_are_spelt_out(tmp_path, qwen_run, tokenizers, capsys):
    base = save_base(tmp_path / "ba\x1b[31mse", "qwen2", tokenizers["qwen2"])
    run = finished_run(tmp_path / "out", base)
    assert cli.main(["export", str(run.path), "--to", "adapter", "--output", str(tmp_path / "o\x1b[1mut")]) == 0
    assert "\x1b" not in capsys.readouterr().err
    assert "\x1b" not in next(tmp_path.glob("o*ut*/README.md")).read_text()
