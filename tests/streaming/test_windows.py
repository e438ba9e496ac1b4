"""Layers with a sliding window keep a ring of keys and values; the gradient is that of the whole sequence all the same.

The reference is written apart: transformers' eager attention over each document at once, in fp64. The ring under test
fills every place that it gives up with NaN, so that whatever is read after its time shows.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812
from transformers import AutoConfig, AutoModelForCausalLM

from engine.plan.stream_plan import StreamPlan
from engine.plan.window_ring import WindowRing, ring_for
from engine.streaming import workspace
from engine.streaming.kv_cache import KvShape
from engine.streaming.step import StepCancelled, StreamedStep
from engine.streaming.windowed_kv_cache import WindowedKvCache

CPU = torch.device("cpu")
WORDS = 83
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
KINDS = ["sliding_attention", "full_attention"] * 2
FAMILIES = {
    "mistral": {},
    "mistral, every head its own": {"num_key_value_heads": 4},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1, "head_dim": 12},
    "phi3": {},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "gemma3_text": {"layer_types": KINDS, "head_dim": 12},
}


class PoisonedRing(WindowedKvCache):
    """Holds NaN wherever nothing may be read any more."""

    made: list[WindowRing] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, ring, *arguments):
        super().__init__(ring, *arguments)
        self.made.append(ring)
        self._newest = -1
        for home in (self._k, self._v, self._dk, self._dv):
            home.fill_(torch.nan)

    def append(self, start, k, v):
        super().append(start, k, v)
        ring, tile = self.ring, start // self.ring.tile
        if tile > self._newest:  # going forward: what is out of the window of the tile's first query
            for place, held in enumerate(self._held):
                if held is not None:
                    first = (held + 1) * ring.tile - ring.kept
                    gone = min(max(start - ring.window + 1 - first, 0), ring.kept)
                    for home in (self._k, self._v):
                        home[place * ring.kept : place * ring.kept + gone] = torch.nan
        self._newest = tile

    def zero_gradients(self):
        super().zero_gradients()
        self._newest = 2**31
        for home in (self._k, self._v):
            home.fill_(torch.nan)

    def gradients(self, start, stop):
        dk, dv = (x.clone() for x in super().gradients(start, stop))
        place = start // self.ring.tile % self.ring.places * self.ring.kept
        for home in (self._k, self._v, self._dk, self._dv):
            home[place : place + self.ring.kept] = torch.nan
        return dk, dv


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    PoisonedRing.made.clear()
    monkeypatch.setattr(workspace, "WindowedKvCache", PoisonedRing)


def make(family, window, seed=0, dtype=torch.float64, **changes):
    settings_ = {**SHAPE, **FAMILIES.get(family, {}), "sliding_window": window, **changes}
    config = AutoConfig.for_model(family.split(",")[0], **settings_)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases of 0 and norms of 1 hide what is left out
                parameter += 0.2 * torch.randn(parameter.shape, dtype=dtype)
    return model.train()


def draw(n, seed=3):
    return torch.randint(1, WORDS, (n,), generator=torch.Generator().manual_seed(seed))


def at_once(model, ids, starts=(0,)):
    """Summed loss, and gradients of the mean, one document at a time by the model itself."""
    model.zero_grad()
    borders = [*starts, len(ids)]
    predicted, total = len(ids) - len(starts), 0.0
    for start, stop in pairwise(borders):
        logits = model(input_ids=ids[None, start:stop], use_cache=False).logits[0, :-1]
        loss = F.cross_entropy(logits, ids[start + 1 : stop], reduction="sum")
        (loss / predicted).backward()
        total += loss.item()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return total, found


def by_tiles(step, ids, starts=(0,), **arguments):
    step.model.zero_grad()
    step.wide_gradients.clear()
    loss = step.run(ids, document_starts=starts, **arguments).loss_sum
    sums = step.wide_gradients.sums
    return loss, {n: sums.get(p, p.grad).clone() for n, p in step.model.named_parameters() if p.grad is not None}


def check(found, expected, tolerance=2e-6):
    """The loss and its gradient are fp32, which is where the tolerance comes from; biases of keys nearly cancel."""
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    least = 1e-2 * max(want.norm() for want in expected[1].values())
    for name, want in expected[1].items():
        assert (found[1][name] - want).norm() <= tolerance * max(want.norm(), least), name


def run(model, ids, starts=(0,), **options):
    plan = StreamPlan(**{"tile": 16, "key_block": 32, "loss_piece": 11, **options})
    with StreamedStep(model, plan, device=CPU) as step:
        return by_tiles(step, ids, starts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stash", [True, False])
def test_every_family_with_windows(family, stash):
    experts = family == "mixtral"  # torch multiplies grouped matrices in fp32 at most
    model, ids = make(family, 21, dtype=torch.float32 if experts else torch.float64), draw(101)
    check(run(model, ids, stash=stash), at_once(model, ids), 2e-5 if experts else 2e-6)
    assert PoisonedRing.made == [WindowRing(21, 16)]


@pytest.mark.parametrize("window", [1, 2, 5, 15, 16, 17, 18, 31, 32, 33, 40, 49, 60])
@pytest.mark.parametrize("stash", [True, False])
def test_windows_of_every_size_beside_the_tile(window, stash):
    model, ids = make("mistral", window, num_hidden_layers=2), draw(135)
    check(run(model, ids, stash=stash), at_once(model, ids))
    assert len(PoisonedRing.made) == 1


@pytest.mark.parametrize("family", ["starcoder2", "qwen2", "mistral, every head its own"])
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("stash", [True, False])
def test_checkpoints_and_documents(family, every, stash):
    model, ids, starts = make(family, 20), draw(117), (0, 3, 4, 40, 64, 100)
    check(run(model, ids, starts, checkpoint_every=every, stash=stash), at_once(model, ids, starts))


@st.composite
def layouts(draw_):
    tile = draw_(st.integers(2, 24))
    n = draw_(st.integers(2, 110))
    return {
        "n": n,
        "window": draw_(st.integers(1, 70)),
        "starts": (0, *sorted(draw_(st.sets(st.integers(2, max(2, n - 2)), max_size=3)))) if n > 4 else (0,),
        "tile": tile,
        "key_block": tile + draw_(st.integers(0, 40)),
        "stash": draw_(st.booleans()),
        "checkpoint_every": draw_(st.integers(1, 3)),
        "family": draw_(st.sampled_from(["mistral", "mistral, every head its own", "qwen2", "starcoder2"])),
    }


@given(layouts())
@settings(max_examples=20)
def test_any_layout(layout):
    n, window, starts, family = (layout.pop(name) for name in ("n", "window", "starts", "family"))
    starts = tuple(start for start in starts if start < n)
    model, ids = make(family, window, hidden_size=24, intermediate_size=24, num_hidden_layers=3), draw(n)
    # Of a few tokens the keys' gradients nearly cancel, and fp32 sums leave 2.5e-6 of them.
    check(run(model, ids, starts, **layout), at_once(model, ids, starts), tolerance=1e-5)


def test_sequences_of_changing_length_share_the_ring(tmp_path):
    model = make("qwen2", 19)
    plan = StreamPlan(tile=16, key_block=16, hidden_home="disk", stash_home="disk")
    with StreamedStep(model, plan, device=CPU, spill_directory=tmp_path) as step:
        for n in (90, 33, 17, 12, 64, 90, 120):
            ids = draw(n, seed=n)
            check(by_tiles(step, ids), at_once(model, ids))
    assert len(PoisonedRing.made) == 2, "one, and another when the buffers grow"


def test_an_abandoned_sequence_leaves_nothing_behind():
    model, ids = make("mistral", 19, num_hidden_layers=2), draw(70)
    expected = at_once(model, ids)
    for stash in (True, False):
        with StreamedStep(model, StreamPlan(tile=16, key_block=16, stash=stash), device=CPU) as step:
            for after in range(0, 26, 3):
                asked = iter(range(1000))
                with pytest.raises(StepCancelled):
                    step.run(draw(70, seed=9), cancelled=lambda asked=asked, after=after: next(asked) >= after)
                check(by_tiles(step, ids), expected)


@pytest.mark.parametrize("options", [{}, {"stash": False}, {"stash": False, "checkpoint_every": 2}])
def test_resumption_within_a_step(options):
    model, ids, starts = make("qwen2", 19), draw(90), (0, 30)
    expected, points = at_once(model, ids, starts), []
    plan = StreamPlan(tile=16, key_block=32, **options)

    def boundary(point):
        tiles = [tile.clone() for tile in point.gradient()]
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        points.append((dataclasses.replace(point, gradient=lambda: iter(tiles)), gradients))

    with StreamedStep(model, plan, device=CPU) as step:
        step.run(ids, document_starts=starts, boundary=boundary)
    assert len(points) == 4
    for point, gradients in points:
        with StreamedStep(model, plan, device=CPU) as step:
            model.zero_grad()
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name].clone() if name in gradients else None
            loss = step.run(ids, document_starts=starts, resumed=point).loss_sum
            check((loss, {n: p.grad for n, p in model.named_parameters()}), expected)


@pytest.mark.parametrize("options", [{}, {"stash": False}, {"checkpoint_every": 2}])
def test_dropout_repeats_itself_in_tiles_that_come_back(options, monkeypatch):
    """The reference draws in another order; a step that holds whole layers draws the same numbers."""
    results = []
    for ring in (ring_for, lambda *_: None):
        monkeypatch.setattr(workspace, "ring_for", ring)
        model = make("mistral", 19)
        for layer in model.model.layers:
            for name in ("k_proj", "v_proj"):
                setattr(
                    layer.self_attn, name, torch.nn.Sequential(getattr(layer.self_attn, name), torch.nn.Dropout(0.3))
                )
        torch.manual_seed(8)
        results.append(run(model, draw(90), **options))
    check(*results)
    assert len(PoisonedRing.made) == 1


def test_layers_of_unlike_windows_have_a_ring_each():
    model, ids = make("qwen2", 19, max_window_layers=0), draw(101)
    of_the_model = at_once(model, ids)
    plan = StreamPlan(tile=16, key_block=32)
    with StreamedStep(model, plan, device=CPU) as step:
        check(by_tiles(step, ids), of_the_model)
        model.model.layers[1].self_attn.sliding_window = 30
        model.model.layers[2].self_attn.sliding_window = None
        ringed = by_tiles(step, ids)
    assert {ring.window for ring in PoisonedRing.made} == {19, 30}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "ring_for", lambda *_: None)
        check(ringed, run(model, ids))


def test_a_window_that_changes_between_the_passes_is_refused():
    model, ids = make("mistral", 19), draw(101)

    def widen(progress):
        if progress.stage == "loss":
            model.config.sliding_window = 40

    with (
        StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step,
        pytest.raises(RuntimeError, match="window of 40 after one of 19"),
    ):
        step.run(ids, progress=widen)


def test_each_tile_is_collected_once_a_layer(monkeypatch):
    model, ids, collected = make("mistral", 40), draw(128), []
    append = PoisonedRing.append
    monkeypatch.setattr(
        PoisonedRing, "append", lambda s, start, k, v: (collected.append(start), append(s, start, k, v))
    )
    for stash in (True, False):
        collected.clear()
        run(model, ids, stash=stash)
        forward, backward = collected[: 4 * 8], collected[4 * 8 :]
        assert forward == [16 * tile for tile in range(8)] * 4
        assert backward == [16 * tile for tile in reversed(range(7))] * 4


@given(st.integers(1, 2**20), st.integers(1, 2**15), st.integers(1, 2**24))
def test_the_ring_is_smaller_than_the_context_and_does_not_depend_on_it(window, tile, context):
    ring = ring_for(window, tile, context)
    if ring is None:
        assert window + tile >= context or context < window + 2 * tile
        return
    assert ring.rows < context
    assert ring.rows < window + 2 * tile
    assert ring == ring_for(window, tile, 2 * context)
    assert ring.reach * ring.tile >= window - 1 > (ring.reach - 1) * ring.tile


def test_a_million_tokens_of_starcoder2_take_megabytes():
    ring = ring_for(4096, 16384, 2**20)
    assert ring is not None
    assert 2 * ring.rows * 2 * 128 * (2 + 4) < 60 * 2**20 < 3 * 2**30 < 2 * 2**20 * 2 * 128 * (2 + 4) + 1


def test_device_memory_of_the_ring_is_independent_of_context():
    sizes = []
    for n in (90, 360):
        model = make("mistral", 19, num_hidden_layers=1)
        with StreamedStep(model, StreamPlan(tile=16, key_block=32), device=CPU) as step:
            step.run(draw(n))
            (store,) = step.streamed.workspace.attention.caches
            sizes.append(sum(x.untyped_storage().nbytes() for x in vars(store).values() if isinstance(x, torch.Tensor)))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("n", "rings"), [(35, 0), (48, 0), (49, 1)])
def test_a_window_that_saves_nothing_changes_nothing(n, rings):
    model, ids = make("mistral", 19, num_hidden_layers=1), draw(n)
    check(run(model, ids), at_once(model, ids))
    assert len(PoisonedRing.made) == rings


def test_keys_that_are_not_held_are_never_handed_out():
    ring = WindowedKvCache(WindowRing(9, 4), KvShape(kv_heads=1, key_dim=2, value_dim=2, dtype=torch.float32), CPU)
    for start in (0, 4, 8, 12):
        ring.append(start, torch.full((1, 1, 4, 2), float(start)), torch.zeros(1, 1, 4, 2))
    k, _ = ring.kv_cache(8, 14)
    assert k[0, 0, :, 0].tolist() == [8, 8, 8, 8, 12, 12], "over the ring's end"
    for ask in (ring.kv_cache, lambda a, b: ring.add_gradients(a, b, *torch.zeros(2, 1, 1, b - a, 2))):
        with pytest.raises(RuntimeError, match="not in the ring"):
            ask(3, 6)
