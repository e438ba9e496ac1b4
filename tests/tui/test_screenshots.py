"""The pictures in assets/screenshots match the script's output, and the README shows them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "assets" / "screenshots"


def script():
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "scripts" / "screenshots.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["screenshots"] = module
    spec.loader.exec_module(module)
    return module


def test_every_picture_is_there_and_every_main_screen_is_in_the_readme():
    names = {picture.name for picture in script().PICTURES}
    assert {path.stem for path in FOLDER.glob("*.svg")} == names
    shown = set(re.findall(r"assets/screenshots/([\w-]+)\.svg", (ROOT / "README.md").read_text(encoding="utf-8")))
    screens = {"project", "hardware", "tiers", "options", "data", "review", "monitor", "result", "runs"}
    assert screens <= shown <= names


@pytest.mark.slow
def test_the_pictures_are_those_that_are_drawn_now(tmp_path):
    subprocess.run([sys.executable, ROOT / "scripts" / "screenshots.py", "--out", tmp_path], check=True)
    stale = [path.name for path in tmp_path.iterdir() if path.read_bytes() != (FOLDER / path.name).read_bytes()]
    assert not stale, "run `make screenshots`"
