"""The planner: anchors, monotonicity, reasons, and which context a run gets."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import config
from engine.config import StreamSection
from engine.errors import EliteError
from engine.hardware.cards import cards
from engine.hardware.machine import GIB
from engine.models.catalogue import catalogue, find_model
from engine.plan.choice import choose_plan
from engine.plan.planner import largest_context, plan_context, plan_tiers, recommended_plan, tier_table
from engine.plan.request import PlanRequest
from engine.plan.search import HEADROOM, Budget
from engine.plan.tiers import tiers
from tests.plan.machines import with_card, without_card

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CODER = find_model("qwen2.5-coder-1.5b")
DEMO = find_model("demo")


@pytest.mark.parametrize(("card", "ceiling"), [("rtx-2060-super", {8}), ("rtx-3060-12gb", {9}), ("rtx-4090", {10, 11})])
def test_anchors(card, ceiling):
    table = plan_tiers(with_card(card, ram=64), CODER)
    assert table.ceiling in ceiling
    row = table.row(table.ceiling)
    assert row.fits
    assert row.step_seconds < 12 * 3600


@pytest.mark.parametrize("tier", [7, 9, 11])
def test_a_windowed_model_never_pages_its_keys(tier):
    """StarCoder2 3B on 8 GB: at 1M tokens a whole layer's keys and gradients would be 3 GiB, the ring is 24 MiB."""
    spec = find_model("starcoder2-3b")
    row = plan_tiers(with_card("rtx-2060-super", ram=256, disk=4000), spec, precision="nf4").row(tier)
    assert row.fits, row.remedy
    assert row.layout.stream is not None
    assert row.layout.stream.kv_home == "gpu"


def test_tiers_are_powers_of_two_and_every_one_has_a_row():
    contexts = [tier.context for tier in tiers()]
    assert contexts == [4096 * 2**i for i in range(11)]
    assert [row.tier for row in plan_tiers(without_card(), DEMO).tiers] == list(range(1, 12))


@given(
    st.sampled_from(sorted(cards())), st.sampled_from(sorted(catalogue())), st.integers(0, 256), st.integers(0, 1000)
)
@settings(max_examples=25)
def test_what_fits_leaves_headroom_and_its_parts_sum(card, model, ram, disk):
    machine = with_card(card, ram, disk)
    budget = Budget.of(machine)
    for row in plan_tiers(machine, find_model(model)).tiers:
        sums = {
            where: sum(part.bytes for part in row.parts if part.where == where) for where in ("gpu", "host", "disk")
        }
        assert sums == {"gpu": row.gpu_peak_bytes, "host": row.host_peak_bytes, "disk": row.disk_bytes}
        room = all(sums[where] <= budget.limit(where) for where in sums)
        assert row.fits == room
        assert bool(row.remedy) != row.fits
        if row.fits:
            assert row.gpu_peak_bytes <= (1 - HEADROOM) * machine.gpus[0].memory_total + 1


@given(
    st.sampled_from(sorted(cards())),
    st.sampled_from(["qwen2.5-coder-1.5b", "qwen2.5-coder-7b", "codellama-7b", "demo"]),
    st.integers(2, 160),
    st.integers(0, 700),
    st.sampled_from(["vram", "ram", "disk"]),
    st.integers(1, 64),
    st.sampled_from([None, 3_000, 90_000, 10_000_000]),
)
@settings(max_examples=25)
def test_more_memory_never_lowers_the_recommended_tier(card, model, ram, disk, what, more, tokens):
    spec = find_model(model)
    less = with_card(card, ram, disk)
    if what == "vram":
        gpu = less.gpus[0]
        larger = dataclasses.replace(
            gpu, memory_total=gpu.memory_total + more * GIB, memory_free=gpu.memory_free + more * GIB
        )
        greater = dataclasses.replace(less, gpus=(larger,))
    else:
        greater = with_card(card, ram + more * (what == "ram"), disk + more * (what == "disk"))
    before, after = (plan_tiers(machine, spec, repository_tokens=tokens) for machine in (less, greater))
    assert (after.recommended or 0) >= (before.recommended or 0)
    for old, new in zip(before.tiers, after.tiers, strict=True):
        assert new.fits >= old.fits


