"""What a run can go back to: complete snapshots, checkpoints written beside the training, and which of them stay."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.mounts import needs_mount, run_mounted
from support.runs import build, new_session
from torch.optim.swa_utils import AveragedModel

from engine import atomic_dir
from engine.atomic_dir import DamagedError
from engine.errors import EliteError
from engine.protocol.events import CheckpointSaved
from engine.randomness import capture_random
from engine.training import tensor_tree
from engine.training.checkpoints import CheckpointFolder, Retention, verify
from engine.training.loop import fit
from engine.training.saver import Saver
from engine.training.state import capture, read_snapshot, restore

FILES = {"state.json": b"{}"}
ROOT = Path(__file__).parents[2]


class Average:
    """Stands for whatever an optimisation keeps."""

    def __init__(self, parameter):
        self._averaged = AveragedModel(torch.nn.ParameterList([parameter]))
        self._updates = 0

    def update(self, parameter):
        self._updates += 1
        self._averaged.update_parameters(torch.nn.ParameterList([parameter]))

    def state_dict(self):
        return {"model": self._averaged.state_dict(), "updates": self._updates, "best": (0.5, float("inf"), None)}

    def load_state_dict(self, state):
        self._updates = state["updates"]
        assert state["best"] == (0.5, float("inf"), None)
        self._averaged.load_state_dict(state["model"])


def with_average(session):
    parts, progress = build(session)
    average = Average(torch.nn.Parameter(torch.arange(6.0)))
    parts.stateful.update(average=average)
    return parts, progress, average


def test_every_stateful_entry_is_saved_and_restored_to_the_bit(tmp_path):
    session = new_session(tmp_path)
    parts, progress, average = with_average(session)
    for _ in range(3):
        average.update(torch.nn.Parameter(torch.rand(6)))
    fit(session, parts, progress)
    saved = verify(session.run.path / session.of(CheckpointSaved)[-1].path)

    again, progress, fresh = with_average(new_session(tmp_path / "again"))
    restore(read_snapshot(saved), again)
    assert fresh._updates == 3
    expected = average.state_dict()["model"]
    assert all(torch.equal(value, expected[name]) for name, value in fresh.state_dict()["model"].items())
    before, after = parts.optimizer.state_dict(), again.optimizer.state_dict()
    assert json.dumps(before["param_groups"]) == json.dumps(after["param_groups"])
    for parameter, values in before["state"].items():
        assert all(torch.equal(torch.as_tensor(v), after["state"][parameter][n]) for n, v in values.items())


def test_a_snapshot_does_not_change_while_training_goes_on(tmp_path):
    session = new_session(tmp_path)
    parts, progress = build(session)
    snapshot = capture(parts, progress, capture_random())
    before = {f: {n: t.clone() for n, t in group.items()} for f, group in snapshot.tensors.items()}
    fit(session, parts, progress)
    assert snapshot.progress.step == 0
    for name, group in snapshot.tensors.items():
        assert all(torch.equal(tensor, before[name][key]) for key, tensor in group.items())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.sampled_from(["$tensor", "$items"]), inner)
        | st.builds(lambda x: torch.tensor(x), st.lists(st.floats(width=32)))
    ),
    max_leaves=12,
)


@given(JSON)
@example({"": {0: torch.ones(1)}, 0: torch.zeros(2)})
@example({0: torch.ones(1), "0": torch.zeros(2), "a": {"b": torch.ones(3)}, "a.b": torch.ones(4)})
def test_any_state_survives_a_checkpoint(tree):
    record, tensors = tensor_tree.split(tree)
    assert same(tensor_tree.join(json.loads(json.dumps(record, allow_nan=False)), tensors), tree)


def same(a, b):
    if isinstance(b, torch.Tensor):
        return torch.equal(a.nan_to_num(), b.nan_to_num()) and a.dtype == b.dtype
    if isinstance(b, float):
        return a == b or a != a
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in b)
    if isinstance(b, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


class Planted:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "adapter_model.safetensors", "state.json", "extra.pt"])
def test_a_planted_pickle_is_never_loaded(tmp_path, name):
    """Whole by its hashes, so that only the reader stands between it and the run."""
    session = new_session(tmp_path)
    parts, progress = build(session)
    fit(session, parts, progress)
    good = verify(session.run.path / session.of(CheckpointSaved)[-1].path)
    files = {file.name: file.read_bytes() for file in good.path.iterdir() if file.name != atomic_dir.MANIFEST}
    trace = tmp_path / "unpickled"
    files[name] = pickle.dumps(Planted(trace))
    path = tmp_path / "step-000006"
    atomic_dir.write(path, files.items(), good.about)
    if name == "extra.pt":
        restore(read_snapshot(verify(path)), parts)
    else:
        with pytest.raises(DamagedError):
            restore(read_snapshot(verify(path)), parts)
    assert not trace.exists()


# --- which stay --------------------------------------------------------------------------------------------


def saved_at(path, step, hour, loss=None):
    about = {"step": step, "saved_at": hour * 3600.0, "held_out_loss": loss}
    atomic_dir.write(path / f"step-{step:06d}", FILES.items(), about)


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_the_newest_the_best_and_one_for_every_so_many_hours_stay(tmp_path):
    for step, (hour, loss) in enumerate([(0, 3.0), (1, None), (2, 1.5), (5, 2.0), (5.5, None), (7, None)], start=1):
        saved_at(tmp_path, step, hour, loss)
    folder = CheckpointFolder(tmp_path, Retention(newest=1, best=True, hours=4))
    folder._prune()
    assert names(tmp_path) == ["step-000001", "step-000003", "step-000004", "step-000006"]
    CheckpointFolder(tmp_path, Retention(newest=1, best=True, hours=0))._prune()
    assert names(tmp_path) == ["step-000003", "step-000006"]
    CheckpointFolder(tmp_path, Retention(newest=1, best=False, hours=0))._prune()
    assert names(tmp_path) == ["step-000006"]


def test_the_weights_that_scored_best_are_kept(tmp_path):
    session = new_session(tmp_path, training={"epochs": 3, "evaluate_every": 3}, checkpoint={"keep": 1})
    parts, progress = build(session)
    scores = iter([2.0, 1.0, 1.5, 1.4, 1.3])
    parts = parts.__class__(**{**parts.__dict__, "evaluate": lambda: next(scores)})
    parts.checkpoints._retention = Retention(newest=1, best=True)
    assert fit(session, parts, progress) == "completed"
    assert names(session.run.checkpoints_path) == ["step-000006", f"step-{progress.total_steps:06d}"]


def test_a_replacement_cut_in_half_is_put_right(tmp_path):
    folder = CheckpointFolder(tmp_path, Retention())
    folder.save(3, FILES.items())
    (tmp_path / "step-000003").rename(tmp_path / ".step-000003.old")
    (tmp_path / ".step-000003.new").mkdir()
    folder.heal()
    assert verify(tmp_path / "step-000003")


def test_any_flipped_bit_of_a_manifest_is_noticed(tmp_path):
    saved_at(tmp_path, 3, hour=1)
    manifest = tmp_path / "step-000003" / atomic_dir.MANIFEST
    content = manifest.read_bytes()
    for bit in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(bytes(flipped))
        with pytest.raises(DamagedError):
            verify(manifest.parent)


def test_a_checkpoint_under_another_name_is_refused(tmp_path):
    folder = CheckpointFolder(tmp_path, Retention()).save(3, FILES.items()).path
    folder.rename(tmp_path / "step-000004")
    with pytest.raises(DamagedError, match="another name"):
        verify(tmp_path / "step-000004")


# --- beside the training -----------------------------------------------------------------------------------


def test_training_goes_on_while_a_checkpoint_is_written_and_its_failure_comes_back(tmp_path):
    gate = threading.Event()

    class Slow(CheckpointFolder):
        def save(self, *arguments):
            gate.wait(60)
            return super().save(*arguments)

    session = new_session(tmp_path)
    parts, progress = build(session)
    snapshot = capture(parts, progress, capture_random())
    message = []
    saver = Saver(Slow(tmp_path / "checkpoints", Retention()), message.append)
    saver.begin(snapshot)
    assert saver.busy
    assert not message
    gate.set()
    saver.wait()
    assert [saved.step for saved in message] == [0]
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("in the way")
    saver.begin(snapshot)
    with pytest.raises(EliteError, match="cannot be written"):
        saver.wait()
    saver.close()


def test_periodic_checkpoints_are_complete_when_the_run_ends(tmp_path):
    session = new_session(tmp_path, checkpoint={"every_minutes": 1e-9})
    parts, progress = build(session)
    assert fit(session, parts, progress) == "completed"
    for saved in session.of(CheckpointSaved):
        assert verify(session.run.path / saved.path).about["step"] == saved.step
    assert session.of(CheckpointSaved)[-1].step == progress.total_steps
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoint")]


FULL_DISK = """
import shutil, sys, threading, time
from pathlib import Path
from support.runs import build, new_session
from engine.protocol.events import WarningRaised, RecoveryTaken, StepCompleted, CheckpointSaved
from engine.training.loop import fit
from engine.training.checkpoints import verify
from engine.training.state import capture
from engine.randomness import capture_random

