"""The catalogue of cards: complete figures, names that people type, what is said about a bad one."""

from __future__ import annotations

import pytest

from engine.errors import EliteError
from engine.hardware.cards import cards, find_card, match_card, simulate
from engine.hardware.machine import GIB
from engine.hardware.target import target_machine


def test_the_catalogue_is_wide_and_plausible():
    assert len(cards()) >= 25
    for card in cards().values():
        assert 4 * GIB <= card.memory <= 288 * GIB
        assert 100e9 <= card.bandwidth <= 10e12
        assert 10e12 <= card.tensor_flops <= 3000e12
        assert card.pcie_generation in (3, 4, 5)
        assert card.pcie_lanes in (4, 8, 16)
        assert (7, 0) <= card.compute_capability <= (12, 0)
    assert {"turing", "ampere", "ada", "hopper", "blackwell"} <= {card.architecture for card in cards().values()}


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("rtx-2060-super", "rtx-2060-super"),
        ("RTX 2060 SUPER", "rtx-2060-super"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("nvidia_rtx_a6000", "rtx-a6000"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "rtx-4060-laptop"),
        ("rtx-3060", "rtx-3060-12gb"),
        ("H100-SXM", "h100-sxm"),
    ],
)
def test_names_that_people_type(typed, key):
    assert find_card(typed).key == key


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("rtx-2060-supr", "rtx-2060-super"),
        ("rtx-4060-ti", "16gb"),
        ("rtx-306", "did you mean rtx-3060-12gb or rtx-3060-ti or rtx-3060-laptop?"),
        ("rtx-306O", "did you mean rtx-3060-12gb or "),
        ("RTX3080", "did you mean rtx-3080-10gb or "),
        ("h100", "did you mean h100-pcie or h100-sxm or "),
        ("banana", "did you mean "),
        ("", "''"),
        ("a\x1b[0m", "\\x1b"),
    ],
)
def test_an_unknown_card_gets_one_line_with_the_nearest(typed, says):
    with pytest.raises(EliteError) as caught:
        find_card(typed)
    assert (caught.value.code, caught.value.exit_code) == ("hardware-unknown", 2)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_driver_name_is_matched_by_name_and_memory():
    assert match_card("NVIDIA GeForce RTX 3080", 12 * GIB - 5).key == "rtx-3080-12gb"
    assert match_card("NVIDIA GeForce RTX 3080", 10 * GIB - 5).key == "rtx-3080-10gb"
    assert match_card("NVIDIA GeForce GTX 1080", 8 * GIB) is None


def test_a_simulated_machine():
    machine = simulate(find_card("t4"), ram_bytes=32 * GIB, disk_bytes=100 * GIB)
    assert machine.simulated == "t4"
    assert machine.gpus[0].memory_free == 16 * GIB
    assert not machine.gpus[0].has_bf16
    assert machine.ram_available < machine.ram_total == 32 * GIB


def test_the_target_takes_what_was_said(monkeypatch, tmp_path):
    machine = target_machine("rtx-4090", vram=10 * GIB, ram=16 * GIB, disk=5 * GIB)
    assert (machine.gpus[0].memory_total, machine.ram_total, machine.disk_free) == (10 * GIB, 16 * GIB, 5 * GIB)
    monkeypatch.setattr("engine.hardware.inventory.Nvml.open", lambda: None)
    here = target_machine(ram=3 * GIB, disk=GIB, disk_path=tmp_path)
    assert (here.gpus, here.ram_total, here.ram_available, here.disk_free) == ((), 3 * GIB, GIB, GIB)
    with pytest.raises(EliteError) as caught:
        target_machine(vram=8 * GIB)
    assert caught.value.code == "no-gpu"
