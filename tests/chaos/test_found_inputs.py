"""Inputs that the fuzzer found, each in the form in which a person would meet it: one line, and a documented status."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from engine.assets import asset
from engine.cli import main
from engine.config import find_problems, from_mapping
from engine.errors import EliteError
from engine.generation.run_models import RunModels, load_adapted
from engine.launch.handle import RunHandle
from engine.models.catalogue import find_model
from engine.models.placement import choose_placement
from engine.plan.step_layout import StepLayout
from engine.protocol.events import PhaseChanged, RunFinished, RunStarted
from engine.runs.journal import JournalWriter
from engine.runs.run_directory import RunDirectory
from tests.chaos.odd import damage
from tests.support.exports import finished_run
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.timeout(60)
"""Ends a test that waits for ever: a read of a FIFO or of a device."""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    tiny_model("qwen2", vocab_size=8192).save_pretrained(path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(asset("demo-model", file), path / file)
    return path


@pytest.fixture
def run(tmp_path):
    config = from_mapping({"output": {"directory": str(tmp_path / "out")}, "data": {"repositories": ["."]}})
    return RunDirectory.create(config)


def answer(capsys, *words, status=2):
    """What was said, which is one line."""
    assert main([str(word) for word in words]) == status
    said = capsys.readouterr().err.strip()
    assert "please report" not in said
    assert said.count("\n") == 0
    return said


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[" * 3000, "{a: " * 3000, "- " * 3000], ids=["lists", "mappings", "items"])
def test_a_setting_that_is_nested_too_deeply_is_malformed(capsys, text):
    assert "KEY=VALUE" in answer(capsys, "train", "--dry-run", "--set", f"training.seed={text}")


def test_a_value_of_many_characters_is_shown_by_its_ends(capsys):
    text = "[" * 50_000
    assert len(answer(capsys, "train", "--dry-run", "--set", f"training.ema_decay={text}")) < 2_000


@pytest.mark.parametrize("words", [["data"], ["train", "--auto"], ["plan"], ["runs"]])
def test_a_working_directory_that_is_gone_is_one_line(capsys, tmp_path, monkeypatch, words):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert "working directory" in answer(capsys, *words)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_process_without_standard_streams_works(tmp_path, closed):
    """What it opens gets none of their numbers."""
    close = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    code = (
        "import os, sys; from engine.cli import main; code = main(['runs']); closed = map(int, sys.argv[1:]);"
        "lost = [n for n in closed if os.readlink(f'/proc/self/fd/{n}') != os.devnull or not os.get_inheritable(n)];"
        "sys.exit(code or bool(lost))"
    )
    words = [sys.executable, "-c", code, *map(str, closed)]
    environment = {**os.environ, "ELITE_TUI_STATE_DIR": str(tmp_path)}
    command = f"exec {shlex.join(words)} {close}"
    assert subprocess.run(["sh", "-c", command], env=environment, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("words", [["export", "x", "--to=--"], ["plan", "--tier=--"], ["doctor", "--config=--"]])
def test_two_dashes_are_no_value(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["inf", "1e999", "nan", "-1", "1e10"])
def test_a_command_waits_for_a_day_at_most(capsys, seconds, run):
    with pytest.raises(SystemExit):
        main(["stop", str(run.path), f"--timeout={seconds}"])
    assert f"{seconds} is not 0 to 86400" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--repo", "--dataset"])
@pytest.mark.parametrize("path", ["~nobody-has-this-name/x", "a" * 10_000], ids=["a user", "long"])
def test_a_path_that_cannot_be_is_one_line(capsys, option, path, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n" * 40)
    # A second source, so that both are compared.
    said = answer(capsys, "data", option, path, "--repo", tmp_path, "--out", tmp_path / "data")
    assert path[:20] in said


@pytest.mark.parametrize("ending", ["jsonl", "json.gz", "parquet", "arrow"])
@pytest.mark.parametrize("kind", ["a FIFO", "a link to a device"])
def test_a_data_set_that_is_no_regular_file_is_one_line(capsys, tmp_path, ending, kind):
    path = tmp_path / f"rows.{ending}"
    path.touch()
    damage(path, kind)
    assert "regular file" in answer(capsys, "data", "--dataset", path, "--out", tmp_path / "data")


def test_agents_sessions_in_a_place_that_cannot_be_are_one_line(capsys):
    for place in ("~nobody-has-this-name/x", "a" * 10_000):
        answer(capsys, "sessions", place)


def test_where_sessions_were_written_is_told_without_escapes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"type": "assistant", "message": {"content": "done"}}\n')
    assert main(["sessions", "a.jsonl", "--out", "\x1b[31mred"]) == 0
    assert "\x1b" not in capsys.readouterr().err
    answer(capsys, "sessions", "a.jsonl", "--out", "a" * 10_000)


@pytest.mark.parametrize("place", ["a" * 5000 + ":3", "/dev/zero", "nowhere\0"], ids=["long", "a device", "null"])
def test_a_prompt_from_a_file_that_is_none_is_one_line(place):
    from engine.generation.request import read_place

    with pytest.raises(EliteError):
        read_place(place)


# --- configurations ----------------------------------------------------------------------------------------------


def test_half_a_character_is_no_value(capsys, tmp_path):
    for section, name in (("output", "model_name"), ("model", "precision"), ("lora", "rank")):
        assert [problem.field for problem in find_problems({section: {name: "\ud800"}})] == [f"{section}.{name}"]
    path = tmp_path / "config.yaml"
    path.write_text('output:\n  model_name: "\\uD800"\n')
    assert "output.model_name" in answer(capsys, "train", "--dry-run", "--config", path)


@pytest.mark.parametrize("field", ["training.evaluate_tokens", "training.seed", "data.max_file_bytes", "lora.rank"])
def test_a_number_of_more_than_64_bits_is_no_value(field):
    section, _, name = field.partition(".")
    for number in (10**400, 2**63, -(10**400)):
        assert [problem.field for problem in find_problems({section: {name: number}})] == [field]


def test_a_configuration_that_is_a_fifo_without_a_writer_ends(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.config.mappings._FIRST_BYTE_S", 0.05)
    os.mkfifo(tmp_path / "config.yaml")
    said = answer(capsys, "train", "--dry-run", "--config", tmp_path / "config.yaml")
    assert "nothing was written to this FIFO" in said


# --- models and adapters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"rms_norm_eps": 10**400}, {"pad_token_id": 10**9}, {"text_config": {"hidden_size": 16}}, {"layer_types": 5}],
    ids=["a huge number", "a token out of range", "a part of another kind", "no list"],
)
def test_settings_of_a_model_are_refused_by_its_folder(capsys, model, settings):
    config = json.loads((model / "config.json").read_text())
    # A family that needs a proof, and one that does not.
    for family in ("qwen2", config["model_type"]):
        (model / "config.json").write_text(json.dumps({**config, "model_type": family, **settings}))
        for words in (["plan", "--model", model], ["generate", model, "--prompt", "x", "--max-tokens", "1"]):
            status = main([str(word) for word in words])
            assert status in (0, 2, 3)
            assert "please report" not in capsys.readouterr().err


def test_settings_of_a_saved_tokenizer_are_refused_by_its_folder(model):
    from engine.models.tokenizer_files import open_saved

    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": 1.5}))
    with pytest.raises(EliteError, match="settings cannot be read"):
        open_saved(model)


@pytest.mark.parametrize(
    "settings",
    [{"monteclora_config": {"a": 1}}, {"lora_bias": [[]]}, {"eva_config": "x"}, {"target_modules": 5}],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_an_adapter_are_taken_or_refused_by_its_folder(model, tmp_path, settings):
    """What PEFT makes of them depends on its version; an exception of its own never comes through."""
    run = finished_run(tmp_path / "tuned", model)
    path = run.adapter_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    found = RunModels(
        spec=find_model(str(model)),
        placement=choose_placement("cpu", "fp32"),
        layout=StepLayout(stream=None, recompute=False),
        context=64,
        result=run.adapter_path,
    )
    refusal = ""
    try:
        load_adapted(found, run.load_config())
    except EliteError as error:
        refusal = str(error)
    assert not refusal or str(run.adapter_path) in refusal


# --- run directories ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a FIFO", "a link to a device"])
def test_a_report_that_is_none_is_left_out_of_a_card(run, kind):
    from engine.export.card import _report_sections

    run.report_path.write_text("x")
    damage(run.report_path, kind)
    assert _report_sections(run.report_path) == {}


@pytest.mark.parametrize("kind", ["a FIFO", "a link to a device"])
def test_files_of_a_tokenizer_that_are_none_are_not_copied(tmp_path, kind):
    from engine.export.merged import copy_tokenizer

    (tmp_path / "result").mkdir()
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "result" / "tokenizer.json").write_text("{}")
    damage(tmp_path / "result" / "tokenizer.json", kind)
    copy_tokenizer(tmp_path / "result", tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("kind", ["a FIFO", "a link to a device", "a link to nothing", "a folder"])
def test_nothing_is_appended_to_what_is_no_regular_file(run, kind):
    from engine.launch.child import _detach

    for path, use in ((run.journal_path, lambda path: JournalWriter(path, run.id)), (run.log_path, _detach)):
        path.write_text("x")
        damage(path, kind)
        with pytest.raises(OSError):  # noqa: PT011 - of the system's own kind where it refuses
            use(path)


def test_an_attempt_that_began_after_the_last_end_is_not_that_end(run):
    """Its process record was lost with the power: watching it would never end."""
    journal = JournalWriter(run.journal_path, run.id)
    for event in (
        RunStarted(model="demo", context=64, total_steps=2),
        RunFinished(status="stopped", steps=1, seconds=1.0),
        PhaseChanged(phase="starting"),
        RunStarted(model="demo", context=64, total_steps=2),
    ):
        journal.append(event)
    journal.close()
    os.utime(run.config_path, (1e9, 1e9))
    assert run.status() == "died"
    handle = RunHandle.attach(run)
    handle.poll()
    assert handle.ending is not None
    assert handle.ending.error == "child-died"


def test_watching_a_journal_whose_order_hides_its_end_ends(run):
    journal = JournalWriter(run.journal_path, run.id)
    for event in (PhaseChanged(phase="starting"), RunFinished(status="completed", steps=1, seconds=1.0)):
        journal.append(event)
    journal.close()
    lines = run.journal_path.read_bytes().splitlines(keepends=True)
    run.journal_path.write_bytes(lines[1].replace(b'"seq":1', b'"seq":0').split(b',"crc"')[0] + b"}\n")
    with run.journal_path.open("ab") as file:
        file.write(lines[0].replace(b'"seq":0', b'"seq":5').split(b',"crc"')[0] + b"}\n")
    os.utime(run.config_path, (1e9, 1e9))
    handle = RunHandle.attach(run)
    for _ in range(3):
        handle.poll()
    assert handle.ending is not None


def test_a_run_that_has_gone_is_unknown(run):
    shutil.rmtree(run.path)
    with pytest.raises(EliteError) as caught, run.launching():
        pass
    assert caught.value.code == "run-unknown"
