"""Wrong usage in processes of their own: one line that names the option and what it takes, and exit status 2."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import errors
from engine.cli import build_parser, main
from engine.commands import runs as commands_of_runs

ROOT = Path(__file__).parents[2]

WRONG = [
    (["plan", "--tier", "x"], "--tier: x is not a whole number from 1 to 11, or max"),
    (["plan", "--rank", "1e99"], "--rank: 1e99 is not a whole number from 1 to 1,024"),
    (["plan", "--card-link", "warp"], "--card-link: warp is not one of pcie, nvlink, nvlink-bridge, or GB/s"),
    (["plan", "--network", "0"], "--network: 0 is not one of 1g,"),
    (["plan", "--hourz", "1"], "(did you mean --hours?)"),
    (["bench", "streaming", "--context", "x"], "--context: x is not a whole number at least 1"),
    (["ablate", "--evaluations", "0"], "--evaluations: 0 is not a whole number from 1 to 100"),
    (["export", "x", "--to", "onnx"], "--to: onnx is not one of adapter, merged, gguf,"),
    (["replay", "--tokens", "0"], "--tokens: 0 is not a whole number at least 1"),
    (["serve", "--port", "70000"], "--port: 70000 is not a whole number from 0 to 65,535"),
    (
        ["generate", "demo", "--prompt", "x", "--temperature", "99"],
        "--temperature: 99 is not a number at least 0 and at",
    ),
    (["generate", "demo", "--prompt", "x", "--top-p", "warp"], "--top-p: warp is not a number above 0 and at most 1"),
    (["bench", "streaming", "--model", "demo", "--layers", "99"], "--layers: demo has "),
    (["--json", "plan"], "unrecognized arguments: --json (--json follows the command)"),
    (["trian"], "unknown command trian (did you mean train?)"),
    (["monitor"], "unknown command monitor (`elite-tui monitor` shows runs, `engine attach` follows one)"),
    (["models"], "unknown command models (`engine plan --help` names the models"),
    (["stop"], "required: RUN"),
    ([], "required: COMMAND"),
]


def engine(*words, program="engine"):
    return subprocess.run(
        [sys.executable, "-m", program, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_usage_is_one_line(words, said):
    done = engine(*words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert "`engine" in done.stderr
    assert "_" not in done.stderr.partition(";")[0].replace(said, "")  # no name of a function


@pytest.mark.parametrize(
    "words",
    [["plan", "--json", "--tier", "99"], ["plan", "--tier", "99", "--js"], ["--json", "plan"], ["plan", "--jso", "x"]],
)
def test_wrong_usage_is_json_after_json(words):
    done = engine(*words)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == "usage-invalid"


@pytest.mark.parametrize(
    "words",
    [["train", "--auto", "--repo", ""], ["train", "--resume", ""], ["serve", ""], ["data", "--repo=.", "--out", ""]],
)
def test_a_variable_that_is_unset_names_nothing(words, tmp_path):
    """`--repo "$UNSET"` must not train on the current folder, nor `--resume "$UNSET"` go on with the newest run."""
    done = engine(*words)
    assert done.returncode == 2
    assert "its value is empty" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("elite_tui", ["--output", "out"], "unrecognized arguments: --output"),
        ("elite_tui", ["--repoo", "src"], "unrecognized arguments: --repoo (did you mean --repo?)"),
        ("engine", ["--output", "out", "train", "--auto"], "--output (options of train follow it)"),
        ("engine", ["--json", "trian"], "unknown command trian"),
    ],
)
def test_the_value_of_an_unknown_option_is_not_called_a_command(program, words, expected):
    done = engine(*words, program=program)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_app_answers_alike():
    done = engine("monitr", program="elite_tui")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("elite-tui: unknown command monitr (did you mean monitor?); `elite-tui --help`")


def test_no_message_names_a_function(capsys):
    """Every option that converts its value refuses a word in the user's terms."""
    for name, command in build_parser().commands.items():
        options = [action.option_strings[0] for action in command._actions if action.type and action.option_strings]
        for option in options:
            with contextlib.suppress(SystemExit):
                command.parse_args([f"{option}=warp"])
            assert "invalid _" not in (error := capsys.readouterr().err), (name, option)
            assert error.count("\n") <= 1


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["sessions", "--out", "{there}"], "name another with --out"),
        (["replay", "--out", "{there}"], "name another with --out"),
        (
            ["plan", "--stream", "tile"],
            "--stream tile: not of the form FIELD=VALUE; write for example --stream hidden_home",
        ),
        (["bench", "streaming", "--model", "demo", "--spill", "{there}/x", "--device", "cpu"], "another with --spill"),
        (["data", "--repo", "{there}", "--set", "model.name=null"], "null is not text; the default is demo"),
        (["data", "--repo", "{there}", "--set", "lora.targets=all"], "write it in brackets, as in [all]"),
        (["data", "--repo", "{there}", "--set", "model.name=''"], "'' is not text"),
    ],
)
def test_a_remedy_names_what_the_command_has(words, remedy, tmp_path):
    done = engine(*(word.format(there=tmp_path) for word in words))
    assert done.returncode == 2
    assert remedy in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(
    "words", [["plan", "--json"], ["plan"], ["runs", "--json"], ["stop", "x", "--json"], ["plan", "--tier=x", "--json"]]
)
def test_a_full_disk_under_standard_output_is_one_line(words, buffered, tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "engine", *words],
            cwd=ROOT,
            env={**os.environ, "ELITE_TUI_STATE_DIR": str(tmp_path), "PYTHONUNBUFFERED": "" if buffered else "1"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("engine: standard output cannot be written: No space left")
    assert "Traceback" not in done.stderr
    assert "please report" not in done.stderr


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EMFILE])
def test_an_error_that_names_no_file_prints_nothing_to_standard_output(number, capfd, monkeypatch):
    """Once, an empty line was printed there to see whether it can be written."""

    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(commands_of_runs, "run", fail)
    assert main(["runs", "--json"]) == errors.TRAINING_FAILED
    said = capfd.readouterr()
    assert said.out.count("\n") == 1
    assert json.loads(said.out)["error"]
    assert main(["runs"]) == errors.TRAINING_FAILED
    said = capfd.readouterr()
    assert said.out == ""
    assert os.strerror(number) in said.err


@pytest.mark.parametrize("words", [["plan"], ["plan", "--json"], ["optimizations"], ["cache"]])
def test_a_reader_that_leaves_is_no_failure(words, tmp_path):
    """As `engine plan | head -1` does, under `set -o pipefail`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "engine", *words],
            cwd=ROOT,
            env={**os.environ, "ELITE_TUI_STATE_DIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["plan"], ["plan", "--json"], ["optimizations"], ["runs"]])
def test_a_locale_without_unicode_loses_characters_alone(words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "engine", *words],
        cwd=ROOT,
        env={**os.environ, "ELITE_TUI_STATE_DIR": str(tmp_path), "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    if "--json" in words:
        assert json.loads(done.stdout.decode("ascii"))["tiers"]


def test_an_output_folder_without_runs_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ELITE_TUI_STATE_DIR", str(tmp_path / "state"))
    assert main(["runs", "--output", str(tmp_path / "[red]none")]) == 0
    named = capsys.readouterr().out
    assert f"no runs in {tmp_path}/[red]none" in named
    assert main(["runs"]) == 0
    assert "no runs yet" in capsys.readouterr().out
