"""RunConfig: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine import config
from engine.errors import EliteError


def test_yaml_round_trip_of_defaults():
    assert config.from_mapping(config.parse_value(config.to_yaml(config.RunConfig()))) == config.RunConfig()


def test_every_field_is_documented_and_has_words_for_its_range():
    for spec in config.fields():
        assert spec.description.endswith((".", "head.")), spec.path
        assert spec.allowed


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"training": {"epocs": 1}}, "training.epocs"),
        ({"trainin": {}}, "trainin"),
        ({"training": {"epochs": "many"}}, "training.epochs"),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"learning_rate": math.nan}}, "training.learning_rate"),
        ({"training": {"tier": 12}}, "training.tier"),
        ({"training": {"tier": True}}, "training.tier"),
        ({"training": {"max_steps": 0}}, "training.max_steps"),
        ({"training": {"tier": 1, "context": 64}}, "training.context"),
        ({"training": 3}, "training"),
        ({"model": {"precision": "int3"}}, "model.precision"),
        ({"output": {"model_name": "../up"}}, "output.model_name"),
        ({"data": {"repositories": "not a list"}}, "data.repositories"),
        ([], "(top level)"),
        ({"distributed": {"timeout_minutes": math.inf}}, "distributed.timeout_minutes"),  # no timedelta holds it
    ],
)
def test_a_bad_value_is_refused_and_names_its_field(data, field):
    assert [problem.field for problem in config.find_problems(data)] == [field]
    with pytest.raises(EliteError) as caught:
        config.from_mapping(data, source="run.yaml")
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"run.yaml: {field}: ")
    assert "\n" not in str(caught.value)


def test_override_reads_scientific_notation_as_a_number():
    data = {}
    config.apply_override(data, "training.learning_rate=1e-4")
    assert config.from_mapping(data).training.learning_rate == 1e-4


@pytest.mark.parametrize("text", ["training.epochs", "epochs=1", "=1", ".x=1", "training.=1", "a.b=[1", ""])
def test_malformed_override(text):
    with pytest.raises(EliteError, match="KEY=VALUE"):
        config.apply_override({}, text)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- 1", b"\t", b"a: !!python/object:os.system x"])
def test_unreadable_yaml_is_one_line(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(EliteError) as caught:
        config.load(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_paths = st.sampled_from([spec.path for spec in config.fields()])


@given(path=_paths, value=_json)
def test_any_value_of_any_field_is_accepted_or_refused_in_words(path, value):
    section, name = path.split(".")
    data = {section: {name: value}}
    if problems := config.find_problems(data):
        assert problems[0].field == path
    else:
        accepted = config.from_mapping(data)
        assert config.from_mapping(config.parse_value(config.to_yaml(accepted))) == accepted


def test_threads_may_be_the_first_to_read_a_configuration():
    """In a process of its own: what goes wrong ends the process."""
    code = """
import threading
from engine import config
start = threading.Barrier(8)
def read():
    start.wait()
    for _ in range(20):
        config.from_mapping({"lora": {"rank": 4}})
threads = [threading.Thread(target=read) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("output", "repositories", "datasets", "name"),
    [
        ("mine", ["/home/me/shop"], [], "mine"),
        ("", ["/home/me/shop", "/home/me/game"], [], "shop"),
        ("", ["/home/me/my shop (old)/"], [], "my-shop-old"),
        ("", ["/srv/git/shop.git"], [], "shop"),
        ("", ["/home/me/…/.hidden"], [], "hidden"),
        ("", ["/home/me/日本"], ["/data/sessions.2026.jsonl.gz"], "sessions.2026"),
        ("", ["/"], [], "my-code-model"),
        ("", [], [], "my-code-model"),
        ("", ["/x/" + "long" * 40], [], "long" * 16),
        ("", ["/x/a\0b"], [], "ab"),
    ],
)
def test_a_model_is_named_after_its_repository(output, repositories, datasets, name):
    data = {"repositories": repositories, "datasets": datasets}
    found = config.from_mapping({"output": {"model_name": output}, "data": data})
    assert config.model_name(found) == name
    # The name is one that the configuration takes.
    assert not config.find_problems({"output": {"model_name": name}})


