"""Notices of a run's end and of trouble: a real HTTP server, a real notify-send on PATH, real training processes."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import queue
import re
import stat
import threading
import time
from dataclasses import dataclass, field

import pytest
from msgspec import structs

from engine import config as run_config
from engine.config import NotifySection
from engine.errors import EliteError
from engine.launch import launcher
from engine.launch.notifier import Notifier
from engine.launch.webhook import LARGEST, VARIABLE, WebhookError, body_of, find_url, post
from engine.protocol.events import (
    CommandAcked,
    PhaseChanged,
    RecoveryTaken,
    RunFailed,
    RunFinished,
    StepCompleted,
    WarningRaised,
)
from engine.protocol.wire import Envelope
from engine.runs.desktop import has_desktop, terminal_sequence
from engine.runs.notices import Notice, RepeatFilter, make_notice, notice_of
from engine.runs.resume_changes import changes
from tests.runs import recipes
from tests.runs.conftest import drain

SECRET = "T0ken5/xoxb-very-secret"
DONE = RunFinished(status="completed", steps=60, seconds=1.0, perplexity_before=60.34, perplexity_after=6.611)


@dataclass
class Receiver:
    """A webhook's server: keeps what it was sent, answers as told."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    requests: queue.Queue = field(default_factory=queue.Queue)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{SECRET}"

    def take(self, seconds: float = 20.0) -> dict[str, object]:
        return self.requests.get(timeout=seconds)


@pytest.fixture
def receiver():
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(receiver.wait_s)
            receiver.requests.put({"path": self.path, "type": self.headers["Content-Type"], "body": body})
            with contextlib.suppress(OSError):
                self.send_response(receiver.status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.end_headers()

        def do_GET(self):
            self.do_POST()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield receiver
    server.shutdown()
    server.server_close()


# --- what is worth a notice ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "kind", "said"),
    [
        (DONE, "completed", "60 steps, perplexity on held-out files 60.34 before, 6.611 after"),
        (RunFinished(status="stopped", steps=1, seconds=1.0), "stopped", "1 step"),
        (RunFailed(error="x", message="out of\x1b[31m memory", hint="less", exit_code=4), "failed", "memory; less"),
        (RecoveryTaken(what="repeated", why="a spike"), "recovered", "repeated (a spike)"),
        (WarningRaised(code="paused-disk-full", text="paused", hint="free 9 MB"), "paused", "paused; free 9 MB"),
        (WarningRaised(code="gpu-hot", text="hot"), None, ""),
        (CommandAcked(command_id="1", command="Pause", accepted=True), None, ""),
    ],
)
def test_an_end_and_trouble_are_noticed_in_safe_words(event, kind, said):
    notice = notice_of(event, "shop\x07")
    assert (notice and notice.kind) == kind
    if notice:
        assert said in notice.text
        assert all(c.isprintable() for c in notice.title + notice.text)


def test_a_kind_is_not_repeated_at_every_step_and_an_end_always_comes():
    now = [0.0]
    repeats = RepeatFilter(lambda: now[0])
    recovered, ended = make_notice("recovered", "r", "x"), make_notice("failed", "r", "x")
    assert [repeats.passes(recovered) for _ in range(3)] == [True, False, False]
    assert [repeats.passes(ended) for _ in range(2)] == [True, True]
    now[0] = 301.0
    assert repeats.passes(recovered)


# --- the terminal and the desktop ------------------------------------------------------------------------------

NOTICE = Notice(kind="completed", title="shop; completed", text="60 steps")


@pytest.mark.parametrize(
    ("environment", "sequence"),
    [
        ({}, "\x1b]9;Elite TUI: shop, completed: 60 steps\x1b\\\a"),
        ({"TERM": "xterm-kitty"}, "\x1b]9;Elite TUI: shop, completed: 60 steps\x1b\\\a"),
        ({"TERM": "foot"}, "\x1b]777;notify;shop, completed;60 steps\x1b\\\a"),
        ({"VTE_VERSION": "7600"}, "\x1b]777;notify;shop, completed;60 steps\x1b\\\a"),
        (
            {"TMUX": "/tmp/tmux-0/default,1,0"},
            "\x1bPtmux;\x1b\x1b]9;Elite TUI: shop, completed: 60 steps\x1b\x1b\\\x1b\\\a",
        ),
    ],
)
def test_a_terminal_gets_the_sequence_that_it_knows_and_the_bell(environment, sequence):
    assert terminal_sequence(NOTICE, environment) == sequence


def test_a_local_desktop_session_is_one_with_a_display_and_no_ssh(tmp_path):
    (tmp_path / "notify-send").write_text("#!/bin/sh\n")
    (tmp_path / "notify-send").chmod(0o755)
    local = {"DISPLAY": ":0", "PATH": str(tmp_path)}
    assert has_desktop(local)
    assert not has_desktop({**local, "SSH_CONNECTION": "1.2.3.4"})
    assert not has_desktop({**local, "DISPLAY": ""})
    assert not has_desktop({**local, "PATH": "/nowhere"})


