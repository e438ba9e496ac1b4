"""The planner's bytes beside those that a streamed step really copies, on models of several kinds of layers.

Kinds of layers differ in the width of what they store, in what they see of earlier tokens, and in whose keys they
attend to. Everything is counted at the copies (tests/plan/moved_bytes.py), nothing by the step's own figures.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import LoraSection
from engine.models import families
from engine.models.adapter import attach_adapter
from engine.models.catalogue import find_model
from engine.models.layer_input_table import HostRows, look_up_on_host
from engine.models.spec import as_spec
from engine.plan.home_lines import home_parts
from engine.plan.speeds import Speeds
from engine.plan.step_passes import keys_visited
from engine.plan.stream_plan import StreamPlan
from engine.plan.time import streamed_time
from engine.plan.transfers import moved_by, written_by
from engine.plan.workload import Workload
from engine.streaming import copies
from engine.streaming.kv_cache import HostKvCache, KvShape
from engine.streaming.step import StreamedStep
from engine.verify.observed_shape import observed_shape
from tests.plan.moved_bytes import MovedBytes
from tests.plan.test_shared_kv import MODELS, SIZES
from tests.streaming.models import tiny_model
from tests.support.side_streams import poison, simulated

CPU = torch.device("cpu")
CONTEXT = 130
TILES = {"tile": 16, "key_block": 32, "loss_piece": 16}
ONE_TILE = {"tile": 256, "key_block": 256}
EXACT = {
    "host": {},
    "no stash": {"stash": False},
    "pages": {"kv_home": "host"},
    "pages, no stash": {"kv_home": "host", "stash": False},
    "disk": {"hidden_home": "disk", "stash_home": "disk"},
    "outputs on the disk": {"stash_home": "disk"},
    "all but the gradient on the disk": {"hidden_home": "disk", "gradient_home": "host"},
    "the gradient alone on the disk": {"gradient_home": "disk"},
    "one tile": ONE_TILE,
}
ABOUT = {
    "again": {"checkpoint_every": 2},
    "again, no stash": {"checkpoint_every": 3, "stash": False},
    "again, pages": {"checkpoint_every": 2, "kv_home": "host"},
    "graphs kept": {**ONE_TILE, "keep_layers": 2},
}
"""Which kinds the repeated or kept layers are of is not known to the planner: it takes each kind's share."""


@pytest.fixture(scope="module")
def built():
    """Each model's configuration and shapes, observed once."""
    found = {}
    known = dict(families.FAMILIES)
    for name, (family, settings) in MODELS.items():
        families.FAMILIES[family] = families.Family()
        config = AutoConfig.for_model(family, **SIZES, **settings, num_hidden_layers=len(settings["layer_types"]))
        found[name] = config, as_spec(observed_shape(config, adapts_mlp=True), name="", family=family)
    yield found
    families.FAMILIES.clear()
    families.FAMILIES.update(known)


def counted(built, name, fields, folder, *, trained=False, table_home="gpu"):
    """Bytes of the second step, by kind; the workload; the plan."""
    config, spec = built[name]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.requires_grad_(trained)
    if not trained:
        if table_home == "host":
            look_up_on_host(model, CPU)
        model = attach_adapter(model, LoraSection(rank=2), seed=0)
    plan = StreamPlan(**{**TILES, **fields})
    with MovedBytes().counting() as moved, StreamedStep(model, plan, device=CPU, spill_directory=folder) as step:
        ids = torch.randint(3, 61, (CONTEXT,), generator=torch.Generator().manual_seed(1))
        step.run(ids)
        moved.forget()
        step.run(ids)
        found = moved.by_kind(step)
    work = Workload(
        spec=spec,
        context=CONTEXT,
        compute_type="fp32",
        lora_parameters=1,
        on_gpu=True,
        master_home="host" if trained else None,
        table_home=table_home,
    )
    return found, work, plan


def compare(found, work, plan, rel):
    predicted = moved_by(work, plan)

    def total(*kinds):
        return sum(found[kind]["read"] + found[kind]["written"] for kind in kinds)

    # Nothing is allowed for beside a prefetched tile or two that another pass then did not read.
    assert predicted.hidden == pytest.approx(total("hidden", "inputs"), rel=rel)
    assert predicted.gradient == pytest.approx(total("gradient"), rel=1e-9)
    assert predicted.stash == pytest.approx(total("outputs", "saved keys"), rel=rel)
    assert predicted.pages == pytest.approx(total("keys", "key gradients"), rel=max(rel, 0.04))
    assert written_by(work, plan) == pytest.approx(sum(each["files"] for each in found.values()), rel=rel)


