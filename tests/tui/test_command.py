"""The elite-tui command without a terminal, and its first imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from elite_tui.__main__ import build_parser, load_draft, main
from engine.runs.run_index import remember_output
from tests.tui.support import copy_recording


def test_without_a_terminal_it_names_the_other_command(capsys):
    assert main([]) == 2
    assert "`engine` does the same" in capsys.readouterr().err


def test_runs_without_a_terminal_is_a_plain_list(tmp_path, capsys):
    copy_recording(tmp_path / "out")
    remember_output(tmp_path / "out")
    assert main(["runs"]) == 0
    captured = capsys.readouterr()
    assert "shop-backend" in captured.out + captured.err


@pytest.mark.parametrize("arguments", [["monitor", "nothing-like-it"], ["--simulate", "rtx-9999"]])
def test_wrong_names_are_said_before_the_app_starts(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("elite-tui: ")


def test_options():
    args = build_parser().parse_args(["--repo", "/a", "--repo", "/b", "--simulate", "rtx 4090"])
    assert args.repo == ["/a", "/b"]
    assert args.command is None
    assert build_parser().parse_args(["monitor"]).runs == []


def test_the_first_repository_is_the_present_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_draft(None).get("data.repositories") == [str(tmp_path)]
    assert load_draft(["shop"]).get("data.repositories") == [str(tmp_path / "shop")]


def test_the_app_needs_no_torch_and_no_engine_parts_before_its_first_frame():
    code = """
import sys
from elite_tui.app import EliteApp, build_screen
from elite_tui.client.calls import Engine
from elite_tui.__main__ import load_draft
from elite_tui.state import AppState
app = EliteApp(AppState(draft=load_draft(None)), Engine())
build_screen("project", app)
slow = {"torch", "transformers", "peft", "accelerate", "pynvml", "psutil", "numpy", "engine.plan.planner"}
print(sorted(slow & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
