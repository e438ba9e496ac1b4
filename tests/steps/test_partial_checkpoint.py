"""A long step saved within itself: what was saved goes on to the same gradient, and only where it belongs."""

from __future__ import annotations

import pytest
import torch
from steps.test_whole_step import Quiet, adapted, gradients
from support.mounts import needs_mount, run_mounted
from support.tiny import patterned_windows

from engine.models.adapter import trainable
from engine.models.fine_tuning import AdapterTuning
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import StreamPlan
from engine.protocol.events import LogLine, RecoveryTaken, WarningRaised
from engine.steps.oom_fallback import FallbackStep
from engine.steps.partial_checkpoint import PartialCheckpointStore, clear
from engine.steps.streamed_windows import StreamedWindows
from engine.steps.whole_step import StepAbandonedError

CPU = torch.device("cpu")
PLAN = StreamPlan(tile=16, key_block=32)
WINDOWS = patterned_windows([61, 33])


class Killed(BaseException):
    """The process is gone: nothing after this happens."""


def store_at(folder, every=0.0):
    folder.mkdir(exist_ok=True)  # a run directory is there before its step
    events = []
    store = PartialCheckpointStore(folder / "in-step", every, events.append)
    return store, events


def start(folder, every=0.0, dropout=0.1):
    torch.manual_seed(7)
    model = adapted(dropout=dropout).train()
    store, events = store_at(folder, every)
    way = StreamedWindows(AdapterTuning(model), PLAN, device=CPU, spill_directory=folder, store=store)
    torch.manual_seed(3)
    return model, way, store, events


def saves(events):
    return [event for event in events if isinstance(event, LogLine)]


@pytest.mark.parametrize("boundary", range(1, 5))
def test_killed_after_any_save_and_resumed(tmp_path, boundary):
    """Two windows of two layers: a save after each loss and above each layer but the last."""
    whole, way, _, _ = start(tmp_path / "whole", every=1e9)
    expected = way.run(WINDOWS, 0.01, Quiet())
    after = torch.get_rng_state()

    _, way, store, events = start(tmp_path / "cut")
    write = store.at_boundary

    def killed(*arguments, **options):
        write(*arguments, **options)
        if len(saves(events)) == boundary:
            raise Killed

    store.at_boundary = killed
    with pytest.raises(Killed):
        way.run(WINDOWS, 0.01, Quiet())
    model, way, _, events = start(tmp_path / "cut")
    torch.manual_seed(999)  # whatever this process drew before the checkpoint was restored
    torch.manual_seed(3)
    found = way.run(WINDOWS, 0.01, Quiet())
    assert found == expected
    assert torch.equal(torch.get_rng_state(), after)
    for name, gradient in gradients(whole).items():
        assert torch.equal(gradients(model)[name], gradient), name
    (taken,) = [event for event in events if isinstance(event, RecoveryTaken)]
    assert "went on within the step" in taken.what
    found = way.run(WINDOWS, 0.01, Quiet())  # gradients add up: nothing of the state is used again
    assert found.tokens == expected.tokens


def test_a_state_saved_under_another_tile_goes_on(tmp_path):
    """Memory ran out, or the plan of today is another: the same gradient, up to the order of its sums."""
    whole, way, _, _ = start(tmp_path / "whole", every=1e9, dropout=0.0)
    expected = way.run(WINDOWS, 0.01, Quiet())
    model, way, _, _ = start(tmp_path, dropout=0.0)
    fails = [True]

    class Failing(Quiet):
        def progress(self, stage, done, total, *, layer=None, tile=None):
            if stage == "backward" and done > 2 and fails and fails.pop():
                raise MemoryError

    def build_way(layout):
        plan = layout.stream
        return StreamedWindows(AdapterTuning(model), plan, device=CPU, spill_directory=tmp_path, store=way._store)

    step = FallbackStep(
        AdapterTuning(model),
        StepLayout(stream=PLAN),
        build=build_way,
        smaller=lambda layout, place: StepLayout(stream=StreamPlan(tile=7, key_block=16)),
        notify=lambda what, why: None,
    )
    found = step.run(WINDOWS, 0.01, Failing())
    assert not fails
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-4, atol=1e-6)
    step.close()


def test_numbers_drawn_for_other_tiles_begin_the_step_again(tmp_path):
    """Half a gradient at one dropout mask and half at another is no function's: the step is the new tiles' own."""
    model, way, _, _ = start(tmp_path / "whole", every=1e9)
    finer = StreamPlan(tile=7, key_block=16)
    other = StreamedWindows(AdapterTuning(model), finer, device=CPU, spill_directory=tmp_path)
    torch.manual_seed(3)
    expected, wanted = other.run(WINDOWS, 0.01, Quiet()), gradients(model)

    _, way, _, _ = start(tmp_path)
    way.run(WINDOWS, 0.01, Quiet())
    model, way, _, events = start(tmp_path)
    other = StreamedWindows(AdapterTuning(model), finer, device=CPU, spill_directory=tmp_path, store=way._store)
    assert other.run(WINDOWS, 0.01, Quiet()) == expected
    assert not [event for event in events if isinstance(event, RecoveryTaken)]
    assert "drawn for tiles of 16 tokens, and the tiles are now 7" in saves(events)[0].text
    for name, gradient in wanted.items():
        assert torch.equal(gradients(model)[name], gradient), name


