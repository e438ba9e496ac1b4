"""`engine report`: what it holds, what it never holds, and what damaged, hostile or huge files do to it."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.planted_secrets import FORMATS, PLACES, fill, private_key

from engine import config as run_config
from engine.cli import main
from engine.data.masking import Mask
from engine.protocol.events import LogLine, RunFailed, StepCompleted
from engine.protocol.wire import Envelope, encode_event
from engine.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
RNG = random.Random(20261130)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder of a user whose name is in it, as the working folder."""
    folder = tmp_path / "home" / "quillfeather"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USER", "quillfeather")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(home):
    """A run with a configuration and a journal, in the home folder."""
    config = run_config.from_mapping({"output": {"directory": str(home / "out"), "model_name": "shop"}})
    return RunDirectory.create(config)


def write_journal(run, *events):
    lines = [encode_event(Envelope(run=run.id, seq=i, time=1.8e9 + i, event=event)) for i, event in enumerate(events)]
    run.journal_path.write_text("".join(f"{line}\n" for line in lines))


def report(capsys, *arguments):
    assert main(["report", "--quick", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_what_a_report_holds(run, home, capsys):
    write_journal(run, LogLine(level="info", text="reading shop"), LogLine(level="warning", text="it is hot"))
    run.log_path.write_text("a library's own words\n")
    run.plan_path.write_text('{"context": 4096}')
    text = report(capsys, run.path)
    for part in ("elite-tui 0.", "torch 2.", "CPU:", "model_name: shop", '"context": 4096', "it is hot", "own words"):
        assert part in text
    assert "passed   output folder" in text, "doctor's rows"
    assert "status: " in text
    assert str(home) not in text
    assert "quillfeather" not in text


@pytest.mark.parametrize("first", range(0, len(FORMATS), 12))
def test_no_secret_of_any_format_appears(first, run, capsys, monkeypatch):
    """Each is planted in the configuration, the journal, a path and the log; another one in a variable, too."""
    hidden = []
    lines: list[str] = []
    events: list[LogLine | RunFailed] = []
    for number, template in enumerate(list(FORMATS.values())[first : first + 12]):
        (secret, parts), (other, more) = fill(template, RNG), fill(template, RNG)
        hidden += [part for part in (*parts, *more) if len(part) >= 6]
        monkeypatch.setenv(f"SERVICE_{number}_TOKEN", other)
        lines += [f"# {secret}", f"note{number}: '{secret}'", other]
        failure = RunFailed(
            error="internal", message=f"401 for {secret}", hint="", exit_code=4, traceback=f"x\n{other}\n"
        )
        events += [LogLine(level="info", text=f"with {secret} and {other}"), failure]
        if "/" not in secret:
            (run.path / secret).write_text("")
    run.config_path.write_text(run.config_path.read_text() + "\n".join(lines))
    write_journal(run, *events)
    run.log_path.write_text("\n".join(lines))
    text = report(capsys, run.path)
    assert "401 for REDACTED" in text
    assert [part for part in hidden if part in text] == []


def test_no_secret_behind_a_name_appears(run, capsys):
    filled = [fill(template, RNG) for template in PLACES.values()]
    write_journal(run, *(LogLine(level="info", text=line) for line, _ in filled))
    run.log_path.write_text("".join(line for line, _ in filled))
    text = report(capsys, run.path)
    hidden = [part for _, parts in filled for part in parts if len(part) >= 8]
    assert [part for part in hidden if part in text] == []


def test_a_webhook_is_nobodys_business(home, capsys, monkeypatch):
    """Its address lets whoever has it write there, and looks like any other."""
    here, elsewhere = "https://chat.example.net/in/shop-builds", "https://chat.example.net/in/nightly"
    monkeypatch.setenv("ELITE_TUI_WEBHOOK", elsewhere)
    data = {"output": {"directory": str(home / "out")}, "notify": {"webhook": here}}
    run = RunDirectory.create(run_config.from_mapping(data))
    write_journal(run, LogLine(level="warning", text=f"{here} and {elsewhere} answer 500"))
    text = report(capsys, run.path)
    assert "answer 500" in text
    assert "shop-builds" not in text
    assert "in/nightly" not in text


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("DB_PASSWORD", 'correct "horse" battery', 'correct "horse" battery'),
        ("DB_PASSWORD", 'correct "horse" battery', r"correct \"horse\" battery"),
        ("MY_API_KEY", "päss\\wörter", "p\\xe4ss\\\\w\\xf6rter"),
        ("SERVICE_TOKEN", "a b/c?d e+f", "a%20b/c%3Fd%20e%2Bf"),
        ("SERVICE_TOKEN", "a b/c?d e+f", "a+b%2Fc%3Fd+e%2Bf"),
        ("HTTPS_PROXY", "http://clerk:9Vnwq72LmX@proxy.example.net:3128", "9Vnwq72LmX"),
    ],
)
def test_a_secret_of_the_environment_is_masked_in_every_spelling(name, value, shown):
    mask = Mask({name: value})
    assert mask.text(f"failed: {shown}!") == "failed: REDACTED!"


