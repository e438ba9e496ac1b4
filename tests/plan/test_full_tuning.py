"""Plans for training every weight: 16 bytes a parameter beside the model, on the GPU while they fit."""

from __future__ import annotations

import pytest
from plan.machines import with_card

from engine.config import from_mapping
from engine.errors import EliteError
from engine.models.catalogue import find_model
from engine.plan.choice import choose_plan, request_of_run
from engine.plan.optimization_states import states
from engine.plan.planner import plan_context


def choose(model, card, ram_gib, context=8192, **settings):
    config = from_mapping(
        {"model": {"name": model, **settings}, "training": {"method": "full", "context": context}},
    )
    return config, choose_plan(config, with_card(card, ram_gib), find_model(model), None)


def test_the_states_live_where_there_is_room():
    """0.5B parameters take 8 GB of fp32 states: a 24 GB card holds them, an 8 GB card cannot."""
    count = find_model("qwen2.5-coder-0.5b").parameters
    for card, home in (("rtx-4090", "gpu"), ("rtx-2060-super", "host")):
        _, choice = choose("qwen2.5-coder-0.5b", card, 64)
        assert choice.plan.layout.master_home == home
        parts = {part.name: part for part in choice.plan.parts}
        states = parts["fp32 weights, gradients and Adam states"]
        assert (states.where, states.bytes) == (home, 16 * count)
        assert parts["the state to go back to"].bytes == 12 * count
        assert not any("adapter" in name or "LoRA" in name for name in parts)
        assert any(part.name == "updating every weight" for part in choice.plan.time)
        assert choice.plan.layout.precision != "nf4"


def test_a_7b_model_streams_its_weights_under_a_24_gb_card():
    """14 GB of weights and 112 GB of states: neither fits, layers and states wait on the host."""
    _, choice = choose("qwen2.5-coder-7b", "rtx-4090", 320, context=16384)
    assert choice.plan.layout.master_home == "host"
    assert choice.plan.gpu_peak_bytes < 24 * 2**30


def test_what_does_not_fit_says_what_is_missing():
    with pytest.raises(EliteError, match="more RAM"):
        choose("qwen2.5-coder-7b", "rtx-4090", 64)


def test_it_never_costs_less_than_an_adapter():
    for model in ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"):
        spec = find_model(model)
        configs = [
            from_mapping({"model": {"name": model, "precision": "bf16"}, "training": {"method": method}})
            for method in ("lora", "full")
        ]
        for context in (4096, 131072):
            lora, full = (
                plan_context(request_of_run(config, with_card("a100-80gb", 512), spec, None), context)
                for config in configs
            )
            assert full.gpu_peak_bytes + full.host_peak_bytes > lora.gpu_peak_bytes + lora.host_peak_bytes
            assert full.step_seconds > lora.step_seconds


@pytest.mark.parametrize("row", ["lora_plus", "rslora", "dora", "qlora"])
def test_options_of_adapters_say_that_there_is_none(row):
    config, choice = choose("qwen2.5-coder-0.5b", "rtx-4090", 64)
    found = {
        state.id: state for state in states(config, with_card("rtx-4090", 64), find_model(config.model.name), choice)
    }
    state = found[row]
    assert state.state == "unavailable"
    assert "there is no adapter" in state.reason
