"""Failures injected where they happen in earnest: the run deals with them, says so, and learns what it should."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.runs import WINDOWS, build, new_session

from engine.errors import EliteError
from engine.models.adapter import trainable
from engine.models.fine_tuning import AdapterTuning
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import StreamPlan
from engine.protocol.commands import Stop
from engine.protocol.events import CheckpointSaved, RecoveryTaken, StepCompleted
from engine.steps.fallback_policy import FallbackPolicy
from engine.steps.oom_fallback import FallbackStep
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import WholeSequenceStep
from engine.training.checkpoints import verify
from engine.training.loop import fit
from engine.training.rollback import KEEP_STEPS
from engine.training.spikes import SpikeDetector
from engine.training.state import read_snapshot, restore

CPU = torch.device("cpu")
PLAN = StreamPlan(tile=16, key_block=32, loss_piece=16)


def out_of_memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@dataclass
class Faults:
    """What fails, once each: stage of the n-th step → exception. The step itself meets it in its monitor."""

    planned: dict = field(default_factory=dict)
    step: int = 0
    met: list = field(default_factory=list)

    def meet(self, stage):
        error = self.planned.pop((self.step, stage), None)
        if error is not None:
            self.met.append(stage)
            raise error


class Failing:
    """A way to compute a step whose stages fail as planned."""

    def __init__(self, way, faults):
        self._way, self._faults = way, faults
        self.close = way.close

    def run(self, windows, scale, monitor):
        faults = self._faults

        class Meeting:
            stop_requested = staticmethod(monitor.stop_requested)

            @staticmethod
            def progress(stage, done, total, **where):
                faults.meet(stage)

        result = self._way.run(windows, scale, Meeting())
        faults.meet("end")
        return result

    def loss(self, window):
        self._faults.meet("scoring")
        return self._way.loss(window)


def with_faults(session, faults, *, layout, smaller):
    """A run whose step re-plans, over ways that fail as planned."""

    def build_way(model, layout):
        if layout.stream is None:
            return Failing(WholeSequenceStep(model, recompute=layout.recompute), faults)
        way = StreamedWindows(AdapterTuning(model), layout.stream, device=CPU, spill_directory=session.run.path)
        return Failing(way, faults)

    def step_type(model, recompute):
        def notify(what, why):
            session.emit(RecoveryTaken(what=what, why=why))

        return FallbackStep(
            AdapterTuning(model), layout, build=lambda layout: build_way(model, layout), smaller=smaller, notify=notify
        )

    session.run.path.mkdir(parents=True, exist_ok=True)
    parts, progress = build(session, step_type=step_type)
    inner = parts.step.run

    def counted(windows, scale, monitor):
        faults.step = progress.step + 1
        return inner(windows, scale, monitor)

    parts.step.run = counted
    _open.append(parts.step)
    return parts, progress


_open = []


@pytest.fixture(autouse=True)
def close_steps():
    """Spill files are closed before the next test."""
    yield
    while _open:
        _open.pop().close()


def weights(parts):
    return {name: p.detach().clone() for name, p in trainable(parts.model).items()}


def losses(session):
    return [event.loss for event in session.of(StepCompleted)]


def same_layout(layout, place):
    return layout


@pytest.fixture
def undisturbed(tmp_path):
    """Losses and weights of a run in which nothing fails, by layout."""

    def run(layout):
        session = new_session(tmp_path / "undisturbed")
        parts, progress = with_faults(session, Faults(), layout=layout, smaller=same_layout)
        assert fit(session, parts, progress) == "completed"
        return losses(session), weights(parts)

    return run


@pytest.mark.parametrize("stage", ["forward", "loss", "backward", "end"])
@pytest.mark.parametrize("step", [1, 4])
def test_memory_that_runs_out_in_a_stage_repeats_the_same_step(tmp_path, undisturbed, stage, step):
    """With a re-plan that changes nothing, to compare bit for bit: dropout draws what it would have drawn."""
    expected, expected_weights = undisturbed(StepLayout(stream=PLAN))
    session = new_session(tmp_path / "run")
    faults = Faults({(step, stage): out_of_memory()})
    parts, progress = with_faults(session, faults, layout=StepLayout(stream=PLAN), smaller=same_layout)
    assert fit(session, parts, progress) == "completed"
    assert faults.met == [stage]
    assert losses(session) == expected
    for name, weight in weights(parts).items():
        assert torch.equal(weight, expected_weights[name]), name
    (taken,) = session.of(RecoveryTaken)
    assert "out of GPU memory" in taken.why


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", [1, 4])
def test_memory_that_runs_out_in_the_optimiser_repeats_the_updates_since_the_snapshot(
    tmp_path, undisturbed, moment, step
):
    expected, expected_weights = undisturbed(StepLayout(stream=PLAN))
    session = new_session(tmp_path / "run")
    parts, progress = with_faults(session, Faults(), layout=StepLayout(stream=PLAN), smaller=same_layout)
    fails = [step]

    def hook(optimizer, *_):
        if fails and progress.step + 1 == fails[0]:
            fails.clear()
            raise out_of_memory()

    optimizer = parts.optimizer.optimizer
    (optimizer.register_step_pre_hook if moment == "before" else optimizer.register_step_post_hook)(hook)
    assert fit(session, parts, progress) == "completed"
    assert {e.step: e.loss for e in session.of(StepCompleted)} == dict(enumerate(expected, start=1))
    for name, weight in weights(parts).items():
        assert torch.equal(weight, expected_weights[name]), name
    assert "went back to step 0" in session.of(RecoveryTaken)[-1].what


def test_memory_that_runs_out_while_scoring_repeats_the_scoring(tmp_path):
    session = new_session(tmp_path)
    faults = Faults({(0, "scoring"): out_of_memory()})
    parts, _ = with_faults(session, faults, layout=StepLayout(), smaller=lambda layout, place: StepLayout(stream=PLAN))
    with parts.model.disable_adapter():
        base = parts.step.loss(WINDOWS[0])
        assert faults.met == ["scoring"]
    with parts.model.disable_adapter():
        assert base == pytest.approx(WholeSequenceStep(parts.model, recompute=False).loss(WINDOWS[0]), rel=1e-5)
    session_losses = new_session(tmp_path / "whole")
    whole, progress = build(session_losses)
    assert fit(session_losses, whole, progress) == "completed"
    fit(session, parts, progress.__class__(total_steps=6))
    assert losses(session)[0] == pytest.approx(losses(session_losses)[0], rel=0.2)  # another draw of the dropout
    assert all(p.grad is not None or p.requires_grad for p in trainable(parts.model).values())


def test_whole_windows_give_way_to_recomputing_and_then_to_tiles(tmp_path):
    session = new_session(tmp_path, lora={"dropout": 0.0})
    reference = new_session(tmp_path / "reference", lora={"dropout": 0.0})
    parts, progress = build(reference)
    fit(reference, parts, progress)
    policy = FallbackPolicy(context=64, layers=2, quantised=False, on_gpu=False, streamable=True)
    faults = Faults({(2, "windows"): out_of_memory(), (3, "windows"): out_of_memory(), (4, "backward"): MemoryError()})
    parts, progress = with_faults(session, faults, layout=StepLayout(), smaller=policy.smaller)
    assert fit(session, parts, progress) == "completed"
    message = [event.what for event in session.of(RecoveryTaken)]
    assert "activations computed twice" in message[0]
    assert "tiles of" in message[1]
    assert len(message) == 3
    assert losses(session) == pytest.approx(losses(reference), rel=1e-4)


def test_when_nothing_smaller_is_left_the_run_ends_with_a_checkpoint_and_the_remedy(tmp_path):
    session = new_session(tmp_path)
    faults = Faults({(3, "windows"): out_of_memory()})
    parts, progress = with_faults(session, faults, layout=StepLayout(), smaller=lambda layout, place: None)
    with pytest.raises(EliteError) as caught:
        fit(session, parts, progress)
    assert caught.value.code == "out-of-memory"
    assert caught.value.remedy
    assert verify(session.run.path / session.of(CheckpointSaved)[-1].path).about["step"] in (0, 2)


# --- the loss ----------------------------------------------------------------------------------------------


class Poisoned(WholeSequenceStep):
    """Gives another loss than it should at chosen steps."""

    losses: dict
    run_count = 0

    def run(self, windows, scale, monitor):
        result = super().run(windows, scale, monitor)
        type(self).run_count += 1
        factor = self.losses.get(self.run_count)
        return result if factor is None else type(result)(summed=result.summed * factor, tokens=result.tokens)


def poisoned(losses):
    return type("Poisoned", (Poisoned,), {"losses": losses, "run_count": 0})


def test_a_loss_that_is_not_a_number_goes_back_skips_and_lowers_the_rate(tmp_path):
    session = new_session(tmp_path)
    parts, progress = build(session, step_type=poisoned({3: float("nan")}))
    before = {}
    emit = session.emit

    def remember(event):
        emit(event)
        if isinstance(event, RecoveryTaken):
            before.update(weights(parts))

    session.emit = remember
    initial = weights(parts)
    assert fit(session, parts, progress) == "completed"
    assert [e.step for e in session.of(StepCompleted)] == [1, 2, 4, 5, 6]
    assert progress.skipped == [1, 2, 3]  # the snapshot is the run's beginning, and these windows are passed over
    for name, weight in before.items():
        assert torch.equal(weight, initial[name])
    rates = {e.step: e.lr for e in session.of(StepCompleted)}
    whole = new_session(tmp_path / "whole")
    parts, whole_progress = build(whole)
    fit(whole, parts, whole_progress)
    expected = {e.step: e.lr for e in whole.of(StepCompleted)}
    assert rates[2] == expected[2]
    assert [rates[s] / expected[s] for s in (4, 5, 6)] == pytest.approx([0.5] * 3)
    (taken,) = session.of(RecoveryTaken)
    assert "skipped the data of steps 1 to 3" in taken.what
    assert "nan" in taken.why


def test_a_spike_goes_back_to_the_last_snapshot_and_past_it(tmp_path):
    session = new_session(tmp_path, training={"epochs": 6}, recovery={"spike_threshold": 5})
    parts, progress = build(session, step_type=poisoned({24: 3.0}))
    assert fit(session, parts, progress) == "completed"
    (taken,) = session.of(RecoveryTaken)
    assert f"went back to step {2 * KEEP_STEPS}" in taken.what
    assert progress.skipped == [21, 22, 23, 24]
    assert [e.step for e in session.of(StepCompleted)] == [s for s in range(1, progress.total_steps + 1) if s != 24]


def test_a_spike_soon_after_resuming_is_compared_with_the_losses_before(tmp_path):
    settings = {"training": {"epochs": 6}, "recovery": {"spike_threshold": 5}}
    first = new_session(tmp_path, {20: [Stop(id="1")]}, **settings)
    assert fit(first, *build(first)) == "stopped"
    session = new_session(tmp_path, run=first.run, resuming=True, **settings)
    parts, _ = build(session, step_type=poisoned({4: 3.0}))
    saved = read_snapshot(verify(first.run.path / first.of(CheckpointSaved)[-1].path))
    restore(saved, parts)
    assert fit(session, parts, saved.progress) == "completed"
    (taken,) = session.of(RecoveryTaken)
    assert "skipped the data of steps 21 to 24" in taken.what
    assert [e.step for e in session.of(StepCompleted)] == [21, 22, 23, *range(25, saved.progress.total_steps + 1)]


def test_it_gives_up_after_so_many_times_with_a_report(tmp_path):
    session = new_session(tmp_path, training={"epochs": 4}, recovery={"rollbacks": 2})
    nan = float("nan")
    parts, progress = build(session, step_type=poisoned({3: nan, 6: nan, 9: nan}))
    with pytest.raises(EliteError) as caught:
        fit(session, parts, progress)
    assert caught.value.code == "training-unstable"
    report = session.run.report_path.read_text()
    assert report.count("went back to step") == 2
    saved = read_snapshot(verify(session.run.path / session.of(CheckpointSaved)[-1].path))
    assert saved.progress.rollbacks == 2
    assert all(torch.isfinite(t).all() for t in saved.tensors["adapter_model.safetensors"].values())


def test_a_second_failure_after_going_back_uses_a_checkpoint_from_before(tmp_path):
    session = new_session(tmp_path, training={"epochs": 4}, checkpoint={"every_minutes": 1e-9, "keep": 100})
    nan = float("nan")
    parts, progress = build(session, step_type=poisoned({13: nan, 14: nan}))
    assert fit(session, parts, progress) == "completed"
    first, second = session.of(RecoveryTaken)
    went_back = [int(e.what.split("step ")[1].split(",")[0]) for e in (first, second)]
    assert went_back[0] <= 12
    assert went_back[1] <= 13
    assert progress.rate_scale == 0.25


def test_a_gpu_that_is_gone_leaves_the_snapshot_as_the_last_checkpoint(tmp_path):
    session = new_session(tmp_path, training={"epochs": 4})
    lost = RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")
    faults = Faults({(14, "windows"): lost})
    parts, progress = with_faults(session, faults, layout=StepLayout(), smaller=same_layout)
    with pytest.raises(EliteError) as caught:
        fit(session, parts, progress)
    assert caught.value.code == "gpu-lost"
    assert "step 10" in caught.value.remedy
    assert verify(session.run.path / session.of(CheckpointSaved)[-1].path).about["step"] == 10


def test_a_gpu_that_goes_between_two_steps_leaves_the_snapshot_too(tmp_path):
    session = new_session(tmp_path, training={"epochs": 4, "evaluate_every": 14})

    def gone():
        raise RuntimeError("CUDA error: unspecified launch failure")

    parts, progress = build(session)
    with pytest.raises(EliteError) as caught:
        fit(session, replace(parts, evaluate=gone), progress)
    assert caught.value.code == "gpu-lost"
    assert progress.step == 14
    assert verify(session.run.path / session.of(CheckpointSaved)[-1].path).about["step"] == 10


def test_an_error_that_nobody_foresaw_is_not_swallowed(tmp_path):
    session = new_session(tmp_path)
    faults = Faults({(2, "windows"): ZeroDivisionError("a defect")})
    parts, progress = with_faults(session, faults, layout=StepLayout(), smaller=same_layout)
    with pytest.raises(ZeroDivisionError):
        fit(session, parts, progress)


# --- the pieces --------------------------------------------------------------------------------------------

PLANS = st.builds(
    StreamPlan,
    tile=st.sampled_from([128, 1000, 4096, 16384]),
    key_block=st.sampled_from([16384, 65536]),
    stash=st.booleans(),
    checkpoint_every=st.sampled_from([1, 2, 8]),
    weights=st.sampled_from(["resident", "nf4"]),
    keep_layers=st.sampled_from([0, 5]),
    kv_home=st.just("gpu"),
    hidden_home=st.sampled_from(["gpu", "host", "disk"]),
    stash_home=st.sampled_from(["gpu", "host", "disk"]),
    gradient_home=st.sampled_from(["gpu", "host", "disk"]),
)


@given(
    layout=st.one_of(st.builds(StepLayout, recompute=st.booleans()), st.builds(StepLayout, stream=PLANS)),
    places=st.lists(st.sampled_from(["GPU", "host", "disk"]), min_size=1, max_size=3),
    on_gpu=st.booleans(),
    fixed=st.sets(
        st.sampled_from(
            [
                "tile",
                "key_block",
                "loss_piece",
                "stash",
                "hidden_home",
                "gradient_home",
                "stash_home",
                "kv_home",
                "weights",
            ]
        )
    ),
)
@example(
    layout=StepLayout(stream=replace(PLAN, tile=128, key_block=16384, hidden_home="gpu")),
    places=["GPU"],
    on_gpu=True,
    fixed={"hidden_home", "tile"},
)
def test_every_way_down_ends_and_changes_something_at_each_step(layout, places, on_gpu, fixed):
    asked = {name: getattr(layout.stream, name) for name in fixed} if layout.stream is not None else {}
    policy = FallbackPolicy(context=131072, layers=28, quantised=False, on_gpu=on_gpu, streamable=True, fixed=asked)
    seen = [layout]
    for place in places[:1] * 40:
        below = policy.smaller(seen[-1], place)
        if below is None:
            break
        assert below not in seen
        assert StepLayout.from_json(below.as_json()) == below
        assert below.stream is None or below.stream.exact
        assert all(getattr(below.stream, name) == value for name, value in asked.items())
        seen.append(below)
    assert policy.smaller(seen[-1], places[0]) is None


@given(st.lists(st.floats(1.0, 1.3), min_size=12, max_size=100), st.floats(4.0, 50.0))
def test_a_spike_is_found_among_steady_losses_and_steady_ones_are_not(steady, spike):
    detector = SpikeDetector(10.0)
    assert not any(detector.is_spike(loss) for loss in steady)
    assert detector.is_spike(spike)
    assert not SpikeDetector(0.0).is_spike(spike)


def test_a_falling_loss_is_no_spike():
    detector = SpikeDetector(10.0)
    assert not any(detector.is_spike(11.0 * 0.97**step + 0.2) for step in range(300))


def test_a_kernel_that_cannot_serve_here_ends_the_run_in_one_line(tmp_path):
    session = new_session(tmp_path)
    layout = StepLayout(stream=replace(PLAN, attention="flash"))
    parts, progress = with_faults(session, Faults(), layout=layout, smaller=same_layout)
    with pytest.raises(EliteError, match="attention backend flash cannot be used: needs an NVIDIA GPU") as caught:
        fit(session, parts, progress)
    assert caught.value.code == "layout-unavailable"
    assert "stream." in caught.value.remedy
