"""The streamed step's own tests, over homes that really copy (tests/support/side_streams.py), at three tiles and more.

Each test meets one schedule of the copies, named by a hash, so that all schedules are met; what is most exposed meets
every one.
"""

from __future__ import annotations

import zlib

import pytest
import torch

from engine.models.fine_tuning import FullTuning
from engine.plan.stream_plan import StreamPlan
from engine.streaming.step import StreamedStep
from tests.streaming import test_adapters, test_boundary, test_one_tile, test_parity, test_step
from tests.streaming.models import tiny_model
from tests.streaming.reference import streamed, whole_sequence, worst_error
from tests.support.side_streams import SCHEDULES, simulated

CPU = torch.device("cpu")
NAMES = sorted(SCHEDULES)


@pytest.fixture(autouse=True)
def copied(request):
    """The streams of this test's steps."""
    given = getattr(request.node, "callspec", None)
    schedule = given.params.get("schedule") if given else None
    with simulated(schedule or NAMES[zlib.crc32(request.node.nodeid.encode()) % len(NAMES)]) as made:
        yield made


def tokens(n):
    return torch.randint(0, 97, (n,), generator=torch.Generator().manual_seed(1))


def check(family, plan, folder, starts=(0,), n=93, **changes):
    """Loss and gradients, twice, beside those of the whole sequence."""
    model = tiny_model(family, **changes)
    expected_loss, expected = whole_sequence(model, tokens(n), starts)
    with StreamedStep(model, plan, device=CPU, spill_directory=folder) as step:
        for _ in range(2):
            loss, gradients = streamed(step, tokens(n), document_starts=starts)
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            error, name = worst_error(gradients, expected)
            assert error < 1e-5, name


# The tests of a step, once more, with copies.
test_every_exact_option = test_parity.test_every_exact_option
test_packed_documents_keep_their_borders = test_parity.test_packed_documents_keep_their_borders
test_sequences_of_changing_length = test_parity.test_sequences_of_changing_length_share_the_buffers
test_a_short_sequence_after_a_long_one = test_parity.test_a_short_sequence_after_a_long_one_was_only_scored
test_cancellation = test_step.test_cancellation_between_tiles_leaves_a_usable_step
test_an_abandoned_sequence = test_step.test_an_abandoned_sequence_does_not_leak_into_the_next
test_out_of_memory = test_step.test_out_of_memory_is_one_typed_error_and_everything_is_released
test_quantised_hidden_states = test_step.test_quantised_hidden_states_are_close_and_small


@pytest.mark.parametrize("options", [{"stash": False}, {"checkpoint_every": 2}, {"stash_home": "disk"}])
@pytest.mark.parametrize("keep", [0, 1])
def test_one_tile_with_every_option(options, keep, tmp_path):
    test_one_tile.test_gradient_of_every_option("gemma3_text", options, keep, tmp_path)


@pytest.mark.parametrize(
    "name", ["no stash", "every second layer", "every third layer, no stash", "disk", "weights streamed"]
)
def test_killed_at_every_layer_boundary(name, tmp_path):
    test_boundary.test_killed_at_every_layer_boundary(tmp_path, name, dropout=False)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stash", [True, False])
@pytest.mark.parametrize("hidden_home", ["host", "disk"])
def test_every_schedule_of_packed_windows(schedule, stash, hidden_home, tmp_path, copied):
    """Windowed and full layers, documents that begin within a tile, pages, checkpoints: five tiles."""
    plan = StreamPlan(
        tile=19,
        key_block=31,
        loss_piece=20,
        stash=stash,
        kv_home="host",
        hidden_home=hidden_home,
        stash_home=hidden_home,
        checkpoint_every=2,
    )
    check("gemma3_text", plan, tmp_path, (0, 7, 60))
    assert copied[0].to_device.copies > 100
    assert copied[0].to_host.copies > 100


WINDOWS = {
    "a page's border within the overlap": ("starcoder2", 90, 32, 32, (0, 20)),
    "a tile and a bit": ("mistral", 40, 32, 64, (0,)),
    "two tiles, packed": ("mistral", 64, 32, 64, (0, 10, 150)),
    "one tile, packed": ("mistral", 64, 64, 64, (0, 10, 150)),
    "half a page": ("mistral", 64, 64, 128, (0, 10, 150)),
    "odd": ("phi3", 47, 32, 64, (0,)),
    "shorter than a tile": ("mistral", 20, 64, 64, (0, 10, 55, 150)),
    "three tiles": ("starcoder2", 100, 32, 32, (0,)),
}


@pytest.mark.parametrize("layout", WINDOWS.values(), ids=WINDOWS.keys())
def test_windows_over_pages(layout, tmp_path):
    family, window, tile, key_block, starts = layout
    plan = StreamPlan(tile=tile, key_block=key_block, kv_home="host")
    check(family, plan, tmp_path, starts, n=230, sliding_window=window)


@pytest.mark.parametrize("weights", ["resident", "streamed"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_adapters_over_resident_and_streamed_weights(weights, schedule):
    model = tiny_model("qwen2")
    model.requires_grad_(requires_grad=False)
    model = test_adapters._adapt(model)
    expected_loss, expected = whole_sequence(model, tokens(93))
    with StreamedStep(model, StreamPlan(tile=19, key_block=31, weights=weights), device=CPU) as step:
        for _ in range(2):
            loss, gradients = streamed(step, tokens(93))
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert worst_error(gradients, expected)[0] < 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_that_are_trained_and_travel(schedule):
    """Updates of a bf16 model whose layers wait on the host: a stale copy, or a lost gradient, would show."""
    gradients = {}
    for weights in ("resident", "streamed"):
        model = tiny_model("llama", dtype=torch.bfloat16)
        tuning = FullTuning(model, CPU)
        assert tuning.masters is not None
        plan = StreamPlan(tile=16, key_block=32, weights=weights, kv_home="host")
        with StreamedStep(model, plan, device=CPU, wide_gradients=tuning.masters.gradients) as step:
            for _ in range(3):
                for master in tuning.weights.values():
                    master.grad = None
                step.run(tokens(60))
                with torch.no_grad():
                    for master in tuning.weights.values():
                        master -= 0.5 * master.grad
                tuning.publish()
            gradients[weights] = {name: p.grad.clone() for name, p in tuning.weights.items()}
    for name, expected in gradients["resident"].items():
        assert torch.equal(gradients["streamed"][name], expected), name