def test_the_recommended_tier_is_not_above_the_repository():
    table = plan_tiers(with_card("rtx-4090"), CODER, repository_tokens=50_000)
    assert table.ceiling == 5
    row = table.row(5)
    assert row.holds_repository
    assert row.steps_per_epoch == 1
    assert table.row(1).steps_per_epoch == 6  # 45,000 training tokens in updates of 8,192
    assert table.row(1).windows_per_step == 2


def test_a_run_of_one_tier_is_recommended_one_with_enough_updates():
    """400,000 tokens on an RTX 3060: once, one update of 35 minutes."""
    table = plan_tiers(with_card("rtx-3060-12gb"), CODER, repository_tokens=400_000)
    assert table.recommended is not None
    assert table.ceiling is not None
    assert table.recommended < table.ceiling
    assert table.row(table.recommended).steps_per_epoch >= 30
    assert table.row(table.recommended + 1).steps_per_epoch < 30
    assert plan_tiers(with_card("rtx-3060-12gb"), CODER, repository_tokens=20_000).recommended == 1


def trained_lengths():
    """The trained length of every model of the catalogue, read from its file."""
    with Path("assets/models.toml").open("rb") as file:
        return {name: entry["max_context"] for name, entry in tomllib.load(file).items() if "max_context" in entry}


@pytest.mark.parametrize("model", ["phi-2", "demo", "qwen2.5-coder-1.5b", "qwen2.5-coder-7b", "starcoder2-3b"])
def test_no_run_goes_beyond_the_trained_length_unless_a_tier_or_context_is_named(model):
    spec, trained = find_model(model), trained_lengths()[model]
    for machine in (with_card("rtx-4090", ram=64), without_card(ram=64)):
        table = plan_tiers(machine, spec)
        assert table.recommended is None or table.row(table.recommended).context <= trained
        highest = [row.tier for row in table.tiers if row.context <= trained and row.in_time]
        assert table.recommended == (highest[-1] if highest else None)
        assert table.ceiling == max((row.tier for row in table.tiers if row.in_time), default=None)
        for training, tokens in (({"objective": "dpo"}, 3_000_000), ({"curriculum": True}, 90_000), ({}, None)):
            choice = choose_plan(run_config(training=training), machine, spec, tokens)
            assert choice.context <= trained
            assert not choice.plan.warning
    asked = choose_plan(run_config(training={"tier": "max"}), with_card("rtx-4090", ram=64), spec, None)
    assert bool(asked.plan.warning) == (asked.context > trained)


def test_a_model_of_short_windows_gets_them_and_the_reason():
    """Tier 1 is twice what phi-2 was trained with."""
    planning = PlanRequest.of(with_card("rtx-4090"), find_model("phi-2"))
    table = tier_table(planning)
    row, why = recommended_plan(planning, table)
    assert (table.recommended, row.tier, row.context) == (None, None, 2048)
    assert "trained on 2K tokens" in why
    assert table.ceiling > 1
    assert "trained on 2K" in choose_plan(run_config(), with_card("rtx-4090"), find_model("phi-2"), None).note


@pytest.mark.parametrize("machine", [with_card("rtx-4090"), without_card()])
@pytest.mark.parametrize("tokens", [None, 900, 400_000])
def test_a_model_of_windows_below_the_shortest_gets_those_and_the_reason(machine, tokens):
    spec = dataclasses.replace(DEMO, max_context=256)
    planning = PlanRequest.of(machine, spec, repository_tokens=tokens)
    row, why = recommended_plan(planning, tier_table(planning))
    assert (row.context, row.in_time) == (512, True)
    assert "trained on 256 tokens" in why
    assert "takes longer" not in why


