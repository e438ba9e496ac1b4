"""Merging a lossy queue with the journal, and launching from within a Textual app."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from pathlib import Path
from queue import Empty

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.launch.handle import RunHandle
from engine.protocol.events import LogLine, RunFailed, RunStarted, StepCompleted, StepProgress
from engine.protocol.wire import encode_event
from engine.runs.journal import JournalWriter
from engine.runs.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]


class SlowQueue:
    """Stands for the pipe: what was put becomes readable when the test says so."""

    def __init__(self):
        self.in_flight, self.readable = deque(), deque()

    def arrive(self, count):
        for _ in range(min(count, len(self.in_flight))):
            self.readable.append(self.in_flight.popleft())

    def get_nowait(self):
        if not self.readable:
            raise Empty
        return self.readable.popleft()

    def close(self):
        pass


@settings(max_examples=150)
@given(
    actions=st.lists(
        st.tuples(st.booleans(), st.booleans(), st.integers(min_value=0, max_value=3), st.booleans()), max_size=60
    )
)
def test_every_event_once_and_in_order_whatever_the_queue_loses(tmp_path_factory, actions):
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    queue, writer = SlowQueue(), JournalWriter(run.journal_path, run.id)
    handle = RunHandle(run, events=queue)
    written, found = [], []
    for is_progress, is_lost, arriving, poll in actions:
        event = StepProgress(step=1, stage="x", done=1, total=1) if is_progress else LogLine(level="info", text="x")
        envelope = writer.append(event)
        written.append(envelope)
        if not is_lost:
            queue.in_flight.append(encode_event(envelope))
        queue.arrive(arriving)
        if poll:
            found += handle._merge(queue_is_fed=True)
    queue.arrive(len(written))
    found += handle._merge(queue_is_fed=False)
    writer.close()
    seqs = [envelope.seq for envelope in found]
    assert seqs == sorted(set(seqs))
    assert set(found) <= set(written)
    missing = [envelope for envelope in written if envelope not in found]
    assert all(isinstance(envelope.event, StepProgress) for envelope in missing)


def write_long(run, steps):
    """A journal of a run of so many steps, with long lines, so that few make it long."""
    journal = JournalWriter(run.journal_path, run.id)
    journal.append(RunStarted(model="demo", context=64, total_steps=steps))
    text = "x" * 20_000
    rest = {"epoch": 0.0, "loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "tokens": 1, "tokens_per_second": 1.0}
    for step in range(1, steps + 1):
        journal.append(StepCompleted(step=step, total_steps=steps, **rest))
        journal.append(LogLine(level="info", text=text))
    journal.close()


def test_of_a_long_journal_the_ends_are_read_first_and_everything_comes_once(tmp_path):
    run, steps = RunDirectory(tmp_path), 400
    write_long(run, steps)
    handle = RunHandle.attach(run)
    first = handle.glance()
    assert isinstance(first[0].event, RunStarted)
    assert [e.event.step for e in first if isinstance(e.event, StepCompleted)][-1] == steps
    assert len(first) < steps
    assert handle.poll()
    assert handle.behind
    assert 0.0 < handle.share < 1.0
    assert handle.glance() == []
    writer = JournalWriter(run.journal_path, run.id)
    latest = writer.append(LogLine(level="info", text="the latest"))
    writer.close()
    assert handle.glance() == [latest]
    found = RunHandle.attach(run).poll()
    again = RunHandle.attach(run)
    everything = again.poll()
    while again.behind:
        everything += again.poll()
    assert everything[: len(found)] == found
    journalled = [e for e in everything if not isinstance(e.event, RunFailed)]
    assert [e.seq for e in journalled] == list(range(2 * steps + 2))
    assert again.share == 1.0
    assert again.glance() == []


def test_a_short_journal_has_no_ends_of_its_own(tmp_path):
    run = RunDirectory(tmp_path)
    write_long(run, 3)
    assert RunHandle.attach(run).glance() == []


APP = """
import sys
from textual.app import App
from engine import config
from engine.launch import launcher
from tests.runs import recipes
from tests.runs.conftest import drain

class Launching(App):
    def on_mount(self):
        self.run_worker(self.launch, thread=True)

    def launch(self):
        assert sys.stderr.fileno() == -1, "Textual no longer replaces stderr: this test tests nothing"
        chosen = config.from_mapping({"output": {"directory": sys.argv[1]}})
        handle = launcher.launch(chosen, recipe=recipes.PATH)
        drain(handle)
        self.call_from_thread(self.exit, handle.ending.status)

if __name__ == "__main__":
    print(Launching().run(headless=True))
"""


def test_launch_in_a_running_textual_app(tmp_path):
    # In a process of its own, as the resource tracker of this one runs already.
    script = tmp_path / "app.py"
    script.write_text(APP)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "ELITE_TUI_STATE_DIR": str(tmp_path / "state"), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.strip().endswith("completed"), done.stderr
    assert "leaked" not in done.stderr
