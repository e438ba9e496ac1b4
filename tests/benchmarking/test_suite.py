"""The benchmark suite: which cases a machine gets, and what is left of failures and interruptions."""

from __future__ import annotations

import json

import pytest
from plan.machines import with_card, without_card

from engine.benchmarking.suite import OVERHEAD_SECONDS, Case, run_suite, suite, suite_table


@pytest.mark.parametrize("minutes", [10.0, 30.0, 120.0])
def test_a_suite_keeps_to_its_minutes_and_grows_with_them(minutes):
    machine = with_card("rtx-3090", 64)
    cases = suite(machine, minutes=minutes)
    assert sum(case.seconds for case in cases) <= 60 * minutes
    names = [case.name for case in cases]
    assert names[:3] == ["profile", "verify", "packing"]
    assert len(set(names)) == len(names)
    assert set(names) <= {case.name for case in suite(machine, minutes=2 * minutes)}


def test_a_machine_without_a_card_gets_the_embedded_model():
    cases = suite(without_card(), minutes=60)
    assert {case.name.split("-")[0] for case in cases} == {"profile", "verify", "packing", "streaming"}
    assert all("demo" in case.arguments for case in cases[2:])
    assert all(case.seconds > OVERHEAD_SECONDS for case in cases)


def test_results_failures_and_an_interruption(tmp_path):
    """One works, one is refused, one was measured before: its file is left as it is."""
    (tmp_path / "before.json").write_text('{"kept": 1}')
    streamed = ("bench", "streaming", "--model", "demo", "--context", "256", "--device", "cpu", "--layers", "1")
    cases = [
        Case(name="streaming", arguments=(*streamed, "--repeats", "1", "--json"), seconds=30),
        Case(name="refused", arguments=("plan", "--model", "no-such-model", "--json"), seconds=5),
        Case(name="before", arguments=("no-such-command",), seconds=5),
    ]
    message = []
    run_suite(cases, tmp_path, message.append)
    assert len(message) == 3
    assert "measured before" in message[2]
    assert json.loads((tmp_path / "before.json").read_text()) == {"kept": 1}
    assert "unknown model no-such-model" in json.loads((tmp_path / "refused.json").read_text())["failed"]
    found = json.loads((tmp_path / "streaming.json").read_text())
    assert found["command"].startswith("engine bench streaming")
    assert found["wall_seconds"] > found["seconds"]["total"]
    table = suite_table(tmp_path)
    assert "| demo, fp32 | 256 |" in table
    assert "- refused: " in table
    assert not list(tmp_path.glob(".*"))