@pytest.mark.parametrize(("model", "warned"), [("phi-2", 1), ("qwen2.5-coder-1.5b", 5)])
def test_a_context_beyond_the_trained_one_is_warned_about(model, warned):
    table = plan_tiers(with_card("rtx-4090"), find_model(model))
    assert [row.tier for row in table.tiers if row.warning] == list(range(warned, 12))
    assert f"{find_model(model).max_context:,} tokens" in table.row(warned).warning


def test_memory_that_others_use_is_not_planned_with():
    machine = with_card("rtx-3060-12gb")
    busy = dataclasses.replace(machine.gpus[0], memory_free=6 * GIB)
    assert Budget.of(machine).gpu - Budget.of(dataclasses.replace(machine, gpus=(busy,))).gpu == 6 * GIB


def test_a_tier_that_does_not_fit_says_the_cheapest_change_and_the_change_works():
    machine = with_card("rtx-3060-12gb", ram=24, disk=10)
    row = next(row for row in plan_tiers(machine, CODER).tiers if not row.fits)
    assert "more RAM" in row.remedy
    assert "more free disk" in row.remedy
    amount, unit = row.remedy.split("needs ")[1].split()[:2]
    missing = float(amount) * {"MiB": 2**-10, "GiB": 1}[unit]
    enough = with_card("rtx-3060-12gb", ram=24 + missing + 0.1, disk=10)
    assert plan_tiers(enough, CODER).row(row.tier).fits


def test_a_card_that_is_too_small_says_so():
    row = plan_tiers(with_card("rtx-3050-laptop"), find_model("qwen2.5-coder-14b"), precision="nf4").row(1)
    assert not row.fits
    assert "on the GPU" in row.reason
    assert "a GPU with" in row.remedy


def test_four_bits_that_do_not_fit_on_the_gpu_stay_on_the_host():
    """A 14B in 4 bits takes 7 GiB of an 8 GiB card: its layers come from the host, and the plan says so."""
    row = plan_tiers(with_card("rtx-3070", ram=64), find_model("qwen2.5-coder-14b"), precision="nf4").row(4)
    assert row.fits
    assert row.layout.weights == "nf4-streamed"
    assert {part.where for part in row.parts if "decoder layers" in part.name} == {"gpu", "host"}
    roomy = plan_tiers(with_card("rtx-4090", ram=64), find_model("qwen2.5-coder-14b"), precision="nf4").row(4)
    assert roomy.layout.weights == "nf4"


def test_precision():
    old, new = with_card("rtx-2060-super"), with_card("rtx-4090")
    assert plan_tiers(old, CODER).row(1).layout.precision == "fp16"
    assert plan_tiers(new, CODER).row(1).layout.precision == "bf16"
    assert plan_tiers(new, CODER, precision="nf4").row(1).layout.precision == "nf4"
    assert plan_tiers(without_card(), DEMO).row(1).layout.precision == "fp32"
    assert plan_tiers(with_card("rtx-3060-12gb"), find_model("qwen2.5-coder-7b")).row(1).layout.precision == "nf4"
    with pytest.raises(EliteError) as caught:
        plan_tiers(old, CODER, precision="bf16")
    assert (caught.value.code, caught.value.exit_code) == ("precision-unavailable", 3)
    with pytest.raises(EliteError):
        plan_tiers(without_card(), DEMO, precision="fp16")


def test_without_a_gpu_everything_is_in_ram_and_steps_stay_short():
    table = plan_tiers(without_card(), DEMO)
    assert all(row.gpu_peak_bytes == 0 for row in table.tiers)
    assert table.recommended is not None
    row = table.row(table.recommended)
    assert row.step_seconds / row.windows_per_step <= 60
    assert not table.row(11).in_time