# --- the webhook -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("", True),
        ("https://hooks.example.com/a/b?c=d", True),
        ("https://example.com", True),
        ("$MY_HOOK", True),
        ("http://localhost:8080/x", True),
        ("http://127.0.0.1:1/x", True),
        ("http://127.8.9.1", True),
        ("http://[::1]:9/x", True),
        ("http://example.com/x", False),
        ("http://localhost.example.com/x", False),
        ("http://localhost@example.com/x", False),
        ("http://127.0.0.1.example.com/", False),
        ("https://user:pw@example.com/x", False),
        ("ftp://example.com", False),
        ("file:///etc/passwd", False),
        ("https://a b", False),
        ("hooks.example.com", False),
    ],
)
def test_only_https_and_this_machine_are_allowed(url, allowed):
    problems = run_config.find_problems({"notify": {"webhook": url}})
    assert bool(problems) != allowed
    assert all(url not in problem.problem + problem.remedy for problem in problems)


def test_a_url_may_be_in_the_environment():
    url = "https://example.com/x"
    assert find_url("", {}) == ""
    assert find_url("", {VARIABLE: url}) == url
    assert find_url("$HOOK", {"HOOK": url, VARIABLE: "https://other"}) == url
    assert find_url(url, {VARIABLE: "https://other"}) == url
    for setting, environment in (("$HOOK", {}), ("$HOOK", {"HOOK": "http://e.com/s3cr3t"}), ("", {VARIABLE: "$HOOK"})):
        with pytest.raises(WebhookError) as caught:
            find_url(setting, environment)
        assert "s3cr3t" not in str(caught.value)


def test_a_body_is_json_of_a_bounded_size():
    notice = make_notice("failed", "n" * 5000, "界" * 5000)
    body = body_of(notice, {"run": "r" * 5000, "step": 2**60})
    assert len(body) <= LARGEST
    found = json.loads(body)
    assert found["event"] == "failed"
    assert found["text"] == found["content"]


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 500])
def test_any_other_answer_is_an_error_and_no_redirect_is_followed(receiver, status):
    receiver.status = status
    receiver.headers = {"Location": f"http://127.0.0.1:{receiver.port}/elsewhere"}
    with pytest.raises(WebhookError) as caught:
        post(receiver.url, b"{}")
    assert str(caught.value) == f"it answered {status}"
    assert receiver.take()["path"] == f"/{SECRET}"
    assert receiver.requests.empty()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/{}",
        "https://nowhere.invalid/{}",
        "https://127.0.0.1:1/{}\n",
        "http://127.0.0.1:99999/{}",
        "http://127.0.0.1:1/{} \x00",
    ],
)
def test_no_failure_quotes_the_url(url, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WebhookError) as caught:
        post(url.format(SECRET), b"{}")
    assert not re.search("secret|xoxb|nowhere", str(caught.value))


def test_plain_text_where_tls_is_expected_is_an_error(receiver):
    with pytest.raises(WebhookError, match="certificate is not accepted"):
        post(receiver.url.replace("http:", "https:"), b"{}")