def test_a_state_of_an_earlier_version_begins_the_step_again(tmp_path, monkeypatch):
    """It drew random numbers by another rule, and said of some that there were none."""
    import engine.steps.partial_checkpoint as module

    written = module._about
    monkeypatch.setattr(module, "_about", lambda *a: {k: v for k, v in written(*a).items() if k != "drawn_tile"})
    _, way, _, _ = start(tmp_path)
    expected = way.run(WINDOWS, 0.01, Quiet())
    _, way, _, events = start(tmp_path)
    assert way.run(WINDOWS, 0.01, Quiet()) == expected
    assert not [event for event in events if isinstance(event, (RecoveryTaken, WarningRaised))]
    assert "an earlier version's" in saves(events)[0].text


@pytest.mark.parametrize("change", ["weights", "windows", "scale", "filling"])
def test_a_state_of_another_step_is_not_used(tmp_path, change):
    _, way, _, _ = start(tmp_path)
    way.run(WINDOWS, 0.01, Quiet())
    model, way, _, events = start(tmp_path)
    windows, scale = list(WINDOWS), 0.01
    if change == "weights":
        next(iter(trainable(model).values())).data.view(-1)[3] += 1e-3
    elif change == "windows":
        windows = list(patterned_windows([61, 33], seed=9))
    elif change == "filling":  # saved on a CPU, resumed on a GPU
        way = StreamedWindows(
            AdapterTuning(model), PLAN, device=CPU, spill_directory=tmp_path, store=way._store, fill_up_to=64
        )
    else:
        scale = 0.02
    way.run(windows, scale, Quiet())
    assert not [event for event in events if isinstance(event, RecoveryTaken)]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "half written", "not safetensors"])
def test_a_damaged_state_is_told_and_the_step_begins_anew(tmp_path, damage):
    whole, way, _, _ = start(tmp_path)
    expected = way.run(WINDOWS, 0.01, Quiet())
    folder = tmp_path / "in-step"
    target = min(folder.glob("stream-*"))
    content = bytearray(target.read_bytes())
    if damage == "truncated":
        target.write_bytes(content[:-5])
    elif damage == "flipped":
        content[-1] ^= 4
        target.write_bytes(content)
    elif damage == "missing":
        target.unlink()
    elif damage == "half written":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text("[]")
    model, way, _, events = start(tmp_path)
    assert way.run(WINDOWS, 0.01, Quiet()) == expected
    assert [event.code for event in events if isinstance(event, WarningRaised)] == ["in-step-damaged"]
    for name, gradient in gradients(whole).items():
        assert torch.equal(gradients(model)[name], gradient)


class Watch:
    """A clock that tells what it is told to tell."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Slow(Quiet):
    """Every tile takes a second; a stop is asked for at a moment."""

    def __init__(self, clock, stop_at=None):
        super().__init__()
        self._clock, self._stop_at = clock, stop_at

    def progress(self, *arguments, **where):
        self._clock.now += 1.0

    def stop_requested(self):
        return self._stop_at is not None and self._clock.now >= self._stop_at


def with_clock(folder, every):
    model = adapted().train()
    clock, events = Watch(), []
    store = PartialCheckpointStore(folder / "in-step", every, events.append, clock)
    return StreamedWindows(AdapterTuning(model), PLAN, device=CPU, spill_directory=folder, store=store), clock, events


def test_saved_every_so_often_and_not_in_a_short_step(tmp_path):
    way, clock, events = with_clock(tmp_path, every=600.0)
    way.run(WINDOWS, 0.01, Slow(clock))
    assert not saves(events)
    way, clock, events = with_clock(tmp_path, every=10.0)
    way.run(WINDOWS, 0.01, Slow(clock))
    assert 1 <= len(saves(events)) <= 3


def test_a_stop_waits_for_a_near_boundary_and_not_for_a_far_one(tmp_path):
    """60 tokens are 4 tiles, and a layer's backward pass takes 4 s: after the loss a boundary is always near."""
    way, clock, events = with_clock(tmp_path, every=600.0)
    with pytest.raises(StepAbandonedError):
        way.run(WINDOWS, 0.01, Slow(clock, stop_at=2))
    assert clock.now == 2
    assert not saves(events)
    way, clock, events = with_clock(tmp_path, every=600.0)
    monitor = Slow(clock, stop_at=29)
    with pytest.raises(StepAbandonedError):
        way.run([WINDOWS[0]] * 3, 0.01, monitor)
    assert clock.now > 29
    assert len(saves(events)) == 1


FULL = """
import shutil, sys
from pathlib import Path
from steps.test_partial_checkpoint import WINDOWS, saves, start
from steps.test_whole_step import Quiet
from engine.protocol.events import WarningRaised

mount = Path(sys.argv[1])
_, way, _, events = start(mount)
way.run(WINDOWS, 0.01, Quiet())
assert len(saves(events)) == 4
(mount / "ballast").write_bytes(bytes(shutil.disk_usage(mount).free - 4096))
_, way, _, events = start(mount)
way.run(list(WINDOWS)[:1], 0.01, Quiet())
assert {e.code for e in events} == {"in-step-not-saved"}, events
print(sorted(p.name for p in mount.iterdir()))
"""


@needs_mount
def test_a_full_disk_does_not_stop_the_step(tmp_path):
    assert run_mounted(FULL, tmp_path, "1m").strip() == "['ballast', 'in-step']"


def test_the_state_is_small_beside_the_hidden_states(tmp_path):
    _, way, _, _ = start(tmp_path)
    way.run(WINDOWS, 0.01, Quiet())
    folder = tmp_path / "in-step"
    stream = sum(path.stat().st_size for path in folder.glob("stream-*"))
    assert stream < 1.5 * max(len(window) for window in WINDOWS) * 32 * 4
    clear(folder)
    assert not list(tmp_path.iterdir())
