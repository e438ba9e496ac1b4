"""Every allowed pair of optimisations trains, through the parts that `engine train` is built from."""

from __future__ import annotations

import contextlib
import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.session import RecordingSession

from engine.config import from_mapping
from engine.data.window_source import count_updates, plan_updates
from engine.data.windows import Windows
from engine.errors import EliteError
from engine.hardware.inventory import take_inventory
from engine.models.catalogue import find_model
from engine.models.placement import choose_placement
from engine.plan.choice import choose_plan
from engine.plan.optimizations import is_switched_on, optimizations, refuse_conflicts, toggle
from engine.recipes import building
from engine.recipes.setup import Setup
from engine.runs.run_directory import RunDirectory
from engine.training.checkpoints import CheckpointFolder, Retention
from engine.training.components import TrainerComponents
from engine.training.optimizer_step import take_optimizer_step
from engine.training.state import Progress
from engine.verify.small import Unbothered, patterned_tokens, small_model

CONTEXT = 128
ROWS = [row for row in optimizations() if row.switch_on and not any(p.startswith("data.") for p in row.switch_on)]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A multi-head model, so that heads can be pooled, trained with half of the context, so that YaRN acts."""
    folder = tmp_path_factory.mktemp("model")
    model = small_model(
        "phi",
        num_key_value_heads=16,
        num_attention_heads=16,
        hidden_size=128,
        num_hidden_layers=2,
        max_position_embeddings=64,
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _trace_without_a_compiler(monkeypatch):
    """Layers are traced and split as for the compiler, but run as they are: C++ for each pair would take hours."""
    compile_layers = building.transform.__globals__["compile_layers"]
    monkeypatch.setitem(building.transform.__globals__, "compile_layers", lambda m: compile_layers(m, backend="eager"))


def base_config(folder):
    training = {"context": CONTEXT, "tokens_per_update": 2 * CONTEXT, "max_steps": 4, "evaluate_every": 1}
    return from_mapping(
        {
            "model": {"name": str(folder), "device": "cpu", "rope_scaling": "none"},
            "lora": {"rank": 4},
            "training": {**training, "step": "whole", "recompute": "never", "memory_tuning": False},
            "data": {"packing": False},
            "recovery": {"enabled": False},
        }
    )


def train(config, tmp_path):
    """Losses of a few updates."""
    spec = find_model(config.model.name)
    choice = choose_plan(config, take_inventory(tmp_path), spec, None)
    refuse_conflicts(config, streamed=choice.plan.layout.stream is not None)
    planned = "nf4" if choice.plan.layout.precision == "nf4" else config.model.precision
    setup = Setup(
        spec=spec,
        placement=choose_placement("cpu", planned),
        choice=choice,
        checkpoints=CheckpointFolder(tmp_path / "checkpoints", Retention()),
        resumed=None,
        started=time.monotonic(),
        training=choice.training(config.training),
    )
    windows = Windows(patterned_tokens(6 * CONTEXT).ids.astype(np.uint16), CONTEXT)
    said = []
    tuning, accelerator = building.build_model(config, setup, said.append)
    total = count_updates(windows, config.training, CONTEXT)
    progress = Progress(total_steps=total)
    session = RecordingSession(config=config, run=RunDirectory(tmp_path))
    way = building.choose_step(session, setup, tuning, accelerator, windows, progress, said.append)
    learning = building.build_learning(tuning, choice.rated(config), context=CONTEXT, total_steps=total)
    parts = TrainerComponents(
        tuning=tuning,
        step=way,
        optimizer=accelerator.prepare(learning.updating.optimizer),
        schedule=learning.updating.schedule,
        gradients=learning.updating.gradients,
        accelerator=accelerator,
        windows=windows,
        context=CONTEXT,
        checkpoints=setup.checkpoints,
        evaluate=lambda: None,
        sequences=learning.sequences,
    )
    before = {name: p.detach().clone() for name, p in tuning.weights.items()}
    losses = []
    for update in plan_updates(windows, config.training, CONTEXT):
        done = take_optimizer_step(parts, progress, update, Unbothered())
        losses.append(done.result.loss_sum / done.result.tokens)
        with learning.averaged():
            learning.observe(way.loss(windows[0]) / windows[0].targets)
    learning.keep_result()
    moved = [name for name, p in tuning.weights.items() if not torch.equal(p, before[name])]
    return SimpleNamespace(losses=losses, moved=moved, said=said)


def switched(config, rows):
    """The configuration with these on; None where they exclude each other."""
    with contextlib.suppress(EliteError):
        for row in sorted(rows, key=lambda row: bool(row.requires)):
            config = toggle(config, row.id, True)
        refuse_conflicts(config, streamed=config.training.step == "streamed")
        return config
    return None


def with_required(rows):
    needed = {name for row in rows for name in row.requires} | {row.id for row in rows}
    return [row for row in ROWS if row.id in needed]


def allowed_pairs(config):
    pairs = itertools.combinations(ROWS, 2)
    return [(a, b) for a, b in pairs if switched(config, with_required([a, b])) is not None]


def covering_sets(config, allowed):
    """Sets of optimisations that go together, in which every allowed pair occurs."""
    left = set(allowed)
    while left:
        rows = sorted(ROWS, key=lambda row: -sum(row.id in pair for pair in left))
        # What excludes nothing in pairs mostly goes together: asked of a whole set, and row by row where it does not.
        chosen = gathered(rows, lambda wider: pairs_of(wider) <= allowed)
        if switched(config, chosen) is None:
            chosen = gathered(rows, lambda wider: switched(config, wider) is not None)
        covered = left & pairs_of(chosen)
        if not covered:  # what is left must be taken pair by pair
            pair = min(left)
            chosen = with_required([row for row in ROWS if row.id in pair])
            covered = {pair}
        left -= covered
        yield chosen


def gathered(rows, together):
    """Takes each row that goes with those before it."""
    chosen = []
    for row in rows:
        wider = with_required([*chosen, row])
        if row not in chosen and together(wider):
            chosen = wider
    return chosen


def pairs_of(rows):
    return set(itertools.combinations([row.id for row in ROWS if row in rows], 2))


def check(done, rows):
    names = [row.id for row in rows]
    assert done.losses, names
    assert all(np.isfinite(done.losses)), names
    assert done.moved, names


def test_sets_in_which_every_allowed_pair_occurs_train(model_folder, tmp_path):
    config = base_config(model_folder)
    allowed = {(a.id, b.id) for a, b in allowed_pairs(config)}
    covered = set()
    for number, rows in enumerate(covering_sets(config, allowed)):
        check(train(switched(config, rows), tmp_path / str(number)), rows)
        covered |= pairs_of(rows)
    assert covered >= allowed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_allowed_pair_trains(model_folder, tmp_path):
    config = base_config(model_folder)
    pairs = allowed_pairs(config)
    assert len(pairs) > 250
    for number, (a, b) in enumerate(pairs):
        rows = with_required([a, b])
        check(train(switched(config, rows), tmp_path / str(number)), rows)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_base_of_the_pairs_has_everything_off(row, model_folder):
    config = base_config(model_folder)
    if row.id != "fused_kernels":
        assert not is_switched_on(config, row)