def test_a_key_whose_first_line_lies_before_the_tail(run, capsys):
    block, line = private_key("RSA PRIVATE KEY", RNG)
    run.log_path.write_text("\n".join(block.splitlines()[3:]) + "\nand then it stopped\n")
    text = report(capsys, run.path)
    assert "and then it stopped" in text
    assert not any(part in text for part in block.splitlines()[1:-2])
    assert line not in text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("/home/alice/src/shop", "~/src/shop"),
        ("file:///home/alice/x", "file://~/x"),
        ("'/Users/Alice/x y'", "'~/x y'"),
        (r"C:\Users\Alice Smith\shop", r"~\shop"),
        (r"'C:\\Users\\Alice\\shop'", r"'~\\shop'"),
        ("/root/.cache and /rootless", "~/.cache and /rootless"),
        ("/data/quill/x", "/data/USER/x"),
        ("/data/quillwort/x", "/data/quillwort/x"),
        ("quill@box17: denied", "USER@HOST: denied"),
        ("/srv/q/x is no quiz", "/srv/q/x is no quiz"),
        ("mail alice.b@mail.example.org now", "mail EMAIL now"),
        ("/mnt/homes/q7/x, /mnt/homes/q77", "~/x, /mnt/homes/q77"),
    ],
)
def test_homes_users_and_hosts(text, masked):
    mask = Mask({}, frozenset({"/mnt/homes/q7", "/"}), {"quill": "USER", "box17": "HOST", "root": "USER"})
    assert mask.text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Qwen3-Coder-30B-A3B-Instruct-FP8 in nf4",
        "20260102-100000-shop-backend-3f2a",
        "Linux-6.18.44-x86_64-with-glibc2.36, driver 535.104.05",
        "loss=1.7991620429764386 tokens_per_second=4626.0",
        "tokenizers 0.23.3, TOKENIZERS_PARALLELISM=false",
        "training.max_position_embeddings: 131072",
    ],
)
def test_what_a_reader_needs_stays(text):
    assert Mask({"TOKENIZERS_PARALLELISM": "false", "MONKEY": "tokens"}).text(text) == text


def remove(path):
    path.unlink(missing_ok=True)


def fifo(path):
    remove(path)
    os.mkfifo(path)


def folder(path):
    remove(path)
    path.mkdir()


def link(path):
    remove(path)
    path.symlink_to("/dev/zero")


def noise(path):
    path.write_bytes(random.Random(5).randbytes(100_000))


def deep(path):
    path.write_text("[" * 100_000)


@pytest.mark.parametrize("damage", [remove, fifo, folder, link, noise, deep], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "events.jsonl", "engine.log", "process.json"])
def test_a_damaged_run_gives_a_report_of_the_rest(name, damage, run, capsys):
    write_journal(run, LogLine(level="info", text="the one line"))
    run.log_path.write_text("own words\n")
    damage(run.path / name)
    text = report(capsys, run.path)
    assert ("the one line" in text) == (name != "events.jsonl")
    assert ("own words" in text) == (name != "engine.log")
    assert "## engine doctor" in text


def test_a_run_without_configuration_is_found_by_its_name(run, capsys):
    from engine.runs.run_index import remember_output

    remember_output(run.path.parents[1])
    run.config_path.unlink()
    assert run.id in report(capsys, run.id)


def test_a_home_folder_of_nobody_hides_no_other_part(home, capsys):
    (home / "config.yaml").write_text("output:\n  directory: ~nobody-has-this-name/out\n")
    text = report(capsys, "--config", home / "config.yaml")
    assert "CPU:" in text
    assert "(cannot be read" not in text


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000])
def test_a_run_whose_name_is_too_long_for_a_path_is_unknown(name, home, capsys):
    assert main(["report", "--quick", name]) == 2
    assert "please report" not in capsys.readouterr().err


def test_a_huge_journal_is_read_at_its_end(run, capsys, tmp_path):
    step = StepCompleted(
        step=1, total_steps=2, epoch=1.0, loss=1.0, lr=1.0, grad_norm=1.0, tokens=1, tokens_per_second=1
    )
    write_journal(run, *([step] * 3000), LogLine(level="info", text="the end " + "x" * 5000))
    with run.log_path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that nobody can read
    text = report(capsys, run.path)
    assert "the end xxx" in text
    assert text.count("StepCompleted") <= 10
    assert len(text) < 200_000


def test_a_text_cannot_end_its_block_or_move_the_cursor(run, capsys):
    write_journal(run, LogLine(level="info", text="````\n\x1b[2J## Forged\r\n"))
    text = report(capsys, run.path)
    assert "\n## Forged" not in text
    assert "\x1b" not in text
    assert "`````text" in text


def test_nothing_is_written_without_consent(run, home, capsys):
    before = set(home.rglob("*"))
    report(capsys, run.path)
    assert set(home.rglob("*")) == before


def test_output_is_new_and_private(run, home, capsys):
    target = home / "report.md"
    shown = report(capsys, run.path, "--output", target)
    assert target.read_text() == shown.removesuffix("\n")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.write_text("mine")
    assert main(["report", "--quick", str(run.path), "--output", str(target)]) == 2
    assert target.read_text() == "mine"
    assert main(["report", "--quick", "--output", str(home / "none" / "x.md")]) == 2


def test_json(run, capsys):
    value = json.loads(report(capsys, run.path, "--json"))
    assert value["written"] is None
    assert "status: " in value["report"]["Run"]


@pytest.mark.parametrize(("answer", "written"), [("y\n", 1), ("\n", 0), ("", 0)])
def test_a_terminal_is_asked_after_the_report_is_shown(answer, written, run, home):
    """In a pseudo-terminal: the question comes last, and only yes writes."""
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "engine", "report", "--quick", str(run.path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as done:
        os.close(slave)
        os.write(master, answer.encode() or b"\x04")
        out, err = done.communicate(timeout=60)
        os.close(master)
    assert done.returncode == 0
    assert b"## Versions" in out
    assert b"[y/N]" in err
    assert len(list(home.glob("elite-tui-report-*.md"))) == written
