"""What libraries say reaches no terminal: only the command speaks, and a `--json` call prints one document."""

from __future__ import annotations

import bisect
import heapq
import json
import os
import pty
import shutil
import subprocess
import sys

import pytest
from support.exports import byte_level_tokenizer, finished_run, save_base

NOISE = "a library's own words"
HOOK = f'''
import importlib.abc, sys

class _Noisy(importlib.abc.MetaPathFinder):
    """Before torch or transformers is imported: everything that a library has been seen to do."""

    def find_spec(self, name, path, target=None):
        if name not in ("transformers", "torch"):
            return None
        import logging, os, warnings
        print("{NOISE}: stdout")
        print("{NOISE}: stderr", file=sys.stderr)
        os.write(1, b"{NOISE}: fd 1\\n")
        os.write(2, b"{NOISE}: fd 2\\n")
        warnings.warn("{NOISE}: FutureWarning", FutureWarning)
        warnings.warn("{NOISE}: UserWarning", UserWarning)
        logging.getLogger("liger_kernel").warning("{NOISE}: log")
        handled = logging.getLogger("bitsandbytes")
        handled.addHandler(logging.StreamHandler())
        handled.error("{NOISE}: handler")
        return None

sys.meta_path.insert(0, _Noisy())
'''


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """An environment in which libraries are loud."""
    folder = tmp_path_factory.mktemp("noisy")
    (folder / "sitecustomize.py").write_text(HOOK)
    state = folder / "state"
    paths = [str(folder), *(path for path in sys.path if path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ELITE_TUI_STATE_DIR": str(state)}, state


def call(environment, *arguments, code="from engine.cli import main; raise SystemExit(main())"):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


SCRIPT = """
import os, sys
from engine.commands.quiet_libraries import libraries_logged
with libraries_logged() as terminal:
    print("lost"); print("lost", file=sys.stderr); os.write(1, b"lost\\n"); os.write(2, b"lost\\n")
    os.system("echo lost; echo lost >&2")
    terminal.speaks(lambda: (print("kept out"), print("kept err", file=sys.stderr)))()
    print("lost")
print("after out"); print("after err", file=sys.stderr)
"""


def test_only_what_is_spoken_reaches_the_terminal(noisy):
    environment, state = noisy
    done = call(environment, code=SCRIPT)
    assert (done.stdout, done.stderr) == ("kept out\nafter out\n", "kept err\nafter err\n")
    assert (state / "libraries.log").read_text().count("lost") == 7


def test_a_log_that_cannot_be_written_and_closed_streams_change_nothing(noisy, tmp_path):
    (tmp_path / "file").write_text("")
    environment = {**noisy[0], "ELITE_TUI_STATE_DIR": str(tmp_path / "file" / "below")}
    assert call(environment, code=SCRIPT).stdout == "kept out\nafter out\n"
    closed = f"exec {sys.executable} -c '{SCRIPT}' >&- 2>&-"
    assert subprocess.run(["bash", "-c", closed], env=environment, check=False).returncode == 0


WORKING = """
import os, sys, warnings
from rich.console import Console
from engine.commands.quiet_libraries import libraries_logged
from engine.commands.status_line import status_line
with libraries_logged() as terminal:
    console = Console(file=terminal.err)
    with status_line(console, "at work on [1]") as update:
        print("lost"); print("lost", file=sys.stderr); warnings.warn("lost", FutureWarning); os.write(2, b"lost\\n")
        update("still at work")
        console.print("kept")
"""


def test_a_line_of_progress_takes_nothing_back_from_the_log(noisy):
    environment, state = noisy
    lost = (state / "libraries.log").read_text().count("lost")
    primary, secondary = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", WORKING], env={**environment, "TERM": "xterm"}, stdout=secondary, stderr=secondary
    )
    os.close(secondary)
    drawn = b""
    while piece := _read(primary):
        drawn += piece
    os.close(primary)
    assert child.wait(60) == 0
    assert b"at work on [1]" in drawn
    assert b"still at work" in drawn
    assert b"kept" in drawn
    assert b"lost" not in drawn
    assert (state / "libraries.log").read_text().count("lost") - lost >= 4


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's way of telling the end
        return b""


def test_generation_prints_one_document_and_nothing_else(noisy):
    environment, state = noisy
    done = call(environment, "generate", "demo", "--prompt", "def f", "--max-tokens", "2", "--device", "cpu", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["base"]["tokens"] == 2
    said = (state / "libraries.log").read_text()
    ways = ("stdout", "stderr", "fd 1", "fd 2", "FutureWarning", "log", "handler")
    assert [way for way in ways if f"{NOISE}: {way}" not in said] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "demo", "--prompt", "def f", "--max-tokens", "2", "--device", "cpu"],
        ["verify", "rslora", "--device", "cpu", "--json"],
        ["doctor", "--model", "demo", "--json"],
        ["probe", "--model", "demo", "--context", "1024", "--device", "cpu", "--json"],
        ["bench", "streaming", "--model", "demo", "--context", "512", "--layers", "1", "--device", "cpu", "--json"],
        ["profile", "--quick", "--json"],
        ["replay", "--tokens", "8", "--longest", "8", "--device", "cpu", "--json"],
        ["train", "--model", "demo", "--max-steps", "1", "--set", "training.context=128", "--json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_command_lets_a_library_speak(noisy, arguments, tmp_path):
    environment, _ = noisy
    if arguments[0] in ("doctor", "train"):
        code = tmp_path / "code"
        code.mkdir()
        for module in (json.decoder, json.encoder, bisect, heapq):
            shutil.copy(module.__file__, code)
        arguments = [*arguments, "--repo", str(code), "--output", str(tmp_path / "out")]
    if arguments[0] == "replay":
        arguments = [*arguments, "--out", str(tmp_path / "replay.jsonl")]
    if arguments[0] == "probe":
        arguments = [*arguments, "--output", str(tmp_path)]
    done = call(environment, *arguments)
    assert NOISE not in done.stderr + done.stdout
    assert done.returncode == 0, done.stderr[-2000:]
    if "--json" in arguments and arguments[0] != "train":
        json.loads(done.stdout)


@pytest.mark.slow
def test_export_and_evaluate_write_into_the_runs_log(noisy, tmp_path):
    base = save_base(tmp_path / "base", "qwen2", byte_level_tokenizer())
    run = finished_run(tmp_path / "out", base)
    done = call(noisy[0], "export", str(run.path), "--to", "merged", "--output", str(tmp_path / "new"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    json.loads(done.stdout)
    assert NOISE in run.log_path.read_text()
