"""The registry: complete, in order, consistent with the configuration, and its switches."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from engine.assets import asset
from engine.config import RunConfig, field_spec, from_mapping
from engine.errors import EliteError
from engine.hardware.target import target_machine
from engine.models.base_changes import check_pooling
from engine.models.catalogue import find_model
from engine.plan.choice import choose_plan
from engine.plan.optimization_states import NEEDS, states
from engine.plan.optimizations import (
    find_optimization,
    is_switched_on,
    optimizations,
    papers,
    refuse_conflicts,
    toggle,
    value_at,
)

ROWS = optimizations()
SWITCHED = [row for row in ROWS if row.switch_on]
ROOT = Path(__file__).parents[2]


def test_there_are_sixteen_twenty_seven_and_the_rest():
    count = {group: sum(row.group == group for row in ROWS) for group in ("extreme", "standard", "beyond")}
    assert (count["extreme"], count["standard"]) == (16, 27)
    assert len(papers()) >= 15
    assert list(dict.fromkeys(row.group for row in ROWS)) == ["extreme", "standard", "beyond"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_names_what_exists(row):
    known = {other.id for other in ROWS}
    assert set(row.requires) <= known
    assert set(row.conflicts) <= known - {row.id}
    assert set(row.papers) <= set(papers())
    assert set(row.needs) <= set(NEEDS)
    assert row.papers or row.source
    assert row.sentence.endswith(".")
    for path in row.implemented_in.split(", "):
        assert (ROOT / path).exists(), path
    assert row.switch_on.keys() == row.switch_off.keys()
    for path in row.switch_on:
        field_spec(path)


def test_every_paper_is_cited():
    assert {arxiv for row in ROWS for arxiv in row.papers} == set(papers())


def test_conflicts_name_each_other_with_a_reason():
    for row in ROWS:
        for other in row.conflicts:
            assert row.id in find_optimization(other).conflicts
            assert row.conflict_reasons[other]


@pytest.mark.parametrize("row", SWITCHED, ids=lambda row: row.id)
def test_a_switch_goes_on_and_off_and_changes_its_fields_only(row):
    config = RunConfig()
    for other in row.conflicts:
        if other in {each.id for each in SWITCHED}:
            config = toggle(config, other, False)
    off = toggle(config, row.id, False)
    assert not is_switched_on(off, row)
    on = toggle(off, row.id, True)
    assert is_switched_on(on, row)
    assert [value_at(on, path) for path in row.switch_on] == list(row.switch_on.values())
    assert not is_switched_on(toggle(on, row.id, False), row)
    assert toggle(on, row.id, True) == on


def test_with_the_streamed_step_go_its_parts():
    config = from_mapping({"stream": {"stash": False, "checkpoint_every": 4}, "training": {"activation_bits": 8}})
    whole = toggle(config, "streamed_backprop", False)
    assert whole == from_mapping({"training": {"step": "whole"}})
    with pytest.raises(EliteError, match="part of streamed_backprop"):
        toggle(whole, "attention_stash", True)


def test_defaults_ask_for_nothing_approximate_that_the_plan_does_not_choose():
    on = {row.id for row in SWITCHED if is_switched_on(RunConfig(), row)}
    assert {name for name in on if not find_optimization(name).exact} == {"rope_scaling"}


def test_a_conflict_says_what_to_switch():
    config = toggle(RunConfig(), "ema", True)
    with pytest.raises(EliteError, match="one average is kept") as caught:
        toggle(config, "swa", True)
    assert caught.value.code == "optimization-conflict"
    assert "switch ema off" in caught.value.remedy


def test_a_row_without_a_switch_says_so():
    with pytest.raises(EliteError, match="no switch"):
        toggle(RunConfig(), "fused_linear_cross_entropy", True)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(EliteError, match="rslora"):
        toggle(RunConfig(), "rs_lora", True)


def test_what_the_step_excludes_is_refused_before_training():
    config = from_mapping({"training": {"shifted_attention": True}, "data": {"packing": False}})
    refuse_conflicts(config, streamed=False)
    with pytest.raises(EliteError, match=r"training\.step=whole"):
        refuse_conflicts(config, streamed=True)


def test_what_was_asked_for_is_named_and_what_is_usual_stands_in_its_way():
    with pytest.raises(EliteError) as caught:
        refuse_conflicts(from_mapping({"training": {"shifted_attention": True}}), streamed=False)
    assert str(caught.value).startswith("longlora_s2 cannot be switched on")
    assert "--set data.packing=false" in caught.value.remedy


@pytest.mark.parametrize(("model", "heads", "problem"), [("demo", 4, "as it is"), ("phi-2", 5, "divisor of 32")])
def test_heads_that_cannot_be_pooled_are_refused(model, heads, problem):
    config = from_mapping({"model": {"name": model, "kv_heads": heads}})
    with pytest.raises(EliteError, match=problem) as caught:
        check_pooling(config.model, find_model(model))
    assert caught.value.exit_code == 2


CARDS = {"auto": "demo", "rtx-2060-super": "qwen2.5-coder-1.5b", "rtx-4090": "qwen2.5-coder-7b"}


@pytest.mark.parametrize(("card", "model"), CARDS.items(), ids=CARDS)
def test_every_row_has_a_state_with_its_reason(card, model):
    machine, spec = target_machine(card), find_model(model)
    tier = {} if card == "auto" else {"tier": 7}  # of which hidden states wait on the host
    config = from_mapping({"training": tier})
    choice = choose_plan(config, machine, spec, 400_000)
    found = {state.id: state for state in states(config, machine, spec, choice)}
    assert list(found) == [row.id for row in ROWS]
    assert all(state.reason for state in found.values())
    assert (found["streamed_backprop"].state == "on") == (choice.plan.layout.stream is not None)
    if choice.plan.layout.stream is not None:
        assert found["attention_stash"].host_bytes > 0
        assert found["attention_stash"].step_seconds < 0
        assert found["activation_4bit"].host_bytes < 0
        assert found["tiled_mlp"].state == "unavailable"
    assert states(config, machine, spec, None)


def test_filling_in_is_on_where_the_tokenizer_has_tokens_for_it(tmp_path):
    own = asset("demo-model", "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(own.replace("<|fim_", "<|other_"))
    demo = find_model("demo")
    lacking = dataclasses.replace(demo, name="local", path=tmp_path)
    elsewhere = find_model("qwen2.5-coder-1.5b")
    expected = {
        (demo, None): "on",
        (demo, 0.0): "off",
        (demo, 0.2): "on",
        (lacking, None): "unavailable",
        (lacking, 0.0): "unavailable",
        (elsewhere, None): "on",
        (elsewhere, 0.0): "off",
    }
    for (spec, share), state in expected.items():
        config = from_mapping({"data": {"fim": share}})
        [found] = [one for one in states(config, target_machine("rtx-4090"), spec, None) if one.id == "fim"]
        assert found.state == state, (spec.name, share)
    (tmp_path / "tokenizer.json").write_text(own)
    [found] = [one for one in states(RunConfig(), target_machine("rtx-4090"), lacking, None) if one.id == "fim"]
    assert (found.state, found.reason) == ("on", "the tokenizer of local has tokens for it")
    # Switched off and on by hand, whatever the tokenizer.
    assert toggle(RunConfig(), "fim", False).data.fim == 0.0
    assert toggle(RunConfig(), "fim", True).data.fim == 0.5


def test_what_offload_spares_the_gpu_includes_the_gradient_of_the_hidden_states():
    machine, spec = target_machine("rtx-2060-super"), find_model("qwen2.5-coder-1.5b")
    homes = {"hidden_home": "disk", "gradient_home": "host", "checkpoint_every": 8}
    config = from_mapping({"stream": homes})
    choice = choose_plan(config, machine, spec, 400_000)
    (found,) = (state for state in states(config, machine, spec, choice) if state.id == "activation_offload")
    one_layer = choice.plan.context * spec.hidden_size * 2
    inputs = -(-spec.layers // 8) + 7
    assert found.gpu_bytes <= -(inputs + 1) * one_layer


def test_what_offload_spares_the_gpu_leaves_out_a_gradient_that_stays_there():
    machine, spec = target_machine("rtx-2060-super"), find_model("qwen2.5-coder-1.5b")
    homes = {"hidden_home": "host", "gradient_home": "gpu", "checkpoint_every": 1, "stash": False}
    config = from_mapping({"stream": homes, "training": {"context": 32_768}})
    choice = choose_plan(config, machine, spec, None)
    found = {state.id: state for state in states(config, machine, spec, choice)}
    one_layer = choice.plan.context * spec.hidden_size * 2
    spared = -found["activation_offload"].gpu_bytes / one_layer
    assert spared == pytest.approx(1.04 * spec.layers, rel=0.01)  # with the allocator's slack
    # Pages on the host take the gradient from the GPU too.
    assert found["paged_kv"].host_bytes > one_layer


def test_weights_that_are_read_from_the_disk_have_their_effect():
    """Compared with weights on the GPU, which no disk is read for."""
    config = from_mapping({"model": {"precision": "nf4"}, "stream": {"weights": "streamed", "weights_home": "disk"}})
    machine, spec = target_machine("rtx-3060-12gb"), find_model("qwen2.5-coder-14b")
    choice = choose_plan(config, machine, spec, None)
    assert choice.plan.layout.stream.weights_home == "disk"
    (state,) = (one for one in states(config, machine, spec, choice) if one.id == "weight_streaming")
    assert state.gpu_bytes < 0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_has_a_proof(row):
    module, _, function = row.proof.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_registry_ships():
    assert asset("optimizations.toml").exists()
