"""The wire: what is written is what is read, and nothing malformed is let in."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import protocol
from engine.protocol import commands, events, wire
from engine.protocol.commands import Stop
from engine.protocol.events import LogLine, RunFinished, RunStarted, StepCompleted, UnknownEvent
from engine.protocol.wire import Envelope, ProtocolError, decode_command, decode_event, encode_command, encode_event

STEP = StepCompleted(
    step=1, total_steps=2, epoch=0.5, loss=2.0, lr=1e-4, grad_norm=1.0, tokens=10, tokens_per_second=5.0
)


def test_the_package_has_every_public_name():
    """For a program of its own that follows a run."""
    declared = {
        name
        for module in (commands, events, wire)
        for name, value in vars(module).items()
        if not name.startswith("_") and (getattr(value, "__module__", "") == module.__name__ or name.isupper())
    }
    assert declared - {"T"} == set(protocol.__all__)
    assert all(hasattr(protocol, name) for name in protocol.__all__)


def test_round_trip():
    envelope = Envelope(run="r", seq=3, time=1.5, event=STEP)
    line = encode_event(envelope)
    assert "\n" not in line
    assert decode_event(line) == envelope


def test_numbers_that_are_not_finite_become_null():
    event = StepCompleted(**{f.name: getattr(STEP, f.name) for f in fields(STEP)} | {"loss": math.nan})
    line = encode_event(Envelope(run="r", seq=0, time=0.0, event=event))
    assert json.loads(line)["loss"] is None
    assert decode_event(line).event.loss is None


def test_an_event_of_a_newer_engine_is_kept():
    line = '{"schema":1,"run":"r","seq":0,"time":1,"kind":"Teleported","x":1}'
    envelope = decode_event(line)
    assert envelope.event == UnknownEvent(name="Teleported", body={"x": 1})
    assert json.loads(encode_event(envelope)) == json.loads(line)


def test_a_new_field_of_a_newer_engine_is_dropped():
    line = encode_event(Envelope(run="r", seq=0, time=1.0, event=LogLine(level="info", text="x")))
    assert decode_event(line[:-1] + ',"colour":"red"}').event == LogLine(level="info", text="x")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "NaN",
        '{"schema":1}',
        '{"schema":2,"run":"r","seq":0,"time":1,"kind":"LogLine","level":"info","text":"x"}',
        '{"schema":1,"run":"r","seq":0,"time":1,"kind":"LogLine","level":"loud","text":"x"}',
        '{"schema":1,"run":"r","seq":0,"time":1,"kind":"LogLine","level":"info"}',
        '{"schema":1,"run":"r","seq":0,"time":1,"kind":"LogLine","level":"info","text":7}',
        '{"schema":true,"run":"r","seq":0,"time":1,"kind":"LogLine","level":"info","text":"x"}',
        '{"schema":1,"run":"r","seq":0,"time":NaN,"kind":"LogLine","level":"info","text":"x"}',
        "[" * 100_000,
        '{"schema":1,"run":"r","seq":0,"time":1' + "0" * 400 + ',"kind":"LogLine","level":"info","text":"x"}',
    ],
)
def test_malformed_events_are_refused(line):
    with pytest.raises(ProtocolError):
        decode_event(line)


def test_commands_round_trip_and_unknown_ones_are_refused():
    assert decode_command(encode_command(Stop(id="1", save=False))) == Stop(id="1", save=False)
    with pytest.raises(ProtocolError, match="unknown command 'Dance'"):
        decode_command('{"command":"Dance","id":"1"}')
    with pytest.raises(ProtocolError):
        decode_command('{"command":"Stop","id":"1","save":"yes"}')


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_no_input_raises_anything_else(line):
    for decode in (decode_event, decode_command):
        with contextlib.suppress(ProtocolError):
            decode(line)


def test_events_have_defaults_only_where_a_reader_may_miss_them():
    assert [f.name for f in fields(RunStarted)][:3] == ["model", "context", "total_steps"]


@pytest.mark.parametrize(
    "number", ["1" + "0" * 400, "-1" + "0" * 30, str(2**63)], ids=["400 digits", "-30 digits", "2^63"]
)
@pytest.mark.parametrize("field", ["step", "loss", "tokens", "time"])
def test_a_whole_number_that_no_screen_could_show_is_refused(field, number):
    told = json.loads(encode_event(Envelope(run="r", seq=0, time=1.0, event=STEP)))
    with pytest.raises(ProtocolError):
        decode_event(json.dumps({**told, field: "NUMBER"}).replace('"NUMBER"', number))


@pytest.mark.parametrize("value", [1e300, -1e300, 9.3e18])
def test_an_optional_number_too_large_to_compute_with_counts_as_absent(value):
    event = RunFinished(status="completed", steps=1, seconds=1.0, perplexity_after=value, perplexity_before=9e18)
    line = encode_event(Envelope(run="r", seq=0, time=1.0, event=event))
    found = decode_event(line).event
    assert found.perplexity_after is None
    assert found.perplexity_before == 9e18


@pytest.mark.parametrize("changed", [{"time": 1e300}, {"time": -1e12}, {"time": 10**18}, {"seq": -1}, {"lr": 1e300}])
def test_an_event_of_no_time_or_beyond_all_numbers_is_refused(changed):
    told = json.loads(encode_event(Envelope(run="r", seq=0, time=1.0, event=STEP)))
    with pytest.raises(ProtocolError):
        decode_event(json.dumps({**told, **changed}))
