"""A rank knows its place from its launcher, on a machine whose NVML shows every GPU to every process.

`two_cards/pynvml.py` stands in for the driver's library in all child processes. torch sees no GPU in them, so that the
ranks compute on the CPU what they planned for a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import config as run_config
from engine.config import from_mapping
from engine.errors import EliteError
from engine.hardware.environment import number_by_bus, show_one, visible_names
from engine.hardware.rank_place import RankPlace, Ranks
from engine.hardware.target import target_machine
from engine.models.catalogue import find_model
from engine.plan.choice import choose_plan, request_of_run
from engine.plan.cluster import least_of
from engine.plan.strategy import ranks_to_start
from tests.distributed.conftest import run_folder

TWO_CARDS = Path(__file__).parent / "two_cards"
FIRST, SECOND = ("GPU-11111111-0000-0000-0000-000000000000", "GPU-22222222-0000-0000-0000-000000000000")
GIB = 1024**3


def with_two_cards(**variables):
    """The environment of a machine with two GPUs."""
    path = os.pathsep.join([str(TWO_CARDS), *sys.path])
    return {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0,1", **variables}.items()


# Ranks find their place before they know of a strategy. test_ranks.py trains with "data" where no GPU is shown.
@pytest.mark.parametrize(
    ("strategy", "gpus", "visible"),
    [pytest.param("data", "2", "0,1", marks=pytest.mark.slow), ("ring", "all", f"{SECOND},{FIRST}")],
)
def test_ranks_train_where_nvml_shows_all_gpus(tmp_path, train, alone, strategy, gpus, visible):
    settings = ["model.device=auto", "model.precision=fp32", f"distributed.strategy={strategy}"]
    both = train("--gpus", gpus, settings=settings, variables=with_two_cards(CUDA_VISIBLE_DEVICES=visible))
    assert both.finish() == 0, both.error
    assert {event["rank"] for event in both.of("RankReported")} == {0, 1}
    assert both.losses == pytest.approx(alone[0], rel=1e-5)
    plan = json.loads((run_folder(tmp_path) / "plan.json").read_text())
    assert plan["plan"].get("window_ranks", 1) == (2 if strategy == "ring" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ulysses", "zero2", "zero3"])
def test_the_other_strategies_too(train, strategy):
    settings = ["model.device=auto", "model.precision=fp32", f"distributed.strategy={strategy}"]
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
        settings += ["training.step=whole"]
    both = train("--gpus", "2", settings=settings, variables=with_two_cards(DS_ACCELERATOR="cpu"))
    assert both.finish() == 0, both.error
    assert {event["rank"] for event in both.of("RankReported")} == {0, 1}


def test_the_rank_that_failed_is_told_not_the_one_that_was_ended_for_it(train):
    recipe = {"ELITE_RANK_RECIPE": "tests.distributed.recipes:refused_by_the_first"}
    call = train("--gpus", "2", variables=recipe.items())
    assert call.finish() == 3
    assert call.events[-1]["error"] == "device-unavailable", call.events[-1]
    assert "as this test wants it" in call.events[-1]["message"]


# --- the launcher's words -----------------------------------------------------------------------------------

PLACE = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(("more", "here"), [({"LOCAL_WORLD_SIZE": "4"}, 4), ({"LOCAL_SIZE": "2"}, 2), ({}, 2)], ids=str)
def test_a_place_is_read_from_the_environment(more, here):
    place = RankPlace.from_environment({**PLACE, **more})
    assert (place.rank, place.local_rank) == (5, 1)
    assert place.ranks == Ranks(here=here, all=8)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"RANK": None}, "RANK is not set"),
        ({"WORLD_SIZE": "x"}, "'x'"),
        ({"RANK": "8"}, "no place"),
        ({"RANK": "-1"}, "no"),
    ],
)
def test_what_is_no_place_is_refused(change, word):
    environment = {name: text for name, text in {**PLACE, **change}.items() if text is not None}
    with pytest.raises(ValueError, match=word):
        RankPlace.from_environment(environment)


def test_a_rank_without_a_launcher_says_so(tmp_path):
    clean = {name: text for name, text in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    words = [sys.executable, "-m", "engine.launch.rank", str(tmp_path)]
    clean["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(words, env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "RANK is not set" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0,1", ["0", "1"]),
        (" 1 , 0", ["1", "0"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("MIG-a,GPU-b", ["MIG-a", "GPU-b"]),
    ],
)
def test_visible_names(text, names):
    assert visible_names(text) == names


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (None, ["0", "1"]),
        ("2,5", ["2", "5"]),
        (f"{SECOND},{FIRST}", [SECOND, FIRST]),
        ("MIG-a, MIG-b", ["MIG-a", "MIG-b"]),
        ("3", ["3", ""]),
        ("", ["", ""]),  # hides every GPU, which is not the same as unset
        ("-1", ["", ""]),
    ],
)
def test_each_rank_sees_its_own_gpu(text, shown):
    for local_rank in (0, 1):
        environment = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
        show_one(environment, local_rank)
        assert environment["CUDA_VISIBLE_DEVICES"] == shown[local_rank]


def test_gpus_are_numbered_by_bus_unless_the_user_chose():
    environment, own = {}, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    number_by_bus(environment)
    number_by_bus(own)
    assert (environment, own) == ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})


# --- the plan -----------------------------------------------------------------------------------------------


def unlike_cards():
    machine = target_machine("rtx-3090")
    (card,) = machine.gpus
    cards = (dataclasses.replace(card, memory_free=23 * GIB), dataclasses.replace(card, index=1, memory_free=9 * GIB))
    return dataclasses.replace(machine, gpus=cards)


def test_a_rank_plans_what_its_launcher_planned():
    config = from_mapping({"model": {"name": "qwen2.5-coder-1.5b"}, "distributed": {"gpus": 2}})
    machine, spec = unlike_cards(), find_model("qwen2.5-coder-1.5b")
    own = least_of([dataclasses.replace(machine, gpus=(card,)) for card in machine.gpus])
    outside, within = (
        request_of_run(config, machine, spec, None),
        request_of_run(config, own, spec, None, Ranks(here=2, all=2)),
    )
    assert within == outside
    assert within.ranks == 2
    assert within.machine.gpus[0].memory_free == 9 * GIB  # one layout for both: the fuller GPU decides
    assert within.machine.ram_total == machine.ram_total // 2


@pytest.mark.parametrize("gpus", [0, 2, 5])
def test_nothing_in_a_rank_counts_gpus(gpus):
    config = from_mapping({"model": {"name": "qwen2.5-coder-1.5b"}, "distributed": {"gpus": gpus}})
    machine = unlike_cards()
    one = dataclasses.replace(machine, gpus=machine.gpus[:1])
    choice = choose_plan(config, one, find_model("qwen2.5-coder-1.5b"), 500_000, Ranks(here=4, all=8))
    assert choice.plan.fits


def test_a_launcher_counts_the_gpus_of_a_hostfile_too(tmp_path):
    hosts = tmp_path / "hosts.txt"
    hosts.write_text("here slots=3\nthere slots=3\n")
    config = from_mapping({"distributed": {"gpus": 1, "hostfile": str(hosts)}})
    with pytest.raises(EliteError, match="3 GPUs were asked for, and this machine has 2"):
        ranks_to_start(config, unlike_cards())
    hosts.write_text("here slots=2\nthere slots=2\n")
    assert ranks_to_start(config, unlike_cards()) == Ranks(here=2, all=4)
    assert run_config.RunConfig().distributed.gpus == 1
