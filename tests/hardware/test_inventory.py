"""Inventory and telemetry: old drivers, no driver, containers, broken sources."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from engine.hardware import limits, telemetry
from engine.hardware.disk import nearest_existing, read_disk
from engine.hardware.inventory import LIBRARIES, take_inventory
from engine.hardware.limits import count_cores, read_memory
from engine.hardware.machine import GIB
from engine.hardware.nvml import Nvml
from engine.hardware.telemetry import Sampler

MIB = 1024**2


class Driver:
    """Stands in for the NVML library: each function of `answers` returns its value, or raises it; others are absent."""

    def __init__(self, monkeypatch, **answers):
        for name in [name for name in dir(pynvml) if name.startswith("nvml") and callable(getattr(pynvml, name))]:
            monkeypatch.delattr(pynvml, name)
        for name, answer in {"nvmlInit": None, "nvmlShutdown": None, **answers}.items():
            monkeypatch.setattr(pynvml, name, self._function(answer), raising=False)

    @staticmethod
    def _function(answer):
        def call(*arguments):
            value = answer(*arguments) if callable(answer) else answer
            if isinstance(value, Exception):
                raise value
            return value

        return call


def error(code=pynvml.NVML_ERROR_NOT_SUPPORTED):
    return pynvml.NVMLError(code)


ONE_CARD = {
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
    "nvmlDeviceGetName": "NVIDIA GeForce RTX 2060 SUPER",
    "nvmlDeviceGetUUID": "GPU-1234",
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=8192 * MIB, free=7000 * MIB, used=1192 * MIB),
    "nvmlDeviceGetCudaComputeCapability": (7, 5),
    "nvmlSystemGetDriverVersion": "550.54",
    "nvmlSystemGetCudaDriverVersion_v2": 12040,
    "nvmlDeviceGetMigMode": error(),
    "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=7)],
    "nvmlDeviceGetGraphicsRunningProcesses": [SimpleNamespace(pid=7), SimpleNamespace(pid=8)],
    "nvmlDeviceGetMaxPcieLinkGeneration": 3,
    "nvmlDeviceGetMaxPcieLinkWidth": 8,
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=41, memory=10),
    "nvmlDeviceGetPowerUsage": 120_500,
    "nvmlDeviceGetEnforcedPowerLimit": 175_000,
    "nvmlDeviceGetTemperature": 66,
    "nvmlDeviceGetClockInfo": 1650,
    "nvmlDeviceGetMaxClockInfo": 2100,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x24,
}


@pytest.fixture(autouse=True)
def every_device_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_card_and_what_its_driver_says(monkeypatch, tmp_path):
    Driver(monkeypatch, **ONE_CARD)
    (gpu,) = take_inventory(tmp_path).gpus
    assert (gpu.name, gpu.card, gpu.architecture) == ("NVIDIA GeForce RTX 2060 SUPER", "rtx-2060-super", "turing")
    assert (gpu.memory_total, gpu.memory_free, gpu.processes) == (8192 * MIB, 7000 * MIB, 2)
    assert (gpu.driver, gpu.cuda, gpu.mig) == ("550.54", "12.4", None)
    assert (gpu.pcie_generation, gpu.pcie_lanes, gpu.memory_bandwidth) == (3, 8, 448e9)


@pytest.mark.parametrize("missing", [None, "absent"])
@pytest.mark.parametrize("name", [name for name in ONE_CARD if name.startswith("nvmlDeviceGet")])
def test_each_function_may_fail_alone(name, missing, monkeypatch, tmp_path):
    answers = {**ONE_CARD, name: error()}
    if missing:
        del answers[name]
    Driver(monkeypatch, **answers)
    gpus = take_inventory(tmp_path).gpus
    if name in ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"):
        assert gpus == ()
    else:
        assert len(gpus) == 1
        assert gpus[0].uuid == (None if name == "nvmlDeviceGetUUID" else "GPU-1234")
    nvml = Nvml.open()
    assert len(nvml.samples()) == len(gpus)


def test_an_old_driver_with_almost_nothing(monkeypatch, tmp_path):
    old = ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex")
    Driver(
        monkeypatch,
        **{name: ONE_CARD[name] for name in old},
        nvmlDeviceGetName=b"Tesla T4",
        nvmlSystemGetCudaDriverVersion=11020,
    )
    (gpu,) = take_inventory(tmp_path).gpus
    assert (gpu.name, gpu.cuda, gpu.memory_total, gpu.memory_free) == ("Tesla T4", "11.2", 16 * GIB, None)
    assert (gpu.driver, gpu.processes, gpu.mig) == (None, None, None)
    (sample,) = Nvml.open().samples()
    assert (sample.memory_used, sample.utilisation, sample.power, sample.temperature) == (None,) * 4


@pytest.mark.parametrize("failure", [error(pynvml.NVML_ERROR_DRIVER_NOT_LOADED), OSError("no libnvidia-ml.so")])
def test_no_driver(failure, monkeypatch, tmp_path):
    Driver(monkeypatch, nvmlInit=failure)
    assert take_inventory(tmp_path).gpus == ()


@pytest.mark.parametrize(
    ("visible", "indexes"),
    [("1", [1]), ("1,0", [1, 0]), ("", []), ("-1", []), ("0,9,1", [0]), ("GPU-b", [1]), ("GPU-zzz", [])],
)
def test_only_visible_devices_count(visible, indexes, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    uuids = {"handle 0": "GPU-aaaa", "handle 1": "GPU-bbbb"}
    Driver(monkeypatch, **{**ONE_CARD, "nvmlDeviceGetCount": 2, "nvmlDeviceGetUUID": uuids.get})
    assert [gpu.index for gpu in Nvml.open().gpus()] == indexes


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("MIG-b", [(1, "MIG-bbbb")]),
        ("MIG-bbbb, MIG-aaaa", [(1, "MIG-bbbb"), (0, "MIG-aaaa")]),
        ("MIG-c", []),
        ("1", [(1, "GPU-2")]),
    ],
)
def test_mig_devices_are_found_by_name(visible, found, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    uuids = {"handle 0": "GPU-1", "handle 1": "GPU-2", "part of handle 0": "MIG-aaaa", "part of handle 1": "MIG-bbbb"}
    mig = {
        "nvmlDeviceGetMaxMigDeviceCount": 7,
        "nvmlDeviceGetMigDeviceHandleByIndex": lambda parent, place: error() if place else f"part of {parent}",
    }
    Driver(monkeypatch, **{**ONE_CARD, "nvmlDeviceGetCount": 2, "nvmlDeviceGetUUID": uuids.get, **mig})
    assert [(gpu.index, gpu.uuid) for gpu in Nvml.open().gpus()] == found


def test_a_sample(monkeypatch):
    Driver(monkeypatch, **ONE_CARD)
    (sample,) = Nvml.open().samples()
    assert (sample.utilisation, sample.power, sample.power_limit, sample.temperature) == (41, 120.5, 175.0, 66)
    assert sample.throttled == ("heat", "power")


# --- containers --------------------------------------------------------------------------------------------


def write(root: Path, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def big_machine(monkeypatch):
    memory = SimpleNamespace(total=64 * GIB, available=60 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def cgroup_v2(root: Path, folder: str, **files):
    (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("memory cpu")
    for name, text in files.items():
        (root / "sys/fs/cgroup" / folder / name.replace("_", ".", 1)).write_text(text)


def test_no_group_leaves_the_machine(big_machine, tmp_path):
    memory = read_memory(tmp_path)
    assert (memory.total, memory.available, memory.limited_by) == (64 * GIB, 60 * GIB, None)


def test_a_group_of_version_2(big_machine, tmp_path):
    write(tmp_path, proc__self__cgroup="0::/box/inner\n")
    cgroup_v2(tmp_path, "box/inner", memory_max="max\n")
    cgroup_v2(
        tmp_path,
        "box",
        memory_max=f"{8 * GIB}\n",
        memory_current=f"{3 * GIB}\n",
        memory_stat=f"anon 5\ninactive_file {GIB}\n",
    )
    memory = read_memory(tmp_path)
    assert (memory.total, memory.available, memory.limited_by) == (8 * GIB, 6 * GIB, "cgroup v2")


def test_inside_a_container_the_mount_is_the_group(big_machine, tmp_path):
    write(tmp_path, proc__self__cgroup="0::/docker/0123\n")
    cgroup_v2(tmp_path, "", memory_max=f"{4 * GIB}\n", memory_current="0\n")
    assert read_memory(tmp_path).total == 4 * GIB


def test_the_kernel_s_kills_are_counted_for_the_group_else_for_the_machine(tmp_path):
    assert limits.find_oom_counter(tmp_path) is None
    write(tmp_path, proc__vmstat="pgfault 7\noom_kill 5\n")
    assert limits.read_oom_kills(limits.find_oom_counter(tmp_path)) == 5
    write(tmp_path, proc__self__cgroup="0::/box\n")
    cgroup_v2(tmp_path, "box", memory_events="low 0\noom 2\noom_kill 1\noom_group_kill 9\n")
    assert limits.read_oom_kills(limits.find_oom_counter(tmp_path)) == 1
    write(
        tmp_path,
        proc__self__cgroup="4:memory:/old\n",
        **{"sys/fs/cgroup/memory/old/memory.oom_control": "oom_kill 3\n"},
    )
    assert limits.read_oom_kills(limits.find_oom_counter(tmp_path)) == 3
    assert limits.read_oom_kills(tmp_path / "gone") is None


def test_a_group_of_version_1(big_machine, tmp_path):
    write(tmp_path, proc__self__cgroup="9:name=systemd:/\n4:cpu,memory:/box\n")
    folder = tmp_path / "sys/fs/cgroup/memory"
    (folder / "box").mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (folder / "box/memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (folder / "box/memory.usage_in_bytes").write_text(f"{GIB}\n")
    memory = read_memory(tmp_path)
    assert (memory.total, memory.available, memory.limited_by) == (2 * GIB, GIB, "cgroup v1")


@pytest.mark.parametrize("text", ["", "max", "rubbish", "-5", str(10**30)])
def test_a_limit_that_is_none(text, big_machine, tmp_path):
    write(tmp_path, proc__self__cgroup="0::/\nnonsense\n\n")
    cgroup_v2(tmp_path, "", memory_max=text)
    assert read_memory(tmp_path).limited_by is None


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)])
def test_cores_of_a_group(quota, cores, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    write(tmp_path, proc__self__cgroup="0::/\n")
    cgroup_v2(tmp_path, "", cpu_max=quota)
    assert count_cores(tmp_path) == cores


# --- disk, libraries, processor ----------------------------------------------------------------------------


def test_the_disk_of_a_path_that_is_not_there_yet(tmp_path):
    disk = read_disk(tmp_path / "not" / "yet")
    assert 0 < disk.free <= disk.total
    assert nearest_existing(tmp_path / "not" / "yet") == tmp_path
    dangling = tmp_path / "link"
    dangling.symlink_to("/nowhere/at/all")
    assert read_disk(dangling).total == disk.total


@pytest.mark.parametrize(
    ("name", "rotational", "kind"),
    [("nvme0n1", "0", "nvme"), ("sda", "0", "ssd"), ("sda", "1", "hdd"), ("vda", "1", None)],
)
def test_the_kind_of_disk(name, rotational, kind, tmp_path):
    device = tmp_path.stat().st_dev
    disk = tmp_path / "sys/devices" / name
    (disk / "queue").mkdir(parents=True)
    (disk / "queue/rotational").write_text(rotational)
    (disk / f"{name}1").mkdir()
    link = tmp_path / "sys/dev/block" / f"{os.major(device)}:{os.minor(device)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(disk / f"{name}1")
    write(tmp_path, proc__self__mountinfo="")
    assert read_disk(tmp_path, root=tmp_path).kind == kind


def test_a_network_disk(tmp_path):
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    write(tmp_path, proc__self__mountinfo=f"36 35 {number} / /data rw shared:1 - nfs4 server:/data rw\n")
    assert read_disk(tmp_path, root=tmp_path).kind == "network"


def test_this_machine(tmp_path):
    machine = take_inventory(tmp_path)
    assert machine.cpu_cores >= 1
    assert 0 < machine.ram_available <= machine.ram_total
    assert machine.libraries["torch"]
    assert set(machine.libraries) == set(LIBRARIES)


# --- telemetry ---------------------------------------------------------------------------------------------


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_sampler_samples_until_it_is_stopped(monkeypatch, tmp_path):
    Driver(monkeypatch, **ONE_CARD)
    sampler = Sampler(interval=0.01, disk_path=tmp_path)
    assert sampler.latest() is None
    sampler.start()
    wait_for(lambda: sampler.latest() is not None and sampler.latest().cpu_percent is not None)
    sampler.stop()
    last = sampler.latest()
    assert last.gpus[0].memory_used == 1192 * MIB
    assert 0 < last.ram_used <= last.ram_total
    assert last.disk_free > 0
    time.sleep(0.05)
    assert sampler.latest() is last


def test_a_source_that_fails_leaves_only_its_own_fields_unknown(monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise OSError("gone")

    Driver(monkeypatch, nvmlInit=error())
    monkeypatch.setattr(psutil, "swap_memory", broken)
    monkeypatch.setattr(psutil, "cpu_percent", broken)
    monkeypatch.setattr(telemetry, "read_disk", broken)
    sampler = Sampler(interval=0.01, disk_path=tmp_path)
    sampler.start()
    wait_for(lambda: sampler.latest() is not None)
    sampler.stop()
    snapshot = sampler.latest()
    assert (snapshot.swap_used, snapshot.cpu_percent, snapshot.disk_free, snapshot.gpus) == (None, None, None, ())
    assert snapshot.ram_used > 0


def test_a_card_that_falls_off_the_bus_becomes_unknown(monkeypatch):
    Driver(monkeypatch, **ONE_CARD)
    nvml = Nvml.open()
    lost = error(pynvml.NVML_ERROR_GPU_IS_LOST)
    Driver(monkeypatch, **dict.fromkeys(ONE_CARD, lost))
    (sample,) = nvml.samples()
    assert (sample.memory_used, sample.utilisation, sample.throttled) == (None, None, None)


def test_the_limits_are_read_from_the_real_root_by_default():
    assert limits.read_memory().total > 0