@pytest.mark.parametrize("fields", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("name", MODELS)
def test_an_adapters_step_moves_what_is_planned(name, fields, built, tmp_path):
    compare(*counted(built, name, fields, tmp_path), rel=0.004)


@pytest.mark.parametrize("fields", ABOUT.values(), ids=ABOUT)
@pytest.mark.parametrize("name", ["two shapes", "shared"])
def test_layers_that_are_repeated_or_kept_move_about_what_is_planned(name, fields, built, tmp_path):
    compare(*counted(built, name, fields, tmp_path), rel=0.08)


@pytest.mark.parametrize("name", ["two shapes", "shared"])
@pytest.mark.parametrize("fields", [{}, EXACT["pages"], EXACT["disk"]], ids=["host", "pages", "disk"])
def test_a_step_that_trains_every_weight_moves_what_is_planned(name, fields, built, tmp_path):
    """The gradient of the layers' own inputs takes their place, and the embedding reads it."""
    compare(*counted(built, name, fields, tmp_path, trained=True), rel=0.004)


@pytest.mark.parametrize("name", MODELS)
def test_what_waits_beside_the_pages_is_what_the_ledger_counts(name, built, tmp_path):
    """Pages are filled again by their layers, so nothing is saved beside them."""
    found, work, plan = counted(built, name, EXACT["pages"], tmp_path)
    lines = {line.name: line.bytes for line in home_parts(work, plan, plan.tile)}
    assert found["saved keys"]["written"] == lines.get("stash: keys and values", 0)
    assert found["outputs"]["written"] == lines["stash: attention outputs and logsumexp"]
    assert bool(found["saved keys"]["written"]) == bool(found["saved keys"]["read"])


def test_the_rows_of_the_table_are_counted(built, tmp_path, monkeypatch):
    sent = []
    rows = HostRows._rows

    def noted(self, ids):
        sent.append(rows(self, ids))
        return sent[-1]

    monkeypatch.setattr(HostRows, "_rows", noted)
    _, work, plan = counted(built, "shared", {}, tmp_path, table_home="host")
    assert 2 * moved_by(work, plan).table == sum(each.nbytes for each in sent)  # of two steps


@pytest.mark.parametrize(("layers", "every"), [(6, 1), (6, 2), (6, 3), (8, 4)])
def test_weights_are_copied_as_often_as_planned(layers, every):
    model = tiny_model("qwen2", num_hidden_layers=layers, layer_types=["full_attention"] * layers)
    model.requires_grad_(requires_grad=False)
    for layer in model.model.layers:
        layer.input_layernorm.weight.requires_grad_()
    plan = StreamPlan(**TILES, weights="streamed", checkpoint_every=every)
    with simulated("to the device early, home early"), StreamedStep(model, plan, device=CPU) as step:
        homes = {buffer.untyped_storage().data_ptr() for buffer in step.streamed.weights._home.buffers}
        begin, passes = copies.begin_copy, []

        def begin_copy(stream, pairs, after=()):
            pairs = list(pairs)
            passes.extend(1 for _, source in pairs if source.untyped_storage().data_ptr() in homes)
            return begin(stream, pairs, after)

        copies.begin_copy = begin_copy
        for _ in range(2):
            passes.clear()
            step.run(torch.randint(0, 97, (77,)))
    spec = dataclasses.replace(find_model("qwen2.5-coder-0.5b"), layers=layers, full_attention_layers=layers)
    work = Workload(spec=spec, context=77, compute_type="fp32", lora_parameters=1)
    assert moved_by(work, plan).weights * layers / spec.decoder_parameters / 4 == pytest.approx(len(passes))


def test_pages_are_fetched_as_a_whole():
    """Tiles of 16 and pages of 32 over 130 tokens; of a window of 12 keys a tile fetches the page before it."""
    assert keys_visited(130, 16, 32, None) == 32 * (1 + 1 + 2 + 2 + 3 + 3 + 4 + 4)
    assert keys_visited(130, 16, 32, 12) == 32 * 8
    assert keys_visited(130, 16, 32, 18) == 32 * (1 + 1 + 2 + 1 + 2 + 1 + 2 + 1)
    assert keys_visited(130, 200, 200, None) == 0


def test_a_layer_zeroes_nothing_at_home():
    """No time is planned for it: the first tile that adds to a page's gradients zeroes them on the device."""
    with simulated("to the device early, home early"):
        shape = KvShape(kv_heads=1, key_dim=4, value_dim=4, dtype=torch.float32)
        cache = HostKvCache(32, shape, CPU, copies.copy_streams(CPU), 16)
        for home in cache._grad:
            poison(home)
        cache.zero_gradients()
        assert all(home.isnan().all() for home in cache._grad)
        assert not any(found.any() for found in cache.gradients(0, 32))


def test_sums_of_key_gradients_are_counted_by_kind(built):
    """Each kind's own width, and the keys that its queries see: 12 of earlier tiles at most, or half of all."""
    speeds = Speeds(
        matrix=1e12, head=1e12, attention_forward=1e12, attention_backward=1e12, memory=1.0, link=1e9, disk=1e9
    )
    _, spec = built["two shapes"]
    work = Workload(spec=spec, context=1600, compute_type="bf16", lora_parameters=1)
    part = next(p for p in streamed_time(work, StreamPlan(**TILES), speeds) if p.name.startswith("sums of key"))
    windowed, whole = 3 * 2 * 4 * 8, 2 * (20 + 20)
    wanted = 99 * (3 * 11 * windowed / 3 + 2 * 800 * whole / 2) * (2 * 4 + 2)
    assert part.seconds == pytest.approx(wanted)