def test_without_a_gpu_a_small_repository_keeps_some_updates():
    table = plan_tiers(without_card(cores=16), DEMO, repository_tokens=90_000)
    assert plan_tiers(without_card(cores=16), DEMO).recommended > table.recommended
    assert table.row(table.recommended).steps_per_epoch >= 1
    assert plan_tiers(without_card(cores=16), DEMO, repository_tokens=5000).recommended == 1


def test_without_bitsandbytes_auto_does_not_plan_with_4_bits():
    machine = dataclasses.replace(with_card("rtx-2060"), libraries={"bitsandbytes": None})
    rows = plan_tiers(machine, find_model("qwen2.5-coder-7b")).tiers
    assert all(row.layout.precision == "fp16" for row in rows)


def test_the_largest_context_fits_and_the_next_does_not():
    machine = with_card("rtx-2060-super", ram=16, disk=0)
    planning = PlanRequest.of(machine, CODER)
    row = largest_context(planning)
    assert row is None or row.fits
    roomy = dataclasses.replace(planning, machine=with_card("rtx-2060-super", ram=16, disk=10))
    row = largest_context(roomy)
    assert row.fits
    assert 4096 < row.context < 2**20
    assert row.context % 1024 == 0


# --- choose_plan -------------------------------------------------------------------------------------------


def run_config(**sections):
    return config.from_mapping(sections)


def test_an_explicit_context_or_tier_is_used():
    machine = without_card()
    assert choose_plan(run_config(training={"context": 300}), machine, DEMO, 10_000).context == 300
    assert choose_plan(run_config(training={"tier": 2}), machine, DEMO, 10_000).context == 8192


def test_windows_that_are_alike_have_the_recommended_tier():
    machine = with_card("rtx-3060-12gb")
    table = plan_tiers(machine, CODER, repository_tokens=200_000)
    choice = choose_plan(run_config(training={"curriculum": True}), machine, CODER, 200_000)
    assert choice.schedule is None
    assert choice.plan.tier == table.recommended
    assert choose_plan(run_config(), machine, CODER, 200_000, grow=False).plan.tier == table.recommended
    assert choose_plan(run_config(), machine, CODER, None).schedule is None
    highest = choose_plan(run_config(training={"tier": "max"}), machine, CODER, 200_000)
    assert highest.plan.tier == 7
    assert "tier 7" in highest.note
    assert f"tier {choice.plan.tier}" in choice.note


def test_the_default_without_a_gpu_is_limited_and_says_so():
    spec = find_model("qwen2.5-coder-3b")
    choice = choose_plan(run_config(), without_card(ram=32), spec, 10_000_000, grow=False)
    assert choice.context < 4096
    larger = choose_plan(run_config(), without_card(ram=32, cores=64), spec, 10_000_000, grow=False)
    assert larger.context > choice.context
    assert "without a GPU" in choice.note
    grown = choose_plan(run_config(), without_card(ram=32), spec, 10_000_000)
    assert grown.context < 4096


def test_device_cpu_ignores_the_gpu():
    machine = with_card("rtx-4090")
    choice = choose_plan(run_config(model={"device": "cpu"}), machine, DEMO, None)
    assert choice.plan.gpu_peak_bytes == 0


@pytest.mark.parametrize(
    ("sections", "machine", "code"),
    [
        ({"training": {"tier": 11}}, without_card(ram=8, disk=1), "tier-does-not-fit"),
        ({"training": {"context": 5_000_000}}, without_card(ram=8, disk=1), "context-does-not-fit"),
        ({}, without_card(ram=0.5), "tier-does-not-fit"),
        ({"model": {"device": "cuda"}}, without_card(), "device-unavailable"),
    ],
)
def test_what_cannot_be_is_one_line_with_a_remedy(sections, machine, code):
    with pytest.raises(EliteError) as caught:
        choose_plan(run_config(**sections), machine, DEMO, None)
    assert (caught.value.code, caught.value.exit_code) == (code, 3)
    assert caught.value.remedy
    assert str(caught.value).isprintable()