mount = Path(sys.argv[1])
often = {"every_minutes": 1e-9, "keep": 50}
session = new_session(mount / "run", training={"epochs": 4}, lora={"rank": 64}, checkpoint=often)
parts, progress = build(session)
class Inbox:
    stop_requested = False
    def poll(self): return None
    def wait(self, seconds): time.sleep(0.05)
session.commands = Inbox()
session.commands.step_done = lambda step: None
size = 3 * capture(parts, progress, capture_random()).size  # with the optimiser's states
(mount / "ballast").write_bytes(bytes(shutil.disk_usage(mount).free - 19 * size // 10))
emit = session.emit
def watching(event):
    emit(event)
    if isinstance(event, WarningRaised):
        newest = parts.checkpoints.newest_first()[0]
        print("paused", event.code, verify(newest).about["step"] >= 0)
        threading.Timer(0.3, (mount / "ballast").unlink).start()
session.emit = watching
print(fit(session, parts, progress), progress.step, len(session.of(StepCompleted)))
print("pruned", any("deleted" in e.what for e in session.of(RecoveryTaken)))
print("last", verify(mount / "run" / session.of(CheckpointSaved)[-1].path).about["step"])
"""


@needs_mount
def test_a_full_disk_prunes_pauses_and_goes_on_when_there_is_room(tmp_path):
    lines = run_mounted(FULL_DISK, tmp_path, "6m").splitlines()
    assert lines[0] == "paused paused-disk-full True"
    assert lines[-3].split()[0] == "completed"
    assert lines[-3].split()[1] == lines[-3].split()[2] == lines[-1].split()[1]
    assert lines[-2] == "pruned True"
