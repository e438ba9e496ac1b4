"""Journals of any length: decoded as the protocol says, read in pieces, with lines that never end."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from engine.evaluation.curve import curve_of
from engine.launch.handle import RunHandle
from engine.protocol.events import EVENTS, EvalCompleted, LogLine, RunFinished, StepCompleted
from engine.protocol.wire import Envelope, ProtocolError, decode_event, encode_event
from engine.runs.event_decoder import event_decoder
from engine.runs.journal import JournalReader, JournalWriter, next_seq, read_events, seal_line
from engine.runs.run_directory import RunDirectory

HEAD = {"schema": 1, "run": "r", "seq": 3, "time": 1.5}
FIELDS = {
    "StepCompleted": {"step": 1, "total_steps": 2, "epoch": 0.5, "loss": 1.0, "lr": 1e-05, "grad_norm": None,
                      "tokens": 5, "tokens_per_second": 3.0},
    "StepProgress": {"step": 1, "stage": "forward", "done": 1, "total": 2},
    "EvalCompleted": {"step": 1, "loss": 1.0, "perplexity": None, "tokens": 4},
    "CheckpointSaved": {"step": 1, "path": "p", "bytes": 4},
    "LogLine": {"level": "info", "text": "t"},
    "CommandAcked": {"command_id": "a", "command": "b", "accepted": True},
    "RankReported": {"rank": 1, "step": 3},
    "RunFinished": {"status": "completed", "steps": 1, "seconds": 1.0},
    "RunFailed": {"error": "e", "message": "m", "hint": "h", "exit_code": 4},
    "RunStarted": {"model": "m", "context": 1, "total_steps": 4, "layout": {"a": 1}},
    "OfTheFuture": {"x": 1},
}  # fmt: skip
TEXTS = (
    "1.0", "1", "-0", "-0.0", "1e3", "1e400", "true", "null", "NaN", "Infinity", "-Infinity", '"x"', '"1"', "[]", "{}",
    "9223372036854775807", "9223372036854775808", "1e18", "1e19", "-1e19", "18446744073709551616", "10" * 200,
    '"\\ud800"', '"\x01"', '"\x7f"', '"a\\u0000b"', "01", "1.", "+1", ".5", "1E5", "1e-400", "1234567890123456789012.0",
    '"\\x"', "[[[[1]]]]", '"\x80"', "1 ", "\t1", "1 2", '"é"', "9007199254740993", "9007199254740993.0", "1e53",
    "-9223372036854775809", "[" * 9000,
)  # fmt: skip


def either(decode, line):
    try:
        return decode(line)
    except ProtocolError:
        return "refused"


@pytest.mark.parametrize("kind", FIELDS)
def test_every_line_is_decoded_as_by_the_protocol(kind):
    """Each field with each odd value: once, twice, first and last."""
    whole = {**HEAD, "kind": kind, **FIELDS[kind]}
    decode = event_decoder().decode
    for name in (*whole, "unknown", "seconds"):
        for text in TEXTS:
            parts = [f'"{key}":{text if key == name else json.dumps(value)}' for key, value in whole.items()]
            extra = f'"{name}":{text}'
            for chosen in (parts, [*parts, extra], [extra, *parts], parts[::-1], parts[:-1]):
                line = ("{" + ",".join(chosen) + "}").encode()
                assert either(decode, line) == either(decode_event, line), line


def test_every_kind_of_event_has_a_case_or_is_like_one():
    assert set(FIELDS) - {"OfTheFuture"} <= set(EVENTS)


def steps(count, first=1):
    more = {"epoch": 0.1, "loss": 1.0, "lr": 1.0, "grad_norm": None, "tokens": 2, "tokens_per_second": 1.0}
    return [StepCompleted(step=n, total_steps=count, **more) for n in range(first, first + count)]


def write(path, events):
    lines = [Envelope(run="r", seq=n, time=float(n), event=event) for n, event in enumerate(events)]
    path.write_bytes(b"".join(seal_line(encode_event(line).encode()) + b"\n" for line in lines))


def test_all_events_are_read_without_holding_them(tmp_path):
    path = tmp_path / "events.jsonl"
    peaks = {}
    for count in (3_000, 12_000):
        write(path, steps(count))
        tracemalloc.start()
        assert sum(1 for _ in read_events(path)) == count
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[12_000] < 1.2 * peaks[3_000]


def test_a_line_without_an_end_is_damage(tmp_path):
    """Forty megabytes of zeros, as a power loss may leave, and events behind them."""
    path = tmp_path / "events.jsonl"
    write(path, [LogLine(level="info", text="before")])
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + (40 << 20))
    tracemalloc.start()
    reader = JournalReader(path)
    found = [e for _ in range(6) for e in reader.poll(1 << 18)]
    assert next_seq(path) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [e.event.text for e in found] == ["before"]
    assert (reader.damaged, reader.behind) == (1, False)
    assert peak < 60 << 20
    line = encode_event(Envelope(run="r", seq=7, time=1.0, event=LogLine(level="info", text="after")))
    with path.open("ab") as file:
        file.write(b"\n" + line.encode() + b"\n")
    assert [e.event.text for e in reader.poll()] == ["after"]
    assert reader.damaged == 1
    assert next_seq(path) == 8
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + (40 << 20))
    writer = JournalWriter(path, "r")
    assert writer.next_seq == 8
    writer.close()
    assert path.read_bytes().endswith(line.encode() + b"\n")


@pytest.mark.parametrize("count", [1, 2, 300, 70_000, 140_000])
def test_numbering_goes_on_after_a_long_line(tmp_path, count):
    """Last lines that begin in the same block, in the one before, and several before."""
    path = tmp_path / "events.jsonl"
    write(path, [LogLine(level="info", text="x" * length) for length in (5, 70_000, count)])
    assert next_seq(path) == 3
    with path.open("ab") as file:
        file.write(b"y" * count)
    assert next_seq(path) == 3


def test_a_repeated_step_discards_the_later_ones_in_linear_time():
    """A hundred thousand steps with a rollback: by the square of it, minutes."""
    rolled_back = [*steps(50_000), EvalCompleted(step=50_000, loss=9.0, perplexity=None, tokens=1)]
    again = [*steps(50_000, first=25_001), EvalCompleted(step=75_000, loss=2.0, perplexity=None, tokens=1)]
    early = EvalCompleted(step=20_000, loss=3.0, perplexity=None, tokens=1)
    events = [Envelope(run="r", seq=n, time=1.0, event=event) for n, event in enumerate([*rolled_back, early, *again])]
    curve = curve_of(events)
    assert len(curve.training) == 75_000
    assert curve.training[-1] == (150_000.0, 1.0)
    assert curve.held_out == ((40_000.0, 3.0), (150_000.0, 2.0))


def test_a_resumed_run_is_caught_up_with_in_pieces(tmp_path, monkeypatch):
    """No poll decodes all of a long journal, also where events come by the queue; none is lost or doubled."""
    from multiprocessing import get_context

    import engine.launch.handle as handle_module

    monkeypatch.setattr(handle_module, "_READ_AT_ONCE", 5_000)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    events = [*steps(200), RunFinished(status="completed", steps=200, seconds=1.0)]
    write(run.journal_path, events)
    queue = get_context("spawn").Queue()
    for n, event in list(enumerate(events))[190:]:
        queue.put(encode_event(Envelope(run="r", seq=n, time=1.0, event=event)))
    handle = RunHandle(run, events=queue)
    polls = []
    while handle.ending is None:
        polls.append(handle.poll())
    handle.close()
    queue.join_thread()
    assert [e.seq for poll in polls for e in poll] == list(range(201))
    assert max(len(poll) for poll in polls) < 40
    assert run.journal_path.stat().st_size > 5_000 * 5
