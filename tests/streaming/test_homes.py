"""Hidden states and saved attention outputs in homes of their own: the same bits, and no files that stay."""

from __future__ import annotations

import contextlib
import errno
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from engine.config import LoraSection
from engine.data.windows import Window
from engine.errors import EliteError
from engine.errors.planning import StreamPlanError
from engine.models.adapter import attach_adapter
from engine.models.fine_tuning import AdapterTuning
from engine.plan.step_layout import StepLayout
from engine.plan.stream_plan import StreamPlan
from engine.steps.fallback_policy import FallbackPolicy
from engine.steps.oom_fallback import FallbackStep
from engine.steps.streamed_windows import StreamedWindows
from engine.streaming.step import StreamedStep
from engine.verify.small import Unbothered
from tests.streaming.models import tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error
from tests.support.side_streams import simulated

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
TOKENS = torch.randint(0, 97, (77,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
@pytest.mark.parametrize("every", [1, 2])
def test_every_pair_of_homes_gives_the_same_bits(family, every, tmp_path):
    model, found = tiny_model(family), []
    for hidden, stash in product(("host", "gpu", "disk"), repeat=2):
        plan = StreamPlan(tile=13, key_block=29, hidden_home=hidden, stash_home=stash, checkpoint_every=every)
        with StreamedStep(model, plan, device=CPU, spill_directory=tmp_path) as step:
            found.append(streamed(step, TOKENS))
    loss, gradients = found[0]
    for other_loss, others in found[1:]:
        assert other_loss == loss
        assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("copied", [False, True], ids=["in place", "copied"])
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
@pytest.mark.parametrize("every", [1, 2])
def test_every_home_of_the_gradient_gives_the_same_bits(family, every, copied, tmp_path):
    """Nine pairs with that of the hidden states; an adapter's step, and the embedding's gradient at the end."""
    model, found = tiny_model(family), []
    with simulated("by chance") if copied else contextlib.nullcontext():
        for hidden, gradient in product(("host", "gpu", "disk"), repeat=2):
            plan = StreamPlan(tile=13, key_block=29, hidden_home=hidden, gradient_home=gradient, checkpoint_every=every)
            with StreamedStep(model, plan, device=CPU, spill_directory=tmp_path) as step:
                found.append(streamed(step, TOKENS))
                assert streamed(step, TOKENS)[0] == found[-1][0]
    loss, gradients = found[0]
    for other_loss, others in found[1:]:
        assert other_loss == loss
        assert others.keys() == gradients.keys()
        assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert not list(tmp_path.iterdir())
    expected_loss, expected = whole_sequence(model, TOKENS)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert worst_error(gradients, expected)[0] < 1e-5


@pytest.mark.parametrize(
    ("hidden", "stash", "gradient", "files"),
    [
        ("disk", "host", None, 4),
        ("host", "disk", None, 12),
        ("disk", "disk", None, 16),
        ("disk", "host", "host", 3),
        ("host", "host", "disk", 1),
    ],
)
def test_only_what_has_its_home_on_the_disk_is_written_there(hidden, stash, gradient, files, tmp_path):
    """Three layers' inputs and the gradient stream; outputs, logsumexp, keys and values of three layers."""
    plan = StreamPlan(tile=13, key_block=29, hidden_home=hidden, stash_home=stash, gradient_home=gradient)
    open_files = []

    def count(_):
        links = [link for link in Path("/proc/self/fd").iterdir() if link.exists() or link.is_symlink()]
        open_files.append(sum(str(tmp_path) in str(link.readlink()) for link in links if link.is_symlink()))

    with StreamedStep(tiny_model("qwen2"), plan, device=CPU, spill_directory=tmp_path) as step:
        step.run(TOKENS, progress=count)
    assert max(open_files) == files


KILLED = """
import sys, time
import torch
from pathlib import Path
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep
from tests.streaming.models import tiny_model

torch.set_num_threads(1)
homes = dict(zip(("hidden_home", "stash_home", "gradient_home"), sys.argv[2:]))
plan = StreamPlan(tile=64, key_block=64, **homes)

def wait(progress):
    if progress.stage == "backward":
        print("backward", flush=True)
        time.sleep(60)

with StreamedStep(tiny_model("qwen2"), plan, device=torch.device("cpu"), spill_directory=Path(sys.argv[1])) as step:
    step.run(torch.arange(512) % 97, progress=wait)
"""


@pytest.mark.parametrize("homes", [("disk", "disk"), ("host", "host", "disk"), ("disk", "host", "host")])
def test_a_step_that_is_killed_leaves_no_files(homes, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), *homes]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "backward\n"
        process.send_signal(signal.SIGKILL)
    assert not list(tmp_path.iterdir())


def test_attention_outputs_on_the_gpu_are_refused_where_keys_are_on_the_host():
    with pytest.raises(StreamPlanError, match="stash_home gpu"):
        StreamPlan(kv_home="host", stash_home="gpu")
    assert StreamPlan(kv_home="host", stash_home="gpu", stash=False).homes == ("host", "host")
    with pytest.raises(StreamPlanError, match="gradient_home gpu"):
        StreamPlan(kv_home="host", gradient_home="gpu")


@pytest.mark.parametrize(
    ("place", "before", "after"),
    [
        ("host", {}, {"stash_home": "disk"}),
        ("host", {"stash_home": "disk"}, {"hidden_home": "disk"}),
        ("host", {"stash": False}, {"hidden_home": "disk"}),
        ("host", {"stash": False, "hidden_home": "disk", "gradient_home": "host"}, {"gradient_home": "disk"}),
        ("disk", {"stash": False, "hidden_home": "disk", "checkpoint_every": 4}, {"gradient_home": "host"}),
        ("GPU", {"hidden_home": "gpu", "stash": False}, {"hidden_home": "host", "gradient_home": "host"}),
        ("GPU", {"hidden_home": "gpu", "gradient_home": "disk", "stash": False}, {"hidden_home": "host"}),
        ("GPU", {"gradient_home": "gpu", "stash": False}, {"gradient_home": "host"}),
        ("disk", {"stash_home": "disk"}, {"stash": False}),
        ("GPU", {"stash_home": "gpu", "hidden_home": "gpu"}, {"stash_home": "host"}),
        ("GPU", {"stash_home": "gpu", "tile": 256, "key_block": 256}, {"stash_home": "host"}),
    ],
)
def test_a_full_place_is_relieved_of_what_costs_least_to_move(place, before, after):
    plan = StreamPlan(**{"tile": 1024, "key_block": 4096, **before})
    policy = FallbackPolicy(context=8192, layers=4, quantised=False, on_gpu=True, streamable=True)
    smaller = policy.smaller(StepLayout(stream=plan), place).stream
    assert {name: getattr(smaller, name) for name in after} == after
    changed = [
        name
        for name in ("hidden_home", "gradient_home", "stash_home", "stash", "tile")
        if getattr(plan, name) != getattr(smaller, name)
    ]
    assert changed == list(after)


def test_outputs_that_must_be_saved_leave_a_full_disk():
    """Inputs of fewer layers, which wait in RAM, would not make room there."""
    policy = FallbackPolicy(
        context=8192, layers=4, quantised=False, on_gpu=True, streamable=True, fixed={"stash": True}
    )
    plan = StreamPlan(tile=1024, key_block=4096, hidden_home="host", stash_home="disk")
    assert policy.smaller(StepLayout(stream=plan), "disk").stream == replace(plan, stash_home="host")


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("place", ["GPU", "host", "disk"])
@pytest.mark.parametrize("fixed", ["hidden_home", "gradient_home"])
def test_a_fixed_home_holds_nothing_else_in_a_full_place(fixed, place, on_gpu):
    """Without a GPU, its home is host memory."""
    full = {"GPU": ("gpu",) if on_gpu else ("gpu", "host"), "host": ("host",) if on_gpu else ("gpu", "host")}
    free = "gradient_home" if fixed == "hidden_home" else "hidden_home"
    for hidden, gradient in product(("gpu", "host", "disk"), repeat=2):
        plan = StreamPlan(tile=1024, key_block=4096, stash=False, hidden_home=hidden, gradient_home=gradient)
        policy = FallbackPolicy(
            context=8192,
            layers=4,
            quantised=False,
            on_gpu=on_gpu,
            streamable=True,
            fixed={fixed: getattr(plan, fixed)},
        )
        layout = StepLayout(stream=plan)
        while (smaller := policy.smaller(layout, place)) is not None:
            layout = smaller
        assert getattr(layout.stream, fixed) == getattr(plan, fixed)
        assert getattr(layout.stream, free) not in full.get(place, ("disk",))


@pytest.mark.parametrize("start", [{"hidden_home": "host"}, {"hidden_home": "disk", "gradient_home": "host"}])
def test_a_step_ends_where_neither_ram_nor_the_disk_has_room(start, tmp_path):
    """Each sends the data to the other."""
    model, tried = tiny_model("qwen2"), []
    tuning = AdapterTuning(attach_adapter(model, LoraSection(rank=2), seed=1))

    class Full(Unbothered):
        def progress(self, *_, **__):
            plan = fallback.layout.stream
            tried.append(plan)
            assert len(tried) < 50
            if "host" in plan.homes:
                raise MemoryError
            raise OSError(errno.ENOSPC, "No space left on device")

    def build(layout):
        return StreamedWindows(tuning, layout.stream, device=CPU, spill_directory=tmp_path)

    plan = StreamPlan(tile=128, key_block=128, loss_piece=64, stash=False, **start)
    policy = FallbackPolicy(context=77, layers=4, quantised=False, on_gpu=True, streamable=True, way="streamed")
    fixed = replace(policy, fixed={"weights": "resident", "kv_home": "gpu", "stash": False})
    fallback = FallbackStep(
        tuning, StepLayout(stream=plan), build=build, smaller=fixed.smaller, notify=lambda what, why: None
    )
    with pytest.raises(EliteError) as caught:
        fallback.run([Window(TOKENS.numpy())], 0.01, Full())
    assert caught.value.code == "out-of-memory"
    assert len(set(tried)) > 2
    fallback.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "hidden", "stash", "largest", "remedy"),
    [
        (OSError(errno.ENOSPC, "full"), "host", "disk", "the attention stash", "stash_home=host, or stash=false"),
        (OSError(errno.ENOSPC, "full"), "disk", "host", "hidden states", "hidden_home=host, or checkpoint_every=2"),
        (MemoryError(), "host", "disk", "hidden states", "hidden_home=disk, or checkpoint_every=2"),
        (MemoryError(), "disk", "gpu", "the attention stash", "stash_home=disk, or stash=false"),
    ],
)
def test_a_full_place_is_named_with_what_it_holds(error, hidden, stash, largest, remedy, tmp_path):
    plan = StreamPlan(tile=64, key_block=64, hidden_home=hidden, stash_home=stash)

    def fail(_):
        raise error

    with StreamedStep(tiny_model("qwen2"), plan, device=CPU, spill_directory=tmp_path) as step:
        with pytest.raises(EliteError) as caught:
            step.run(TOKENS, progress=fail)
        assert f"{largest} (" in str(caught.value)
        assert remedy in caught.value.remedy
        assert not list(tmp_path.iterdir())
        assert step.run(TOKENS).predicted == 76
