"""Stores measurements in the user's cache, in one file per machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec

from engine.hardware.machine import Machine
from engine.hardware.measured import VERSION, Measured
from engine.whole_file import replace_text


def fingerprint(machine: Machine) -> str:
    """Hashes the hardware, driver and torch version that measurements are valid for."""
    gpus = [(gpu.name, gpu.uuid, gpu.memory_total, gpu.driver) for gpu in machine.gpus]
    known = [gpus, machine.cpu_name, machine.cpu_cores, machine.libraries.get("torch")]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def load(machine: Machine) -> Measured | None:
    """Loads this machine's measurements; None if there are none, or the file is invalid."""
    try:
        found = msgspec.json.decode(_path(machine).read_bytes(), type=Measured)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return found if found.version == VERSION else None


def store(machine: Machine, measured: Measured) -> Path:
    """Stores the measurements; the file appears complete or not at all.

    Raises:
        OSError: the cache cannot be written.
    """
    path = _path(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, msgspec.json.format(msgspec.json.encode(measured), indent=1).decode())
    return path


def folder() -> Path:
    """Returns the folder of everything that was measured on this user's machines."""
    import platformdirs

    return platformdirs.user_cache_path("elite-tui") / "profiles"


def _path(machine: Machine) -> Path:
    return folder() / f"{fingerprint(machine)}.json"
