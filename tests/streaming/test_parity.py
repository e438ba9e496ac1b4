"""The streamed gradient is the gradient: every family, every exact option, odd lengths, tiles that do not divide."""

from __future__ import annotations

import pytest
import torch

from engine.models.families import FAMILIES as REGISTERED
from engine.models.families import supporting
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep
from tests.streaming.models import FAMILIES, tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error

CPU = torch.device("cpu")
TOLERANCE = 1e-5


def _tokens(n, seed=1):
    return torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(seed))


def test_every_supported_family_is_tested():
    # Families that a proof admitted, in another test of this process, are compared by that proof.
    listed = {family for family in supporting("streamed") if not REGISTERED[family].proof}
    assert listed == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "tile", "key_block"), [(101, 16, 32), (50, 64, 64)])
def test_full_gradient_of_every_family(family, n, tile, key_block):
    model = tiny_model(family)
    expected_loss, expected = whole_sequence(model, _tokens(n))
    with StreamedStep(model, StreamPlan(tile=tile, key_block=key_block, loss_piece=7), device=CPU) as step:
        loss, gradients = streamed(step, _tokens(n))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    error, name = worst_error(gradients, expected)
    assert error < TOLERANCE, name


OPTIONS = {
    "no stash": {"stash": False},
    "checkpoints": {"checkpoint_every": 2},
    "checkpoints, no stash": {"checkpoint_every": 2, "stash": False},
    "more layers between checkpoints than there are": {"checkpoint_every": 9, "stash": False},
    "disk": {"hidden_home": "disk", "stash_home": "disk"},
    "attention outputs on the disk": {"stash_home": "disk", "checkpoint_every": 2},
    "hidden states on the device": {"hidden_home": "gpu"},
    "streamed weights": {"weights": "streamed"},
    "host keys and values": {"kv_home": "host"},
    "everything": {
        "checkpoint_every": 3,
        "hidden_home": "disk",
        "stash_home": "disk",
        "weights": "streamed",
        "kv_home": "host",
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("family", ["qwen2", "gemma3_text"])
def test_every_exact_option(family, options, tmp_path):
    model = tiny_model(family)
    expected_loss, expected = whole_sequence(model, _tokens(77))
    plan = StreamPlan(tile=13, key_block=29, **options)
    assert plan.exact
    with StreamedStep(model, plan, device=CPU, spill_directory=tmp_path) as step:
        loss, gradients = streamed(step, _tokens(77))
        again = streamed(step, _tokens(77))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    error, name = worst_error(gradients, expected)
    assert error < TOLERANCE, name
    assert loss == again[0]
    assert all(torch.equal(gradients[name], again[1][name]) for name in gradients), "not bitwise the same twice"
    assert not list(tmp_path.iterdir()), "spill files stay behind"


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_packed_documents_keep_their_borders(family):
    model = tiny_model(family)
    starts = (0, 5, 6, 48, 90)
    expected_loss, expected = whole_sequence(model, _tokens(101), starts)
    with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step:
        loss, gradients = streamed(step, _tokens(101), document_starts=starts)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    error, name = worst_error(gradients, expected)
    assert error < TOLERANCE, name


def test_sequences_of_changing_length_share_the_buffers():
    model = tiny_model("llama")
    with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step:
        for n in (40, 90, 17, 2, 64):
            expected_loss, expected = whole_sequence(model, _tokens(n, seed=n))
            loss, gradients = streamed(step, _tokens(n, seed=n))
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert worst_error(gradients, expected)[0] < TOLERANCE, n


def test_a_short_sequence_after_a_long_one_was_only_scored():
    model = tiny_model("llama")
    expected_loss, expected = whole_sequence(model, _tokens(33))
    with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step:
        step.evaluate(_tokens(90))
        loss, gradients = streamed(step, _tokens(33))
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert worst_error(gradients, expected)[0] < TOLERANCE


def test_the_model_is_left_as_it_was_found():
    model = tiny_model("qwen2").eval()
    tokens = _tokens(30)[None]
    before = model(input_ids=tokens, use_cache=False).logits
    plan = StreamPlan(tile=16, key_block=16, weights="streamed")
    with StreamedStep(model, plan, device=CPU) as step:
        step.run(tokens[0])
        assert torch.equal(model(input_ids=tokens, use_cache=False).logits, before), "usable between steps"
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, before)
    assert model.config._attn_implementation == "sdpa"
