"""The pictures in assets/screenshots match the script's output, and the README shows them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "assets" / "screenshots"
MOVING = ROOT / "assets" / "tour.svg"


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


def test_the_moving_picture_is_small_and_needs_no_other_file():
    text = MOVING.read_text(encoding="utf-8")
    assert len(text.encode()) < 500_000
    assert not re.search(r"<script|@font-face|url\((?!#)|href=", text)
    named = set(re.findall(r'\bid="([^"]+)"', text))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= named
    assert "assets/tour.svg" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_one_frame_of_the_moving_picture_is_seen_at_a_time():
    """Follows the key frames of every part through the whole round, in steps that no border falls on."""
    text = MOVING.read_text(encoding="utf-8")
    frames = [group.get("id") for group in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}g") if group.get("id")]
    rules = dict(re.findall(r"@keyframes k(\d+) \{((?:[^{}]|\{[^{}]*\})*)\}", text))
    assert [f"f{number}" for number in range(len(rules))] == [name for name in frames if re.fullmatch(r"f\d+", name)]
    assert (
        len({re.search(r"\d+s step-end|[\d.]+s step-end", rule)[0] for rule in re.findall(r"#f\d+ \{.*\}", text)}) == 1
    )
    for share in (part / 7 for part in range(700)):
        seen = [number for number, rule in rules.items() if shown_at(rule, share)]
        assert len(seen) == 1, (share, seen)


def shown_at(rule, share):
    """Whether a step-wise rule says visible at a share of its round, in per cent."""
    state = None
    for places, value in re.findall(r"([\d.%, ]+) \{ visibility: (\w+) \}", rule):
        if min(float(place) for place in places.replace("%", "").split(",")) <= share:
            state = value
    return state == "visible"


@pytest.mark.slow
def test_the_moving_picture_is_the_one_that_is_drawn_now(tmp_path):
    subprocess.run([sys.executable, ROOT / "scripts" / "moving_picture.py", "--out", tmp_path / "tour.svg"], check=True)
    assert (tmp_path / "tour.svg").read_bytes() == MOVING.read_bytes(), "run `make screenshots`"
