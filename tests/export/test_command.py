"""`engine export`, as a person runs it; and the card that comes with the files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.exports import finished_run, save_base

from engine import cli
from engine.errors import one_line
from engine.export.commands import quoted
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


@pytest.mark.parametrize(("spelt", "written"), [("F16", "fp16"), ("fp32", "f32"), ("Q8_0", "q8_0"), ("BF16", "bf16")])
def test_formats_may_be_spelt_as_other_programs_spell_them(spelt, written, qwen_run, tmp_path):
    arguments = ["--to", "gguf", "--dtype", spelt, "--no-check", "--output", str(tmp_path / "out")]
    assert cli.main(["export", str(qwen_run.path), *arguments]) == 0
    assert (tmp_path / "out" / f"tiny-{written}.gguf").exists()


def modelfile(path):
    """Instructions of a Modelfile by Ollama's reference: a word, then text, in quotation marks or three of them."""
    text = re.sub(r"(?m)^#.*$", "", path.read_text())
    pattern = r'(?m)^(FROM|TEMPLATE|ADAPTER|PARAMETER [a-z_]+) ("""([\s\S]*?)"""|"(.*)"|(.*))$'
    assert not re.sub(pattern, "", text).strip()
    return [
        (match[1], next(part for part in match.groups()[2:] if part is not None))
        for match in re.finditer(pattern, text)
    ]


@pytest.mark.parametrize("template", ["", "chatml", "plain"])
def test_ollama_finds_what_the_printed_line_names(template, tokenizers, tmp_path, capsys):
    base = save_base(tmp_path / "base", "qwen2", tokenizers["qwen2"], tied=True)
    run = finished_run(tmp_path / "out", base, chat_template=template)
    folder = tmp_path / 'it\'s "here" $HOME'
    assert cli.main(["export", str(run.path), "--to", "gguf", "--no-check", "--output", str(folder)]) == 0
    [line] = re.findall(r"(?m)^use it: (ollama .*)$", capsys.readouterr().err)
    create, run_it = line.split(" && ")
    program, verb, name, option, path = shlex.split(create)
    assert (program, verb, option) == ("ollama", "create", "-f")
    assert shlex.split(run_it) == ["ollama", "run", name]
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", name)  # Ollama's names of models
    assert Path(path) == folder / "Modelfile"
    instructions = modelfile(Path(path))
    [file] = [text for word, text in instructions if word == "FROM"]
    assert (Path(path).parent / file).is_file()  # from the Modelfile's own folder
    assert int(dict(instructions)["PARAMETER num_ctx"]) == 512
    stops = [text for word, text in instructions if word == "PARAMETER stop"]
    assert "<|endoftext|>" in stops
    assert ("<|im_end|>" in stops) == (template == "chatml")
    ollama_template = dict(instructions)["TEMPLATE"]
    assert ("{{ range .Messages }}" in ollama_template) == bool(template)
    assert (".Suffix" in ollama_template) == (not template)
    opened = re.findall(r"{{ *(?:if|range)\b", ollama_template)
    assert len(opened) == len(re.findall(r"{{ *end *}}", ollama_template))


@pytest.mark.parametrize("line", ["llama-server -m ", "vllm serve "])
def test_other_printed_lines_name_what_was_written(line, qwen_run, tmp_path, capsys):
    to = "gguf" if line.startswith("llama") else "merged"
    folder = tmp_path / "with spaces"
    assert cli.main(["export", str(qwen_run.path), "--to", to, "--no-check", "--output", str(folder)]) == 0
    [found] = [text for text in capsys.readouterr().err.splitlines() if text.startswith(f"use it: {line}")]
    path = Path(shlex.split(found)[-1])
    assert path == (folder if to == "merged" else folder / "tiny-f32.gguf")
    assert path.exists()


STRANGE = ['it\'s "here"', "-rf", "größe 模型 🦙", "$(id) `id` ;&|", "two\nlines", "a\u200bb", "50% \\n"]


@pytest.mark.parametrize("name", STRANGE)
def test_a_path_is_the_same_pasted_into_a_shell(name, tmp_path):
    place = tmp_path / name
    place.mkdir()
    (place / "written.gguf").write_text("here")
    line = f"cat {quoted(str(place / 'written.gguf'))} && test -d {quoted(str(place))}"
    assert one_line(line) == line  # so that what is printed is what was quoted
    ran = subprocess.run(["sh", "-c", line], cwd="/", capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "here"), ran.stderr


@pytest.mark.parametrize("base", ["demo", "local"])
@pytest.mark.parametrize("to", ["adapter", "merged"])
def test_the_code_of_a_card_runs_as_it_stands(to, base, tokenizers, tmp_path):
    local = tmp_path / "base"
    name = "demo" if base == "demo" else save_base(local, "qwen2", tokenizers["qwen2"])
    card = (export(finished_run(tmp_path / "out", name), to, tmp_path / "card").path / "README.md").read_text()
    [code] = re.findall(r"```python\n([\s\S]*?)```", card)
    if (to, base) == ("adapter", "local"):  # its comment asks for the path
        code = code.replace("where = 'base'", f"where = {str(local)!r}")
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "card",
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("def main(")


def test_the_base_alone_is_a_model_of_its_own_name(qwen_run, tmp_path):
    written = export(qwen_run, "gguf-base", tmp_path / "out")
    assert set(written.files) == {"base-f32.gguf", "README.md"}
    card = (written.path / "README.md").read_text()
    assert "fine-tuned" not in card
    assert "perplexity" not in card
    assert written.difference.same_choice == 1