def test_a_choice_that_was_taken_from_the_planner_is_named_where_it_is_what_does_not_fit():
    large, small = with_card("rtx-3060-12gb", ram=64, disk=500), with_card("rtx-3060-12gb", ram=8, disk=1)
    assert _remedy(large, hidden_home="gpu", stash=True).startswith("it would fit without stream.hidden_home=gpu; ")
    both = _remedy(large, hidden_home="host", stash_home="host", checkpoint_every=1, stash=True)
    assert both.startswith("it would fit without stream.")
    assert "stream." not in _remedy(small, stash=True)  # nor does it fit without


def _remedy(machine, **fixed):
    planning = PlanRequest.of(machine, CODER, stream=StreamSection(**fixed))
    row = plan_context(planning, 524_288)
    assert not row.fits
    return row.remedy


def little_free(available: float, total: float = 20):
    return dataclasses.replace(without_card(ram=total), ram_available=round(available * GIB))


@pytest.mark.parametrize("available", [1.0, 2.0, 3.3, 3.55])
def test_the_ram_that_is_named_as_missing_is_enough_and_little_less_is_not(available):
    """Others hold so much that less than the headroom is free: that has to be made up for first."""
    asked = config.from_mapping({"training": {"tier": 1}})
    machine = little_free(available)
    with pytest.raises(EliteError) as refused:
        choose_plan(asked, machine, DEMO, 200_000)
    amount, unit = re.search(r"needs ([\d.]+) (MiB|GiB) more RAM", refused.value.remedy).groups()
    added = float(amount) * (GIB if unit == "GiB" else GIB / 1024)

    def with_more(share):
        more = round(share * added)
        return dataclasses.replace(machine, ram_total=20 * GIB + more, ram_available=machine.ram_available + more)

    assert choose_plan(asked, with_more(1.01), DEMO, 200_000).plan.fits
    with pytest.raises(EliteError):
        choose_plan(asked, with_more(0.97), DEMO, 200_000)
    if available < HEADROOM * 20:
        assert f"{available:.2f} GiB are free, and 12% of 20.0 GiB stay free" in refused.value.message


@pytest.mark.parametrize("asked", [{"tier": 1}, {"context": 4096}, {"tier": 5}])
def test_a_refused_length_names_the_longest_windows_that_fit(asked):
    """Windows that are not streamed, on 4 GiB free of 20: those of 4,096 tokens take more than there is."""
    whole = {"training": {"step": "whole", **asked}}
    with pytest.raises(EliteError) as refused:
        choose_plan(config.from_mapping(whole), little_free(4.0), DEMO, None)
    way = re.search(r"training\.context=(\d+)", refused.value.remedy)
    assert way is not None
    shorter = int(way[1])
    in_its_place = config.from_mapping({"training": {"step": "whole", "context": shorter}})
    assert choose_plan(in_its_place, little_free(4.0), DEMO, None).context == shorter
    longer = config.from_mapping({"training": {"step": "whole", "context": 2 * shorter}})
    with pytest.raises(EliteError):
        choose_plan(longer, little_free(4.0), DEMO, None)


@pytest.mark.parametrize(("available", "way"), [(4.6, "--tier 1"), (4.0, "leave --tier out")])
def test_a_refused_last_tier_of_hours_names_a_lower_one(available, way):
    training = {"step": "whole", "hours": 100.0}
    with pytest.raises(EliteError) as refused:
        choose_plan(config.from_mapping({"training": {**training, "tier": 4}}), little_free(available), DEMO, 200_000)
    assert way in refused.value.remedy
    tier = 1 if "1" in way else None
    asked = config.from_mapping({"training": {**training, "tier": tier}})
    assert choose_plan(asked, little_free(available), DEMO, 200_000).plan.fits