@given(st.text())
def test_a_repository_of_any_name_gives_a_valid_one(text):
    found = config.model_name(config.from_mapping({"data": {"repositories": [f"/x/{text}"]}}))
    assert found
    assert not config.find_problems({"output": {"model_name": found}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {name: demo, name: other}", "line 1: name is there twice"),
        ("training:\n  seed: 1\ntraining:\n  epochs: 1", "line 3: training is there twice"),
        ("training: {hours: 1:30}", "training.hours: '1:30' is not a number above 0"),
        ("training: {max_steps: 010}", "training.max_steps: '010' is not a whole number"),
        ('training: {max_steps: "5"}', "training.max_steps: '5' is not a whole number"),
        ("data: {repositories: src}", "write it in brackets, as in [src]"),
    ],
)
def test_what_yaml_would_take_otherwise_is_refused(tmp_path, text, said):
    """YAML 1.1 reads 1:30 as 90, which are hours here, 010 as 8, and keeps the last of two values."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(EliteError) as caught:
        config.load(path)
    assert said in str(caught.value)


def test_texts_that_look_like_dates_and_numbers_stay_texts():
    values = {"name": "2026-11-30", "other": "1:30", "octal": "007", "version": "1.2.3"}
    assert {name: config.parse_value(text) for name, text in values.items()} == values
    numbers = {"1e3": 1000.0, "2e-4": 2e-4, "-.5": -0.5, "1_000": 1000, "0x10": 16, "+5": 5, "0": 0, "7.": 7.0}
    assert {text: config.parse_value(text) for text in numbers} == numbers


_UNBROKEN = st.characters(exclude_characters="\x85\u2028\u2029")
_NO_NUMBER = st.text(_UNBROKEN, max_size=12).filter(lambda text: not re.fullmatch(r"[-+\d_.]+([eE][-+]?\d+)?", text))
"""YAML 1.1, which safe_dump writes, has 1e5, 1.5e3 and -.5 for texts; safe_dump does not escape line breaks."""


@given(st.one_of(st.integers(), st.floats(allow_nan=False), _NO_NUMBER, st.booleans(), st.none()))
def test_what_safe_dump_writes_is_read_as_it_was(value):
    text = yaml.safe_dump({"a": value}, default_flow_style=True, allow_unicode=True)
    assert config.parse_value(text) == {"a": value}


@pytest.mark.parametrize(
    "name", ["1e5", "12E03", "7.", "010", "0x1f", "1:30", "2026-11-30", "no", "null", "=", "a\x85b"]
)
def test_a_name_that_looks_like_another_value_is_written_as_text(name):
    """A model is named after its folder, which may be the beginning of a commit's hash."""
    written = config.to_yaml(config.from_mapping({"model": {"name": name}, "data": {"repositories": [name]}}))
    assert config.from_mapping(config.parse_value(written)).model.name == name
    assert yaml.safe_load(written)["data"]["repositories"] == [name]  # as YAML 1.1 too


_LAUGHS = [f"  {name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in itertools.pairwise("abcdefghij")]
_HOSTILE = {
    "itself in a list": "data: {repositories: &a [*a]}",
    "itself in a section": "training: &a {epochs: *a}",
    "a billion laughs": "\n".join(["data:", "  a: &a [x, x]", *_LAUGHS, "  repositories: *j"]),
    "pairs of them": "data: {repositories: !!pairs &a [x: *a]}",
    "a long whole number": f"training: {{max_steps: 0x{'f' * 6000}}}",
    "a longer one": f"training: {{max_steps: {'9' * 6000}}}",
    "a long key": f"0x{'f' * 6000}: {{}}",
    "no boolean": "data: {packing: !!bool maybe}",
    "no whole number": "training: {seed: !!int ''}",
    "no date": "model: {name: !!timestamp soon}",
}


@pytest.mark.parametrize("content", _HOSTILE.values(), ids=_HOSTILE)
def test_what_yaml_can_build_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(EliteError) as caught:
        config.load(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
