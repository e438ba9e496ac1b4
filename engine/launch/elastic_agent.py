"""Runs torch's elastic agent, as torchrun does, for the ranks of this host, in a thread."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from engine.config.hosts import Host

_MONITOR_SECONDS = 0.2
_MEET_SECONDS = 600
"""Seconds that hosts wait for each other at the start."""


@dataclass(frozen=True)
class RankExit:
    """Exit of a rank's process, as seen by the agent."""

    rank: int
    status: int
    "Exit status, or the negative number of the signal that ended it."
    pid: int

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it, other than the agent's SIGTERM after another rank's end.

        The agent ends the remaining ranks by SIGTERM, and newer torch lists them among those that failed.
        """
        return self.status < 0 and self.status != -signal.SIGTERM


class Agent:
    """Starts the ranks of this host, the first in `hosts`, immediately; they never restart by themselves.

    Args:
        hosts: All hosts of the run.
        port: Rendezvous port.
        run: Rendezvous id.
        arguments: Arguments of `python` for each rank.
    """

    def __init__(self, hosts: Sequence[Host], port: int, run: str, arguments: Sequence[str]) -> None:
        alone = len(hosts) == 1
        self._launch = LaunchConfig(
            min_nodes=len(hosts),
            max_nodes=len(hosts),
            nproc_per_node=hosts[0].slots,
            run_id=run,
            # A single host can use any free port; several must know the port and the first host.
            rdzv_backend="c10d" if alone else "static",
            rdzv_endpoint="127.0.0.1:0" if alone else f"{hosts[0].name}:{port}",
            rdzv_configs={"timeout": _MEET_SECONDS} if alone else {"timeout": _MEET_SECONDS, "rank": 0},
            max_restarts=0,
            monitor_interval=_MONITOR_SECONDS,
            start_method="spawn",
            local_addr="127.0.0.1" if alone else None,
        )
        self._arguments = list(arguments)
        self.exits: list[RankExit] = []
        "Failed ranks, once `done`."
        self.error: BaseException | None = None
        "Why the ranks did not start, once `done`."
        self.done = threading.Event()
        threading.Thread(target=self._run, name="agent", daemon=True).start()

    def _run(self) -> None:
        try:
            elastic_launch(self._launch, sys.executable)(*self._arguments)
        except ChildFailedError as failed:
            found = [RankExit(rank, one.exitcode, one.pid) for rank, one in failed.failures.items()]
            self.exits = sorted(found, key=lambda one: (not one.was_killed, one.status < 0))
        except BaseException as error:  # the supervisor reports it
            self.error = error
        finally:
            self.done.set()
