"""Hosts that train together, and the command that each of them runs."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine import regular_file
from engine.errors.distributed import HOSTFILE_INVALID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.config import RunConfig

_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9.:_-]*)(\s+slots=(?P<slots>[1-9][0-9]*))?")


@dataclass(frozen=True)
class Host:
    """One host of a run."""

    name: str
    "Address by which the other hosts reach it."
    slots: int
    "Number of ranks on it."


def read_hostfile(path: Path, slots: int) -> list[Host]:
    """Reads a hostfile as DeepSpeed and MPI write it: `name slots=8` a line, # begins a comment.

    Args:
        path: The file.
        slots: Ranks on a host whose line gives no number.

    Raises:
        EliteError: HOSTFILE_INVALID.
    """
    try:
        lines = regular_file.read_text(path, 1 << 20, follow=True).splitlines()
    except (OSError, ValueError) as error:
        raise HOSTFILE_INVALID(path=path, problem=getattr(error, "strerror", None) or error) from error
    hosts = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise HOSTFILE_INVALID(path=path, problem=f"line {number} is {text!r}")
        hosts.append(Host(match["name"], int(match["slots"] or slots)))
    if not hosts:
        raise HOSTFILE_INVALID(path=path, problem="it names no host")
    names = [host.name for host in hosts]
    if len(set(names)) < len(names):
        raise HOSTFILE_INVALID(path=path, problem="it names a host twice")
    if len({host.slots for host in hosts}) > 1:
        raise HOSTFILE_INVALID(path=path, problem="hosts with unlike numbers of slots; torchrun needs the same")
    return hosts


def hosts_of(config: RunConfig, gpus: int) -> list[Host]:
    """Returns the hosts that a configuration names; this one alone where it names none.

    Args:
        config: The run's configuration.
        gpus: Ranks on this host.

    Raises:
        EliteError: HOSTFILE_INVALID.
    """
    if not config.distributed.hostfile:
        return [Host("localhost", gpus)]
    return read_hostfile(Path(config.distributed.hostfile), gpus)


def join_command(hosts: Sequence[Host], number: int, port: int, run: str, python: str = sys.executable) -> str:
    """Returns the torchrun command by which host `number` joins; the run directory is on a shared disk."""
    words = [python, "-m", "torch.distributed.run"]
    words += ["--nnodes", str(len(hosts)), "--node-rank", str(number), "--nproc-per-node", str(hosts[number].slots)]
    words += ["--master-addr", hosts[0].name, "--master-port", str(port), "--rdzv-id", Path(run).name]
    return shlex.join([*words, "-m", "engine.launch.rank", run])


def deepspeed_command(hostfile: str, configuration: str, port: int) -> str:
    """Returns the command that runs a YAML file on all hosts with DeepSpeed's launcher (ssh to each)."""
    words = ["deepspeed", "--hostfile", hostfile, "--master_port", str(port), "--no_local_rank"]
    return shlex.join([*words, "--module", "engine.launch.rank", configuration])