def test_a_proxy_is_not_asked_for_this_machine(receiver, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    post(receiver.url, b"{}")
    assert receiver.take()["body"] == b"{}"


# --- the thread ------------------------------------------------------------------------------------------------


def envelope(event):
    return Envelope(run="r", seq=0, time=0.0, event=event)


STEP = StepCompleted(
    step=7, total_steps=60, epoch=0.1, loss=1.0, lr=1.0, grad_norm=1.0, tokens=1, tokens_per_second=1.0
)


def test_a_slow_receiver_holds_up_nobody_and_no_notice_grows_the_queue_for_ever(receiver):
    receiver.wait_s = 0.3
    problems: list[str] = []
    notifier = Notifier(NotifySection(webhook=receiver.url), "shop", report=problems.append)
    notifier.hear(envelope(STEP))
    for _ in range(500):
        notifier.hear(envelope(DONE))
    assert notifier._queue.qsize() <= 32
    first = json.loads(receiver.take()["body"])
    assert (first["step"], first["total_steps"], first["run"], first["model"]) == (7, 60, "r", "shop")
    assert not problems


def test_an_end_is_sent_again_and_a_failure_is_said_once(receiver):
    receiver.status = 503
    problems: list[str] = []
    notifier = Notifier(NotifySection(webhook=receiver.url), "shop", report=problems.append)
    notifier.hear(envelope(RecoveryTaken(what="a", why="b")))
    notifier.hear(envelope(DONE))
    notifier.close()
    events = [json.loads(receiver.take()["body"])["event"] for _ in range(3)]
    assert events == ["recovered", "completed", "completed"]
    assert problems == ["it answered 503"]


def test_a_run_that_shows_no_work_is_noticed_once_and_a_paused_one_is_not(receiver):
    now = [0.0]
    settings = NotifySection(webhook=receiver.url, stalled_minutes=10)
    notifier = Notifier(settings, "shop", report=lambda text: None, clock=lambda: now[0])
    notifier.hear(envelope(STEP))
    now[0] = 599.0
    notifier._look()
    assert receiver.requests.empty()
    now[0] = 601.0
    notifier._look()
    notifier._look()
    assert "10 minutes" in json.loads(receiver.take()["body"])["text"]
    notifier.hear(envelope(CommandAcked(command_id="1", command="Pause", accepted=True)))
    now[0] = 5000.0
    notifier._look()
    notifier.hear(envelope(CommandAcked(command_id="2", command="Resume", accepted=True)))
    notifier.hear(envelope(DONE))
    now[0] = 9000.0
    notifier._look()
    assert json.loads(receiver.take()["body"])["event"] == "completed"
    notifier.close()
    assert receiver.requests.empty()


# --- a whole run -----------------------------------------------------------------------------------------------


def run_with(make_config, mode, notify):
    config = make_config(mode)
    config = structs.replace(config, notify=run_config.NotifySection(**notify))
    handle = launcher.launch(config, recipe=recipes.PATH)
    events = drain(handle)
    assert handle.wait_exit(60)
    handle.close()
    return handle.run, events


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [("ok", ["completed"]), ("trouble", ["recovered", "paused", "completed"]), ("crash", ["failed"])],
)
def test_a_run_s_own_process_posts_and_no_file_holds_the_secret(make_config, receiver, mode, kinds):
    run, events = run_with(make_config, mode, {"webhook": receiver.url})
    sent = [receiver.take() for _ in kinds]
    assert receiver.requests.empty()
    bodies = [json.loads(one["body"]) for one in sent]
    assert [body["event"] for body in bodies] == kinds
    assert {body["run"] for body in bodies} == {run.id}
    assert {(one["path"], one["type"]) for one in sent} == {(f"/{SECRET}", "application/json")}
    assert not any(isinstance(one.event, WarningRaised) and "webhook" in one.event.text for one in events)
    holding = [path.name for path in run.path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holding == ["config.yaml"]
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_a_receiver_that_is_away_is_a_warning_without_the_url_and_the_run_completes(make_config):
    url = f"http://127.0.0.1:1/{SECRET}"
    run, events = run_with(make_config, "trouble", {"webhook": url})
    assert run.status() == "completed"
    time_out = [one.event for one in events if isinstance(one.event, WarningRaised)]
    log = run.log_path.read_text()
    assert "the webhook cannot be reached" in log + "".join(event.text for event in time_out)
    assert SECRET not in log + run.journal_path.read_text()


def test_a_variable_that_is_not_set_is_a_warning_of_an_attempt_that_has_begun(make_config, monkeypatch):
    """What comes before its first event would count the hours since the last attempt as work."""
    monkeypatch.delenv("NO_SUCH_HOOK", raising=False)
    run, events = run_with(make_config, "ok", {"webhook": "$NO_SUCH_HOOK"})
    assert run.status() == "completed"
    assert events[0].event == PhaseChanged(phase="starting")
    warnings = [one.event for one in events if isinstance(one.event, WarningRaised)]
    assert [(one.code, "$NO_SUCH_HOOK is not set" in one.text) for one in warnings] == [("notification-failed", True)]


def test_a_local_desktop_is_notified_without_a_monitor(make_config, tmp_path, monkeypatch):
    said = tmp_path / "said"
    program = tmp_path / "bin" / "notify-send"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nfor a in "$@"; do echo "$a"; done >> {said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.delenv("SSH_TTY", raising=False)
    run_with(make_config, "ok", {})
    assert said.read_text().splitlines() == [
        "--app-name=elite-tui",
        "--",
        "ok completed",
        "5 steps, perplexity on held-out files 7.389 before, 4.48 after",
    ]
    said.unlink()
    run_with(make_config, "ok", {"desktop": False})
    assert not said.exists()


def test_a_resumed_run_may_notify_elsewhere_and_its_change_is_not_quoted():
    before = run_config.from_mapping({"notify": {"webhook": f"https://example.com/{SECRET}"}})
    (change,) = changes(before, run_config.RunConfig(), scheduled=True)
    assert change.allowed
    assert str(change) == "notify.webhook"


def test_a_refused_value_is_not_quoted():
    with pytest.raises(EliteError) as caught:
        run_config.from_mapping({"notify": {"webhook": f"http://example.com/{SECRET}"}})
    assert SECRET not in str(caught.value)
    assert "notify.webhook" in str(caught.value)
