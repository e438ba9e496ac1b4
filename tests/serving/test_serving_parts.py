"""Parts of the endpoint: text that stops, the worker's turns and failures, the guard, and what the command refuses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command_line import status_of
from support.exports import byte_fallback_tokenizer, byte_level_tokenizer

from engine.cli import main
from engine.generation.sampling import Sampling
from engine.generation.writer import open_writer
from engine.serving.guard import Guard, host_of, is_loopback
from engine.serving.prompts import Prompts
from engine.serving.requests import ChatRequest, CompletionRequest, RequestError
from engine.serving.text import StoppingText
from engine.serving.worker import Job, StoppedError, Worker
from tests.generation.test_together import by_library, prompts
from tests.serving.client import made_run
from tests.streaming.models import tiny_model

TOKENIZERS = {"byte-level": byte_level_tokenizer(), "byte-fallback": byte_fallback_tokenizer()}
WORDS = st.text(st.sampled_from("ab{}\n é€😀"), max_size=30)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60)
@given(text=WORDS, stops=st.lists(st.text(st.sampled_from("ab{}\n é😀"), min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(kind, text, stops):
    tokenizer = TOKENIZERS[kind]
    prompt = tokenizer.encode("x = ", add_special_tokens=False).ids
    tokens = tokenizer.encode(f"a{text}", add_special_tokens=False).ids
    alone = StoppingText(tokenizer, prompt, [])
    whole = "".join(map(alone.push, tokens)) + alone.end()
    assert whole.strip() == f"a{text}".strip()
    stream = StoppingText(tokenizer, prompt, stops)
    parts = []
    for token in tokens:
        parts.append(stream.push(token))
        assert "\ufffd" not in parts[-1]
    parts.append(stream.end())
    # Character by character: the first end of a stop string, and of those that end there, the longest.
    ended = [whole[:n] for n in range(len(whole) + 1) if any(whole[:n].endswith(stop) for stop in stops)]
    assert stream.stopped == bool(ended)
    expected = min((ended[0].removesuffix(stop) for stop in stops), key=len) if ended else whole
    assert "".join(parts) == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_tokens_can_be_decoded(kind, data):
    tokenizer = TOKENIZERS[kind]
    count = tokenizer.get_vocab_size() - 1
    tokens = data.draw(st.lists(st.integers(0, count), max_size=20))
    stream = StoppingText(tokenizer, tokens[:3], ["a"])
    for token in tokens[3:]:
        stream.push(token)


# --- the worker --------------------------------------------------------------------------------------------------


class Writer:
    """Two models in memory, each open by itself, the first after a failure if one is set."""

    def __init__(self):
        self.models = {"base": tiny_model("qwen2").eval(), "tuned": tiny_model("qwen3").eval()}
        self.encoder = SimpleNamespace(ends=frozenset())
        self.seen, self.failure = [], None

    @contextlib.contextmanager
    def opened(self, side):
        assert self.seen.count(None) * 2 == len(self.seen), "two models are open"
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.seen.append(side)
        yield self.models[side]
        self.seen.append(None)


class Heard:
    """What a job hears."""

    def __init__(self, side, prompt, count):
        self.events = []
        self.job = Job(side, prompt, Sampling(max_tokens=count), self.events.append)

    @property
    def tokens(self):
        return [event.token for event in self.events if event.token is not None]


@pytest.fixture
def said():
    return []


@pytest.fixture
def worker(said):
    made = Worker(Writer(), capacity=60_000, rows=2, report=said.append)
    yield made
    made.close()


def finish(worker):
    while worker.unanswered:
        pass


def test_models_take_turns_and_no_request_waits_for_later_ones(worker):
    wanted = [(side, prompt) for prompt in prompts((5, 9, 1)) for side in ("base", "base", "tuned")]
    heard = [Heard(side, prompt, 8) for side, prompt in wanted]
    for one in heard:
        worker.submit(one.job)
    finish(worker)
    models = worker._writer.models
    assert [one.tokens for one in heard] == [by_library(models[side], prompt, 8) for side, prompt in wanted]
    sides = [side for side in worker._writer.seen if side]
    assert sides == ["base", "tuned"] * 3


def test_cancelled_jobs_make_room(worker):
    endless = [Heard("base", [5, 6], 50_000) for _ in range(4)]
    for one in endless:
        worker.submit(one.job)
    while not endless[0].tokens:
        pass
    for one in endless:
        worker.cancel(one.job)
        worker.cancel(one.job)
    last = Heard("tuned", [7], 3)
    worker.submit(last.job)
    finish(worker)
    assert len(last.tokens) == 3
    assert all(len(one.tokens) < 50_000 for one in endless)
    worker.cancel(last.job)
    assert worker.unanswered == 0


def test_a_failure_is_told_and_the_next_request_answered(worker, said):
    worker._writer.failure = MemoryError("no room")
    first, second = Heard("base", [5], 3), Heard("base", [5], 3)
    worker.submit(first.job)
    finish(worker)
    worker.submit(second.job)
    finish(worker)
    assert isinstance(first.events[-1], Exception)
    assert len(said) == 1
    assert second.tokens == by_library(worker._writer.models["base"], [5], 3)


def test_an_end_ends_what_waits_and_runs(worker):
    jobs = [Heard(side, [5], 50_000) for side in ("base", "base", "base", "tuned")]
    for one in jobs:
        worker.submit(one.job)
    worker.close()
    assert all(isinstance(one.events[-1], StoppedError) for one in jobs)
    with pytest.raises(StoppedError):
        worker.submit(jobs[0].job)


# --- who is let in -----------------------------------------------------------------------------------------------


def test_hosts_on_loopback():
    for header in ("localhost", "LOCALHOST:80", "127.0.0.1", "127.1.2.3:1", "[::1]", "[::1]:8080", "localhost."):
        assert is_loopback(host_of(header)), header
    for header in ("", "evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "0.0.0.0", "192.168.1.1", "[::2]"):
        assert not is_loopback(host_of(header)), header


@pytest.mark.parametrize(("token", "loopback", "status"), [("", True, 200), ("x", True, 401), ("x", False, 401)])
def test_who_is_let_in(token, loopback, status):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(app, token=token, loopback=loopback)(scope, None, send))
    assert sent[0]["status"] == status
    with_token = {**scope, "headers": [*scope["headers"], (b"authorization", b"Bearer x")]}
    asyncio.run(Guard(app, token=token, loopback=loopback)(with_token, None, send))
    assert sent[-1]["status"] == 200


# --- the command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0", "--no-token"], "leave out --no-token"),
        (["--port", "70000"], "0 to 65,535"),
        (["--rows", "0"], "--rows"),
        (["--token", "a\nb"], "--token"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["neither-run-nor-model", "--port", "0"], "no run and no model is called"),
    ],
)
def test_what_is_refused_says_why(capsys, arguments, words):
    reference = [] if arguments[0][0] != "-" else ["demo"]
    assert status_of(["serve", *reference, *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert not captured.out


def test_a_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "demo", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1" in err
    assert "in use" in err
    assert len(err.splitlines()) == 1


def test_without_the_extra_one_line_says_what_to_install():
    code = "import sys; sys.modules['uvicorn'] = None; from engine.cli import main; sys.exit(main(['serve', 'demo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "elite-tui[serve]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- chat templates ----------------------------------------------------------------------------------------------


def test_a_template_that_a_run_was_trained_with_is_kept(tmp_path):
    """The file that the configuration names may change after training; the result holds a copy."""
    named = tmp_path / "own.jinja"
    named.write_text("{% for m in messages %}{{ m.content }}{% endfor %}!")
    run, _, tokenizer = made_run(tmp_path / "made", chat_template=str(named))
    (run.adapter_path / "chat_template.jinja").write_text(named.read_text())
    named.write_text("changed")
    writer = open_writer(str(run.path), notify=print)
    request = ChatRequest(messages=[{"role": "user", "content": "What is json"}], max_tokens=1)
    prepared = Prompts(writer, 480).prepare(request)
    assert tokenizer.decode(prepared.prompt) == "What is json!"
    assert (prepared.model, prepared.side) == (run.id, "tuned")


def test_without_a_template_chats_are_refused():
    prompts = Prompts(open_writer("demo", notify=print), 480)
    assert prompts.names == {"demo": "base"}
    with pytest.raises(RequestError, match="no chat template") as refused:
        prompts.prepare(ChatRequest(messages=[{"role": "user", "content": "x"}]))
    assert refused.value.status == 400
    with pytest.raises(RequestError, match="there is no model 'tuned'"):
        prompts.prepare(CompletionRequest(model="tuned", prompt="x"))
