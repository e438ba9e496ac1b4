"""Looking after the machine: memory that runs short, heat. The machine's files are real files of the test's own."""

from __future__ import annotations

import dataclasses

import psutil
import pytest
from support.runs import build, new_session

from engine.hardware.nvml import GpuSample
from engine.models.fine_tuning import AdapterTuning
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import StreamPlan
from engine.protocol.events import RecoveryTaken, WarningRaised
from engine.steps.failures import HostMemoryLowError
from engine.steps.fallback_policy import FallbackPolicy
from engine.steps.oom_fallback import FallbackStep
from engine.steps.whole_step import WholeSequenceStep
from engine.training.loop import fit
from engine.training.watches import HeatWatch, HostMemoryWatch, read_stall

GIB = 1 << 30


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def machine(tmp_path):
    """A control group of 4 GiB in which `use` GiB are used and everything stalls for some percent of the time."""

    def set_up(used, stalled=0.0):
        for folder in ("proc/self", "proc/pressure", "sys/fs/cgroup"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self/cgroup").write_text("0::/\n")
        group = tmp_path / "sys/fs/cgroup"
        (group / "cgroup.controllers").write_text("memory\n")
        (group / "memory.max").write_text(f"{4 * GIB}\n")
        (group / "memory.current").write_text(f"{int(used * GIB)}\n")
        (group / "memory.stat").write_text("inactive_file 0\n")
        (tmp_path / "proc/pressure/memory").write_text(
            f"some avg10=90.00 avg60=0.00 avg300=0.00 total=0\nfull avg10={stalled} avg60=0.00 avg300=0.00 total=0\n"
        )
        return tmp_path

    if psutil.virtual_memory().available < 5 * GIB:
        pytest.skip("the group must be what limits")
    return set_up


def watch(root, clock, can_shrink=True):
    message = []
    return HostMemoryWatch(0.05, emit=message.append, can_shrink=lambda: can_shrink, root=root, clock=clock), message


def test_low_memory_asks_for_smaller_buffers_and_then_waits_for_their_effect(machine):
    clock = Clock()
    look, _ = watch(machine(3.0), clock)
    look()
    machine(3.9)
    look()  # not yet: it looked a moment ago
    clock.now = 2
    with pytest.raises(HostMemoryLowError, match="RAM are left"):
        look()
    clock.now = 30
    look()
    clock.now = 70
    with pytest.raises(HostMemoryLowError):
        look()


def test_stalls_count_only_where_little_is_left(machine):
    clock = Clock()
    look, _ = watch(machine(1.0, stalled=60.0), clock)
    look()
    machine(3.5, stalled=5.0)
    clock.now = 2
    look()
    machine(3.5, stalled=60.0)
    clock.now = 4
    with pytest.raises(HostMemoryLowError, match="waiting for memory"):
        look()


def test_where_nothing_can_shrink_it_warns_once(machine):
    clock = Clock()
    look, message = watch(machine(3.95), clock, can_shrink=False)
    for clock.now in (0, 100, 200):
        look()
    assert [event.code for event in message] == ["host-memory-low"]


@pytest.mark.parametrize("text", ["", "full\n", "full avg10=x\n", "\xff", "full avg10=12.5 total=1\n"])
def test_whatever_the_kernel_says_about_stalls(tmp_path, text):
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/pressure/memory").write_text(text, encoding="latin-1")
    assert read_stall(tmp_path) == (12.5 if "12.5" in text else 0.0)


def test_memory_that_runs_short_within_a_step_makes_the_step_smaller(tmp_path):
    session = new_session(tmp_path, lora={"dropout": 0.0})
    short = [True]

    class Pressed(WholeSequenceStep):
        def run(self, windows, scale, monitor):
            if short and short.pop():
                raise HostMemoryLowError("1 GiB of 32 GiB RAM are left")
            return super().run(windows, scale, monitor)

        def close(self):
            pass

    def step_type(model, recompute):
        policy = FallbackPolicy(context=64, layers=2, quantised=False, on_gpu=True, streamable=True)
        return FallbackStep(
            AdapterTuning(model),
            StepLayout(stream=StreamPlan()),
            build=lambda layout: Pressed(model, recompute=False),
            smaller=policy.smaller,
            notify=lambda what, why: session.emit(RecoveryTaken(what=what, why=why)),
        )

    parts, progress = build(session, step_type=step_type)
    assert fit(session, parts, progress) == "completed"
    (taken,) = session.of(RecoveryTaken)
    assert "stash_home host → disk" in taken.what
    assert "RAM" in taken.why


def test_heat_is_a_warning_every_half_hour_at_most():
    cool = GpuSample(
        index=0,
        name="Card",
        memory_used=None,
        memory_total=None,
        utilisation=None,
        power=None,
        power_limit=None,
        temperature=91.0,
        clock=600.0,
        clock_max=2000.0,
        throttled=("power",),
    )
    hot = dataclasses.replace(cool, throttled=("heat",))
    clock, message, now = Clock(), [], [cool]
    look = HeatWatch(message.append, sample=lambda: now, clock=clock)
    look()
    now[:] = [hot]
    for clock.now in (10, 40, 80, 1900):
        look()
    assert [type(event) for event in message] == [WarningRaised] * 2
    assert message[0].text == "GPU 0 at 91 °C slows down to 30% of its clock"
