"""`engine bench streaming`: measures a real step, and refuses nonsense in one line."""

from __future__ import annotations

import json

import pytest

from engine.cli import main

SMALL = [
    "bench",
    "streaming",
    "--model",
    "demo",
    "--context",
    "300",
    "--layers",
    "2",
    "--device",
    "cpu",
    "--repeats",
    "1",
]


def test_one_json_document_with_the_step_and_its_floor(capsys):
    assert main([*SMALL, "--plan", "tile=64", "--plan", "key_block=128", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["layers"] == 2
    assert measured["plan"]["tile"] == 64
    assert measured["backend"] == "cpu"
    assert measured["seconds"]["total"] >= measured["seconds"]["backward"] > 0
    assert measured["attention_floor"] > 0
    assert measured["versions"]["torch"]


@pytest.mark.parametrize(
    "plan", ["tile=0", "tile=x", "tile", "nonsense=1", "weights=foo", "weights=nf4", "key_block=1", "attention=cudnn"]
)
def test_a_plan_that_cannot_be_is_one_line(plan, capsys):
    assert main([*SMALL, "--plan", plan]) == 2
    error = capsys.readouterr().err
    assert "engine: --plan" in error
    assert "Traceback" not in error


def test_people_read_lines(capsys):
    assert main([*SMALL, "--no-floor", "--precision", "nf4"]) == 0
    out = capsys.readouterr().out
    assert "demo nf4, 300 tokens, 2 of 6 layers" in out


@pytest.mark.parametrize("precision", ["nf4", "bf16"])
def test_weights_are_streamed_in_the_format_that_they_are_stored_in(precision, capsys):
    streamed = [*SMALL, "--no-floor", "--precision", precision, "--plan", "weights=streamed", "--json"]
    assert main(streamed) == 0
    weights = json.loads(capsys.readouterr().out)["plan"]["weights"]
    assert weights == ("nf4-streamed" if precision == "nf4" else "streamed")


@pytest.mark.parametrize("options", [["--vram-cap", "4"], ["--spill", "/nowhere"]])
def test_an_option_that_could_do_nothing_is_refused(options, capsys):
    assert main([*SMALL, *options]) in (2, 3)
    assert options[0] in capsys.readouterr().err
