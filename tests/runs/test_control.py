"""The control socket: who may use it, what it takes, and where it cannot be."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
import threading
import time

import pytest

from engine.errors import EliteError
from engine.errors.runs import RUN_CONTROL_UNREACHABLE, RUN_NOT_ACTIVE
from engine.launch.handle import RunHandle
from engine.protocol.commands import COMMANDS, Pause, Stop
from engine.protocol.events import CommandAcked
from engine.protocol.wire import Envelope
from engine.runs.control import ControlServer, deliver_command, send_command, short_address
from engine.runs.process_record import ProcessRecord, write_record
from engine.runs.run_directory import RunDirectory
from tests.runs.conftest import drain, run_alone


@pytest.fixture
def run(make_config):
    """A run that this process claims to train."""
    run = RunDirectory.create(make_config())
    write_record(run.process_path, ProcessRecord.of_process(os.getpid(), 0))
    return run


@pytest.fixture
def serve(run):
    """A server that acknowledges every command."""
    servers = []

    def start(answers=True):
        def deliver(command):
            received.append(command)
            if answers:
                event = CommandAcked(command_id=command.id, command=type(command).__name__, accepted=True)
                server.answer(Envelope(run=run.id, seq=0, time=0.0, event=event))

        received = []
        server = ControlServer(run.socket_path, deliver)
        servers.append(server)
        return server, received

    yield start
    for server in servers:
        server.close()


def say(run, data):
    """What the server answers to raw bytes, up to its silence or its end."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(0.5)
        with short_address(run.socket_path) as address:
            client.connect(address)
        answer = b""
        try:
            client.sendall(data)
            while piece := client.recv(4096):
                answer += piece
        except (TimeoutError, ConnectionError):
            pass
        return answer.decode()


def test_a_command_is_answered(run, serve):
    _, received = serve()
    assert send_command(run, Stop(id="a")).accepted
    deliver_command(run, Pause(id="b"))
    assert received == [Stop(id="a"), Pause(id="b")]
    assert stat.S_IMODE(run.socket_path.stat().st_mode) == 0o600


def test_many_clients_at_once(run, serve):
    serve()
    answers = []
    threads = [
        threading.Thread(target=lambda n=number: answers.append(send_command(run, Pause(id=str(n))).command_id))
        for number in range(60)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers, key=int) == [str(n) for n in range(60)]


def test_no_answer_yet_is_a_timeout_not_an_error(run, serve):
    _, received = serve(answers=False)
    with pytest.raises(TimeoutError, match="has not acted"):
        send_command(run, Stop(id="a"), timeout=0.2)
    assert received == [Stop(id="a")]


def test_the_end_of_the_run_answers_who_still_waits(run, serve):
    server, received = serve(answers=False)
    problems = []

    def wait():
        with pytest.raises(EliteError) as caught:
            send_command(run, Stop(id="a"), timeout=60)
        problems.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    while not received:
        time.sleep(0.01)
    server.close()
    thread.join()
    assert "before it acted" in str(problems[0])


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"garbage\n",
        b"\xff\xfe\n",
        b'{"command":"Dance","id":"x"}\n',
        b'{"command":"Stop"}\n',
        b"[" * 9000 + b"\n",
    ],
    ids=["empty", "garbage", "binary", "unknown", "no id", "deep"],
)
def test_malformed_commands_are_refused_with_a_reason(run, serve, data):
    _, received = serve()
    assert "error" in say(run, data)
    assert received == []
    assert send_command(run, Stop(id="still served")).accepted


def test_an_endless_line_ends_the_connection_only(run, serve):
    serve()
    say(run, b"x" * 1_000_000)
    assert send_command(run, Stop(id="a")).accepted


def test_a_long_path_is_reached_through_a_link(make_config, tmp_path):
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 6)
    run = RunDirectory.create(make_config(output=deep))
    assert len(os.fsencode(run.socket_path)) > 107
    write_record(run.process_path, ProcessRecord.of_process(os.getpid(), 0))
    received = []
    server = ControlServer(run.socket_path, received.append)
    deliver_command(run, Stop(id="a"))
    assert received == [Stop(id="a")]
    server.close()
    assert not run.socket_path.exists()


def test_a_stale_socket_says_that_the_run_has_ended_and_is_replaced(run, serve):
    with socket.socket(socket.AF_UNIX) as left, short_address(run.socket_path) as address:
        left.bind(address)
    with pytest.raises(EliteError) as caught:
        send_command(run, Stop(id="a"))
    assert caught.value.kind is RUN_CONTROL_UNREACHABLE
    write_record(run.process_path, ProcessRecord(pid=2**22 + 1, start="0", place="nowhere", first_seq=0))
    os.utime(run.process_path, (0, 0))
    with pytest.raises(EliteError) as caught:
        send_command(run, Stop(id="a"))
    assert caught.value.kind is RUN_NOT_ACTIVE
    serve()
    assert send_command(run, Stop(id="b")).accepted


CONNECT_AS_ANOTHER = """
import os, socket, sys
from pathlib import Path
from engine.runs.control import short_address
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as client, short_address(Path(sys.argv[1])) as address:
    client.connect(address)
    client.settimeout(5)
    print(client.recv(4096).decode())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_even_where_the_file_would_let_him(run, serve):
    _, received = serve()
    run.socket_path.chmod(0o666)
    folder = run.path
    while folder != folder.parent:
        folder.chmod(folder.stat().st_mode | 0o055)
        folder = folder.parent
    answer = run_alone(CONNECT_AS_ANOTHER, run.socket_path)
    assert "user 65534 may not control" in answer
    assert received == []


def test_without_a_socket_the_run_warns_and_the_queue_still_works(launch, tmp_path, monkeypatch):
    # Neither the run's own path nor a link in this folder for temporary files fits a socket address.
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 6)
    deep.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", None)
    handle = launch(steps=500, output=deep / "out")
    events = drain(handle, lambda e: e.kind == "StepCompleted")
    warning = next(e.event for e in events if e.kind == "WarningRaised")
    assert warning.code == "control-unavailable"
    with pytest.raises(EliteError) as caught:
        RunHandle.attach(handle.run).send(Stop(id="a"))
    assert caught.value.kind is RUN_CONTROL_UNREACHABLE
    handle.send(Stop(id="b"))
    drain(handle)
    assert handle.ending.status == "stopped"


def test_commands_survive_the_wire(run, serve):
    _, received = serve()
    for cls in COMMANDS.values():
        deliver_command(run, cls(id=cls.__name__))
    assert [type(command) for command in received] == list(COMMANDS.values())


def test_a_socket_that_cannot_be_removed_does_not_fail_the_run(tmp_path, monkeypatch):
    server = ControlServer(tmp_path / "control.sock", lambda _: None)

    def refuse(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "unlink", refuse)
    server.close()
    monkeypatch.undo()
    ControlServer(tmp_path / "control.sock", lambda _: None).close()
    assert not (tmp_path / "control.sock").exists()
