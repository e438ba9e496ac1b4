"""`engine generate`: on a model, at a place in a file, as a process that answers an app; and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.command_line import status_of

from engine.errors import EliteError
from engine.generation.request import TextRequest, read_place
from engine.generation.serving import serve


def call(capsys, *arguments):
    status = status_of(["generate", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_model_goes_on_with_a_prompt(capsys):
    status, out, _ = call(capsys, "demo", "--prompt", "def main(", "--max-tokens", "5", "--json")
    assert status == 0
    found = json.loads(out)
    assert (found["name"], found["device"], found["base"]["tokens"]) == ("demo", "cpu", 5)
    status, out, err = call(capsys, "demo", "--prompt", "def main(", "--max-tokens", "5")
    assert out == found["base"]["text"] + "\n"
    assert "5 tokens" in err


def test_drawn_text_follows_its_seed(capsys):
    arguments = ("demo", "--prompt", "x", "--max-tokens", "8", "--temperature", "1", "--top-p", "0.9", "--json")
    texts = [json.loads(call(capsys, *arguments, "--seed", seed)[1])["base"]["text"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_at_a_place_in_a_file(capsys, tmp_path):
    path = tmp_path / "a:1"
    path.write_text("one\ntwo\nthree")
    assert read_place(str(path)) == (str(path), "one\ntwo\nthree", "")
    assert read_place(f"{path}:2") == (str(path), "one\ntwo\n", "three")
    status, out, _ = call(capsys, "demo", "--file", f"{path}:2", "--fill", "--max-tokens", "3", "--json")
    assert status == 0
    assert json.loads(out)["base"]["tokens"] <= 3


def test_a_place_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.py").write_text("one\ntwo\n")
    assert read_place("~/a.py:1") == (str(tmp_path / "a.py"), "one\n", "two\n")
    assert read_place("~/a.py") == (str(tmp_path / "a.py"), "one\ntwo\n", "")


@pytest.mark.parametrize(("content", "last"), [("", 1), ("one\ntwo", 2), ("one\ntwo\n", 3)])
def test_a_line_past_the_end_is_refused(capsys, tmp_path, content, last):
    path = tmp_path / "short.py"
    path.write_text(content)
    assert read_place(f"{path}:{last}") == (str(path), content, "")
    status, out, err = call(capsys, "demo", "--file", f"{path}:{last + 1}")
    assert status == 2
    assert f"{path}: no line {last + 1}, the last is line {last}" in err
    assert len(err.strip().splitlines()) == 1
    assert not out


def test_lines_are_counted_as_editors_count_them(capsys, tmp_path):
    path = tmp_path / "page.py"
    path.write_bytes("a\fb\x0bc\x85d\u2028e\x1cf\ntwo\r\nthree\rfour".encode())
    assert read_place(f"{path}:1")[1:] == ("a\fb\x0bc\x85d\u2028e\x1cf\n", "two\nthree\nfour")
    assert read_place(f"{path}:3")[1:] == ("a\fb\x0bc\x85d\u2028e\x1cf\ntwo\nthree\n", "four")
    status, out, err = call(capsys, "demo", "--file", f"{path}:0")
    assert status == 2
    assert f"{path}: no line 0, the last is line 4" in err
    assert len(err.strip().splitlines()) == 1
    assert not out


@pytest.mark.parametrize("stdin", ["<&-", "</dev/null"])
def test_standard_input_without_a_prompt_is_refused(stdin):
    found = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m engine generate demo --prompt - --max-tokens 3 {stdin}', sys.executable],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert found.returncode == 2
    assert "no prompt was given" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not found.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo"], "no prompt was given"),
        (["demo", "--file", "/nowhere/at/all.py:3"], "/nowhere/at/all.py: No such file"),
        (["demo", "--prompt", "x", "--top-p", "3"], "--top-p"),
        (["demo", "--prompt", "x", "--max-tokens", "0"], "--max-tokens"),
        (["demo", "--prompt", "x", "--only", "tuned"], "no tuned model"),
        (["neither-run-nor-model", "--prompt", "x"], "no run and no model is called neither-run-nor-model"),
    ],
)
def test_what_is_refused_says_why(capsys, arguments, words):
    status, out, err = call(capsys, *arguments)
    assert status == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not out


def test_a_binary_file_is_no_prompt(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(EliteError, match="not UTF-8 text"):
        read_place(str(path))


class Slow:
    """A writer that never ends by itself."""

    name, device, sides = "slow", "cpu", ("base", "tuned")

    def write(self, request, side):
        while True:
            yield f"{request.prompt}."


def test_a_stop_ends_what_is_under_way_and_what_waits():
    said = []

    def lines():
        yield json.dumps({"id": 1, "prompt": "a"})
        yield json.dumps({"id": 2, "prompt": "b"})
        while not any(event["event"] == "text" for event in said):
            pass
        yield '{"stop": true}'
        yield "not json"

    serve(Slow(), lines(), said.append)
    assert said[0]["event"] == "ready"
    [done] = [event for event in said if event["event"] == "done"]
    assert (done["id"], done["side"], done["stopped"]) == (1, "base", True)
    assert [event["event"] for event in said[-1:]] == ["failed"]
    assert not any(event.get("id") == 2 for event in said)


def test_a_process_answers_an_app():
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", "generate", "demo", "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    out, _ = process.communicate(
        json.dumps({"id": 4, "prompt": "def f(", "sides": ["base"], "max_tokens": 4})
        + "\n"
        + json.dumps({"id": 5, "prompt": "def f(", "max_tokens": 2})
        + "\n",
        timeout=120,
    )
    events = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0
    assert events[0] == {"event": "ready", "name": "demo", "device": "cpu", "sides": ["base"]}
    done = [event for event in events if event["event"] == "done"]
    assert [(event["id"], event["tokens"], event["stopped"]) for event in done] == [(4, 4, False), (5, 2, False)]
    assert events[-1]["event"] == "failed"
    assert events[-1]["id"] == 5
    assert "tuned" in events[-1]["message"]


def test_requests_are_checked():
    import msgspec

    for bad in ({}, {"prompt": 1}, {"prompt": "x", "sides": ["other"]}, {"prompt": "x", "temperature": -1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, TextRequest)
