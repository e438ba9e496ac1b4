"""Absurd numbers in every numeric field: one line that names the field and what it may be, or a run that is planned."""

from __future__ import annotations

import math

import pytest

from engine import config
from engine.errors import EliteError
from engine.models.catalogue import find_model
from engine.plan.choice import choose_plan
from tests.plan.machines import with_card

NUMERIC = [spec for spec in config.fields() if spec.type in (int, float)]
ABSURD = [
    "0",
    "-1",
    str(2**63 - 1),
    str(2**64),
    "-" + str(2**64),
    "1e400",
    "-1e400",
    ".nan",
    "9" * 5000,
    "0x" + "f" * 40,
]


def test_the_schema_has_numbers():
    assert len(NUMERIC) > 40
    assert {spec.section for spec in NUMERIC} >= {"data", "lora", "training", "stream", "checkpoint", "evaluation"}


@pytest.mark.parametrize("path", [spec.path for spec in NUMERIC])
def test_an_absurd_number_is_refused_in_one_line_or_kept_as_it_is(path, tmp_path):
    section, _, name = path.partition(".")
    for text in ABSURD:
        typed = {}
        config.apply_override(typed, f"{path}={text}")
        file = tmp_path / "run.yaml"
        file.write_text(f"{section}:\n  {name}: {text}\n")
        said = []
        for data in (typed, config.load_mapping(file)):
            try:
                value = getattr(getattr(config.from_mapping(data), section), name)
                # What is taken is the number that was written, and small enough to be computed with.
                assert value == float(text)
                assert abs(value) <= 2**40 or path == "training.max_grad_norm"
            except EliteError as error:
                said.append(str(error))
        assert len(said) in (0, 2)  # the same from a file as from the command line
        for line in said:
            assert path in line
            assert " is not a " in line
            assert "leave it out" in line or "the default is" in line
            assert len(line) < 300
            assert "\n" not in line


@pytest.mark.parametrize("text", [".nan", "-1e400", str(-(2**63))])
def test_no_field_takes_what_is_no_amount(text):
    for spec in NUMERIC:
        data = {}
        config.apply_override(data, f"{spec.path}={text}")
        assert [problem.field for problem in config.find_problems(data)] == [spec.path]


@pytest.mark.parametrize("path", [spec.path for spec in NUMERIC])
def test_the_largest_value_of_a_field_is_planned_or_refused_in_one_line(path):
    """Bisects for it, so that it does not rest on what the schema says."""
    section, _, name = path.partition(".")

    def taken(value):
        return not config.find_problems({section: {name: value}})

    low = next(value for value in (1, 8, 64, 0.4, 29500) if taken(value))
    high = 2**63 - 1
    if isinstance(low, int) and not taken(high):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if taken(middle) else (low, middle)
    run = config.from_mapping({section: {name: low}})
    try:
        choice = choose_plan(run, with_card("rtx-4090", ram=64), find_model("demo"), 300_000)
        said = choice.note
        assert math.isfinite(choice.seconds)
    except EliteError as error:
        said = str(error)
    assert "\n" not in said
    assert "e+" not in said


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("training.stages", ["64:" + "9" * 5000], "is above 134,217,728 tokens or 1,000,000 updates"),
        ("training.stages", ["999999999999:1"], "is above 134,217,728 tokens"),
        ("training.stages", ["64:0"], "is not a list of CONTEXT:UPDATES"),
        ("data.mixture", ["code"], "is not a list of SOURCE=SHARE"),
    ],
)
def test_numbers_inside_texts(path, value, said):
    section, _, name = path.partition(".")
    (problem,) = config.find_problems({section: {name: value}})
    assert problem.field == path
    assert said in problem.problem
    assert len(problem.problem) < 200
