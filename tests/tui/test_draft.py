"""Typed text is kept, valid or not."""

from __future__ import annotations

import json

import pytest

from elite_tui.wizard.draft import Draft, text_of, value_of
from elite_tui.wizard.suggest import complete_folder
from engine import config


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("training.learning_rate", "1e-4", 1e-4),
        ("training.max_steps", "12", 12),
        ("lora.rank", "many", "many"),
        ("lora.rank", "[1", "[1"),
        ("lora.targets", "q_proj, v_proj", ["q_proj", "v_proj"]),
        ("data.repositories", "/a b, /c", ["/a b", "/c"]),
        ("data.repositories", "['/a, b']", ["/a, b"]),
        ("data.repositories", "'/a b/', \"/c'd\"", ["/a b/", "/c'd"]),
        ("data.repositories", r"~/a\ \(b\)/c\'s, /d", ["~/a (b)/c's", "/d"]),
        ("data.repositories", "file:///home/me/a%20b", ["/home/me/a b"]),
        ("data.repositories", "it's, 's", ["it's", "'s"]),
        ("data.repositories", r"C:\Users\me", [r"C:\Users\me"]),
        ("data.repositories", "https://host/a%20b", ["https://host/a%20b"]),
        ("output.directory", "'/a b'", "/a b"),
        ("output.directory", "'", "'"),
        ("lora.targets", "'q_proj'", ["'q_proj'"]),
        ("output.model_name", "007", "007"),
        ("model.precision", "nf4", "nf4"),
    ],
)
def test_text_to_value(path, text, value):
    assert value_of(config.field_spec(path), text) == value


@pytest.mark.parametrize("spec", config.fields(), ids=lambda spec: spec.path)
def test_every_default_survives_the_form(spec):
    text = text_of(spec.default)
    if text:
        assert value_of(spec, text) == spec.default


def test_a_path_with_a_comma_survives_the_form():
    spec = config.field_spec("data.repositories")
    assert value_of(spec, text_of(["/a, b", "/c"])) == ["/a, b", "/c"]


@pytest.mark.parametrize("name", [r"/a\ b", "'/a'", "/a\\(b"])
def test_a_path_that_looks_pasted_survives_the_form(name):
    spec = config.field_spec("data.repositories")
    assert value_of(spec, text_of([name])) == [name]


def test_closing_loses_nothing_typed(tmp_path):
    path = tmp_path / "deep" / "wizard.json"
    draft = Draft.load(path)
    draft.set_text("lora.rank", "manny")
    draft.set_text("training.epochs", "3")
    draft.save()
    again = Draft.load(path)
    assert again.get("lora.rank") == "manny"
    assert again.get("training.epochs") == 3
    assert again.problems().keys() == {"lora.rank"}
    assert list(path.parent.iterdir()) == [path]


def test_the_default_is_not_stored(tmp_path):
    draft = Draft(tmp_path / "d", {})
    draft.set_text("lora.rank", "16")
    assert draft.mapping() == {}
    draft.set_text("lora.rank", "8")
    draft.set_text("lora.rank", "")
    assert draft.mapping() == {}


@pytest.mark.parametrize("text", ["", "[]", "not json", '{"lora": 3, "nosection": {"x": 1}, "model": {"nofield": 1}}'])
def test_a_damaged_file_starts_empty(tmp_path, text):
    path = tmp_path / "wizard.json"
    path.write_text(text)
    assert Draft.load(path).mapping() == {}


def test_an_unchanged_draft_is_not_written(tmp_path):
    path = tmp_path / "wizard.json"
    Draft.load(path).save()
    assert not path.exists()


def test_saved_as_plain_json(tmp_path):
    draft = Draft(tmp_path / "w", {})
    draft.set("output.model_name", "é")
    draft.save()
    assert json.loads((tmp_path / "w").read_text(encoding="utf-8")) == {"output": {"model_name": "é"}}


def test_folders_complete(tmp_path):
    (tmp_path / "source code").mkdir()
    (tmp_path / "sources.txt").touch()
    assert complete_folder(f"{tmp_path}/sou") == f"{tmp_path}/source code"
    assert complete_folder(f"/elsewhere, {tmp_path}/sou") == f"/elsewhere, {tmp_path}/source code"
    assert complete_folder(f"{tmp_path}/none") is None
    assert complete_folder(f"{tmp_path}/") is None
    assert complete_folder("/nowhere/at/all") is None
