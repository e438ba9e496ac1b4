"""Entry point of each rank, which runs the recipe on one GPU in a process group.

    python -m engine.launch.rank RUN_DIRECTORY       by the elastic agent of a run, or torchrun on another host
    torchrun ... -m engine.launch.rank RUN.yaml      a new run, without `engine train`
    deepspeed ... --no_local_rank --module engine.launch.rank RUN.yaml

The launcher sets the rank in the environment. Rank 0 sends its events to the supervisor's process, if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from engine import config as run_config
from engine import regular_file
from engine.errors.distributed import RANK_DIED, RANK_LOST
from engine.errors.model import DEVICE_UNAVAILABLE
from engine.hardware.environment import limit_omp_spin, number_by_bus, show_one
from engine.hardware.limits import count_cores
from engine.hardware.nvml import Nvml
from engine.hardware.rank_place import RankPlace
from engine.launch.child import describe_failure
from engine.launch.event_relay import RelayJournal, SilentJournal
from engine.launch.recipe_import import LOADING, collector_at_rest, import_function
from engine.launch.signals import watch_stop_signals
from engine.launch.torchrun import TorchrunRun, make_run
from engine.protocol.commands import Stop
from engine.protocol.events import PhaseChanged, RunFailed
from engine.quantities import format_seconds
from engine.runs.context import TrainingSession
from engine.runs.rank_files import FOLDER, log_path, write_failure
from engine.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    import torch

    from engine.distributed.torch_process_group import TorchProcessGroup

_LET_THE_FIRST_BE_SEEN_S = 5.0
"""Seconds that a rank that only noticed another's exit waits, so that the agent sees the other's exit first."""

_OWN_END_S = 12.0
"""Seconds that rank 0 has to save and exit by itself after the agent's SIGTERM; the agent kills it after 30 s."""


def main() -> int:
    """Trains as one rank and returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--relay", default="")
    parser.add_argument("--resuming", action="store_true")
    parser.add_argument("--recipe", default="engine.recipes.fine_tune:train")
    options = parser.parse_args()
    try:
        place = RankPlace.from_environment(os.environ)
    except ValueError as error:
        parser.error(f"{error}: ranks are started by `engine train --gpus N`, torchrun or deepspeed")
    prepare_environment(place)
    if options.run.is_file():
        config = run_config.load(options.run)
        group = join(place, config.distributed.timeout_minutes * 60.0, on_cpu=config.model.device == "cpu")
        run = make_run(options.run, group)
        _detach(run.path, place.rank)
        return _train(options, place, run, group)
    run = RunDirectory.open(options.run)
    _detach(run.path, place.rank)
    return _train(options, place, run, None)


def _train(options: argparse.Namespace, place: RankPlace, run: RunDirectory, joined: TorchProcessGroup | None) -> int:
    rank = place.rank
    config = run.load_config()
    ending: RunFailed | None = None
    session: TrainingSession | None = None
    own: TorchrunRun | None = None
    try:
        on_cpu = config.model.device == "cpu"
        group = joined or join(place, config.distributed.timeout_minutes * 60.0, on_cpu=on_cpu)
        own = TorchrunRun(run) if rank == 0 and not options.relay else None
        journal = own.journal if own is not None else _journal(options.relay, run, leads=rank == 0)
        session = TrainingSession(config=config, run=run, resuming=options.resuming, journal=journal, group=group)
        if isinstance(journal, RelayJournal):
            journal.listen(session.commands.deliver)
        elif own is not None:
            own.listen(session)
        else:
            session.listen(group.keep_notice)
        watch = _watch(session, group, config.distributed.silent_seconds)
        if own is not None:
            watch_stop_signals(lambda _: own.stop(session))
        elif rank == 0:
            watch_stop_signals(lambda _: _end_in_time(session, group))
        else:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if own is not None:
            session.emit(PhaseChanged(phase="starting"))
        session.emit(PhaseChanged(phase="starting", detail=LOADING))
        import_function(options.recipe)(session)
        group.agree(lambda: None)  # a barrier, so that no rank exits while another may still need it
        watch.close()
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - into the rank's log
        ending = describe_failure(run, error, text)
        write_failure(run.path, rank, ending)
        if session is not None and rank == 0:
            session.emit(ending)
        if ending.error == RANK_LOST.code:
            time.sleep(_LET_THE_FIRST_BE_SEEN_S)
    if own is not None:
        own.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of process groups wait for ranks that may be gone.
    os._exit(ending.exit_code if ending is not None else 0)


def _detach(run: Path, rank: int) -> None:
    """Redirects output to the rank's log, and makes the kernel kill the rank when the agent dies."""
    (run / FOLDER).mkdir(exist_ok=True)
    log = regular_file.open_for_appending(log_path(run, rank))
    for target in (1, 2):
        os.dup2(log, target)
    os.close(log)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable(file=2)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def prepare_environment(place: RankPlace) -> None:
    """Sets this rank's GPU, its threads and NCCL, before torch is imported."""
    # Each rank sees a single GPU, like a run on one GPU.
    show_one(os.environ, place.local_rank)
    number_by_bus(os.environ)

    limit_omp_spin(os.environ)

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // place.local_size)))
    # NVLink multicast needs a fabric manager that containers often cannot reach. NCCL then fails without a fallback.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")


