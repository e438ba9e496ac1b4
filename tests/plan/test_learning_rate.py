"""The automatic learning rate against rates worked out by hand from the published rule, and what must hold of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import LoraSection, TrainingSection
from engine.models.catalogue import find_model
from engine.plan.learning_rate import automatic_rate, learning_rate_of

# 5e-4 × (2,000 / width) ** 0.781, and 0.0775 for Qwen's, by logarithms; tinker-cookbook gives Llama-3.1-8B 2.86e-4.
#   384: ln 5.2083 = 1.6503; × 0.781 = 1.2889; e^ = 3.629; 18.1e-4     (Qwen's architecture, but not a Qwen)
#   576: ln 3.4722 = 1.2448; × 0.781 = 0.9722; e^ = 2.644; 13.2e-4
#  1536: ln 1.3021 = 0.2640; × 0.0775 = 0.02046; e^ = 1.0207; 5.10e-4
#  4096: ln 0.4883 = -0.7169; × 0.781 = -0.5599; e^ = 0.5713; 2.86e-4
BY_HAND = {
    "demo": (384, 1.8e-3, 1.8e-4, 4.5e-5),
    "smollm2-135m": (576, 1.3e-3, 1.3e-4, 3.3e-5),
    "qwen2.5-coder-1.5b": (1536, 5.1e-4, 5.1e-5, 1.3e-5),
    "llama-3.1-8b": (4096, 2.9e-4, 2.9e-5, 7.1e-6),
}
"""Width, and the rates of an adapter, of every weight, and of an adapter on preferences (a fortieth)."""

DEMO = find_model("demo")


def spec_of(name):
    if name == "smollm2-135m":  # a Llama of the catalogue's smallest kind, which the catalogue itself does not have
        return replace(DEMO, name=name, family="llama", hidden_size=576)
    return find_model(name)


def wide(width, name="some-model"):
    return replace(DEMO, name=name, hidden_size=width)


@pytest.mark.parametrize("name", BY_HAND)
def test_rates_are_those_worked_out_by_hand(name):
    width, adapter, full, preferences = BY_HAND[name]
    spec = spec_of(name)
    assert spec.hidden_size == width
    assert automatic_rate(spec, TrainingSection(), LoraSection()) == adapter
    assert automatic_rate(spec, TrainingSection(method="full"), LoraSection()) == full
    assert automatic_rate(spec, TrainingSection(objective="dpo"), LoraSection()) == preferences


@pytest.mark.parametrize("rate", [1e-6, 2e-4, 1.0])
def test_a_configured_rate_is_kept(rate):
    assert learning_rate_of(DEMO, TrainingSection(learning_rate=rate), LoraSection(alpha=256.0)) == rate


@pytest.mark.parametrize(
    ("lora", "divisor"),
    [
        ({"rank": 128}, 1),
        ({"dora": True}, 1),
        ({"alpha": 16.0}, 1),
        ({"rank": 32, "alpha": 64.0}, 2),
        ({"rank": 16, "alpha": 32.0, "rslora": True}, 4),
        ({"plus_ratio": 16.0}, 4),
    ],
)
def test_stronger_adapters_get_a_lower_rate(lora, divisor):
    found = automatic_rate(DEMO, TrainingSection(), LoraSection(**lora))
    assert found == pytest.approx(1.814e-3 / divisor, rel=0.03)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_adamw_s_states_have_no_part_in_it(optimizer):
    training = TrainingSection(method="full", optimizer=optimizer, lr_scaling="sqrt", tokens_per_update=1 << 20)
    assert automatic_rate(DEMO, training, LoraSection()) == 1.8e-4


@given(
    width=st.integers(1, 1 << 16),
    wider=st.integers(4, 64),  # from which two digits tell the rates apart
    name=st.sampled_from(["qwen3-4b", "llama", "gemma"]),
    objective=st.sampled_from(["sft", "dpo"]),
    rank=st.integers(1, 1024),
    alpha=st.floats(1e-6, 1e6),
    ratio=st.floats(1.0, 1000.0),
    rslora=st.booleans(),
)
def test_rates_fall_with_the_width_and_stay_within_bounds(width, wider, name, objective, rank, alpha, ratio, rslora):
    sft, full = TrainingSection(objective=objective), TrainingSection(objective=objective, method="full")
    lora = LoraSection(rank=rank, alpha=alpha, plus_ratio=ratio, rslora=rslora)
    for training in (sft, full):
        rate = automatic_rate(wide(width, name), training, lora)
        assert 0 < automatic_rate(wide(width * wider, name), training, lora) < rate <= 1
    plain = automatic_rate(wide(width, name), sft, LoraSection())
    assert plain == pytest.approx(10 * automatic_rate(wide(width, name), full, lora))
    assert automatic_rate(wide(width, name), sft, lora) <= plain
