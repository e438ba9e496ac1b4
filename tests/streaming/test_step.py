"""Around the arithmetic: progress, cancellation, running out of memory, refusals, approximate options."""

from __future__ import annotations

import errno

import pytest
import torch

from engine.errors import EliteError
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StepCancelled, StreamedStep
from tests.streaming.models import tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error

CPU = torch.device("cpu")


def _tokens(n):
    return torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(1))


def test_progress_reaches_the_end_of_every_stage():
    seen = []
    with StreamedStep(tiny_model("llama"), StreamPlan(tile=16, key_block=16), device=CPU) as step:
        step.run(_tokens(50), progress=seen.append)
    for stage, total in (("forward", 12), ("loss", 4), ("backward", 12)):
        counts = [p.done for p in seen if p.stage == stage]
        assert counts[-1] == total
        assert counts == sorted(counts)


@pytest.mark.parametrize("after", [0, 5, 14, 20])
def test_cancellation_between_tiles_leaves_a_usable_step(after):
    model = tiny_model("llama")
    expected_loss, _ = whole_sequence(model, _tokens(50))
    asked = iter(range(1000))
    with StreamedStep(model, StreamPlan(tile=16, key_block=16), device=CPU) as step:
        with pytest.raises(StepCancelled):
            step.run(_tokens(50), cancelled=lambda: next(asked) >= after)
        assert model.config._attn_implementation == "sdpa"
        loss, _ = streamed(step, _tokens(50))
    assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_an_abandoned_sequence_does_not_leak_into_the_next(tmp_path):
    """Abandoned after each tile in turn, at a home where tiles are fetched ahead; then another sequence."""
    model = tiny_model("llama")
    expected_loss, expected = whole_sequence(model, _tokens(50))
    other = torch.randint(0, 97, (50,), generator=torch.Generator().manual_seed(2))
    plan = StreamPlan(tile=16, key_block=16, hidden_home="disk", stash_home="disk")
    with StreamedStep(model, plan, device=CPU, spill_directory=tmp_path) as step:
        for after in range(28):
            asked = iter(range(1000))
            with pytest.raises(StepCancelled):
                step.run(other, cancelled=lambda asked=asked, after=after: next(asked) >= after)
            loss, gradients = streamed(step, _tokens(50))
            assert loss == pytest.approx(expected_loss, rel=1e-5), after
            assert worst_error(gradients, expected)[0] < 1e-5, after


@pytest.mark.parametrize(("error", "place"), [(MemoryError(), "host"), (OSError(errno.ENOSPC, "full"), "disk")])
def test_a_full_home_is_named_with_a_remedy(error, place):
    def full(progress):
        if progress.stage == "loss":
            raise error

    with StreamedStep(tiny_model("llama"), StreamPlan(tile=16, key_block=16), device=CPU) as step:
        with pytest.raises(EliteError, match=f"out of {place} memory in loss"):
            step.run(_tokens(50), progress=full)
        with pytest.raises(OSError, match="other"):
            step.run(_tokens(50), progress=lambda progress: (_ for _ in ()).throw(OSError(errno.EIO, "other")))


def test_out_of_memory_is_one_typed_error_and_everything_is_released(monkeypatch):
    model = tiny_model("llama")
    step = StreamedStep(model, StreamPlan(tile=16, key_block=16), device=CPU)

    def full(progress):
        if progress.stage == "backward":
            raise torch.OutOfMemoryError("injected")

    with pytest.raises(EliteError) as caught:
        step.run(_tokens(50), progress=full)
    assert caught.value.code == "out-of-memory"
    assert "backward" in str(caught.value)
    assert "kv_home=host" in caught.value.remedy
    assert step.backend_name == "", "buffers are kept"
    assert step.run(_tokens(50)).predicted == 49
    step.close()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_hidden_states_are_close_and_small(bits):
    model = tiny_model("llama", initializer_range=0.02)
    exact_loss, exact = whole_sequence(model, _tokens(64))
    with StreamedStep(model, StreamPlan(tile=16, key_block=16, activation_bits=bits), device=CPU) as step:
        loss, gradients = streamed(step, _tokens(64))
    squares = sum((gradients[n] - exact[n]).square().sum() for n in exact)
    error = (squares / sum(exact[n].square().sum() for n in exact)).sqrt().item()
    assert loss == pytest.approx(exact_loss, rel=0.1)
    assert 0 < error < {8: 0.05, 4: 0.5}[bits]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"model_type": "bloom"}, "not been shown to be exact"),
    ],
)
def test_a_model_that_would_be_wrong_is_refused_by_name(changes, why):
    model = tiny_model("llama")
    for name, value in changes.items():
        if name == "model_type":
            type(model.config).model_type, old = value, type(model.config).model_type
        else:
            setattr(model.config, name, value)
    try:
        with pytest.raises(EliteError, match=why) as caught:
            StreamedStep(model, StreamPlan(tile=16, key_block=16), device=CPU)
        assert caught.value.code == "model-family-unsupported"
    finally:
        if "model_type" in changes:
            type(model.config).model_type = old


def test_rope_that_changes_with_length_is_refused_past_the_trained_length():
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    model = tiny_model("llama", max_position_embeddings=32, rope_parameters=scaling)
    with StreamedStep(model, StreamPlan(tile=16, key_block=16), device=CPU) as step:
        step.run(_tokens(32))
        with pytest.raises(EliteError, match="YaRN"):
            step.run(_tokens(33))


def test_yarn_past_the_trained_length():
    scaling = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32}
    model = tiny_model("llama", rope_parameters=scaling)
    expected_loss, _ = whole_sequence(model, _tokens(100))
    with StreamedStep(model, StreamPlan(tile=16, key_block=16), device=CPU) as step:
        assert step.run(_tokens(100)).loss_sum == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"tile": 0}, {"tile": 64, "key_block": 32}, {"kv_home": "host", "hidden_home": "gpu"}, {"checkpoint_every": 0}],
)
def test_contradicting_options_are_refused_with_a_reason(options):
    with pytest.raises(ValueError, match=r"must be|smaller|larger"):
        StreamPlan(**options)