def join(place: RankPlace, timeout_s: float, *, on_cpu: bool) -> TorchProcessGroup:
    """Joins the process group of all ranks. `timeout_s` is the timeout of its collectives in seconds.

    Raises:
        EliteError: DEVICE_UNAVAILABLE, if only some ranks have a GPU.
    """
    with collector_at_rest():
        import torch
        from torch import distributed

        from engine.distributed.torch_process_group import TorchProcessGroup

    device = torch.device("cuda", 0) if torch.cuda.is_available() and not on_cpu else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # DeepSpeed uses the default group.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    group = TorchProcessGroup(device, timeout_s, here=place.local_size, device_name=_name_device(device))
    # accelerate would join the group by these, and choose the device by LOCAL_RANK.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    without = [str(rank) for rank, kind in enumerate(group.gather(device.type)) if kind == "cpu"]
    if not on_cpu and 0 < len(without) < group.size:
        problem = f"rank {', '.join(without)} of {group.size} has no GPU; CUDA_VISIBLE_DEVICES must name one for each"
        raise DEVICE_UNAVAILABLE(device="cuda", problem=problem)
    return group


def _name_device(device: torch.device) -> str:
    """Names this rank's GPU by its number on the machine, such as "cuda:1"; torch numbers it 0 on every rank."""
    if device.type != "cuda":
        return str(device)

    nvml = Nvml.open()
    if nvml is None:
        return str(device)
    try:
        found = nvml.gpus()
    finally:
        nvml.close()
    return f"cuda:{found[0].index}" if len(found) == 1 else str(device)


def _journal(address: str, run: RunDirectory, *, leads: bool) -> RelayJournal | SilentJournal:
    return RelayJournal(address, run.id) if leads and address else SilentJournal()


class _RankWatch:
    """Watches the other ranks, and saves and ends this rank when one is lost."""

    def __init__(self, session: TrainingSession, group: TorchProcessGroup, silent_seconds: float) -> None:
        from engine.launch.rank_watchdog import Watch

        self._session, self._group, self._seconds = session, group, silent_seconds
        self._watch = Watch(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            rank=group.rank,
            size=group.size,
            silent_seconds=silent_seconds,
            lost=self._lost,
        )

    def _lost(self, rank: int | None) -> None:
        session, group = self._session, self._group
        if rank is None:
            error = RANK_LOST(rank=group.rank, problem="the agents' store is gone")
        else:
            error = RANK_DIED(
                rank=rank,
                ranks=group.size,
                how=f"gave no sign of life for {format_seconds(self._seconds)}",
                log=log_path(session.run.path, rank),
                run=session.run.id,
            )
        failure = describe_failure(session.run, error, "")
        print(f"{error}", file=sys.stderr, flush=True)  # noqa: T201 - into the rank's log
        write_failure(session.run.path, group.rank if rank is None else rank, failure)
        _save_and_end(session, group, failure)

    def close(self) -> None:
        """Stops watching."""
        self._watch.close()


def _watch(session: TrainingSession, group: TorchProcessGroup, silent_seconds: float) -> _RankWatch:
    return _RankWatch(session, group, silent_seconds)


def _end_in_time(session: TrainingSession, group: TorchProcessGroup) -> None:
    """Handles the agent's SIGTERM after another rank's exit; the main thread may hang in a collective."""
    if not session.commands.stop_requested:
        # Wakes a paused run and interrupts a step. Both then notice the lost rank, and save.
        session.commands.deliver(Stop(id="signal"))

    def end() -> None:
        time.sleep(_OWN_END_S)
        error = RANK_LOST(rank=group.rank, problem="the agent ended it after another rank's end")
        _save_and_end(session, group, describe_failure(session.run, error, ""))

    threading.Thread(target=end, name="end", daemon=True).start()


def _save_and_end(session: TrainingSession, group: TorchProcessGroup, failure: RunFailed) -> None:
    if group.leads and session.ending is None:
        try:
            group.emergency()
        except Exception:  # must not hide the error that ends the run
            traceback.print_exc()
        with contextlib.suppress(OSError):
            session.emit(failure)
    os._exit(failure.exit_code)


if __name__ == "__main__":
    sys.exit(main())
