"""Decides model, device, precision, context and resumption of a run before anything large is read."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed
from msgspec.structs import replace

from engine import __version__, regular_file
from engine.atomic_dir import AtomicDir, DamagedError
from engine.config import RunConfig, TrainingSection
from engine.data.repositories import estimate_data_tokens
from engine.errors.runs import NOTHING_TO_RESUME, RUN_DAMAGED
from engine.hardware.inventory import take_inventory
from engine.hardware.limits import count_cores
from engine.hardware.machine import Machine
from engine.hardware.tuning import keep_heap_whole, tune_memory
from engine.models.base_changes import BaseChanges
from engine.models.base_fingerprint import Fingerprint, compare_with_base, fingerprint
from engine.models.catalogue import ModelSpec, find_model
from engine.models.families import FAMILIES
from engine.models.loading import open_weights
from engine.models.placement import Placement, Precision, choose_placement, device_name
from engine.models.proofs import read_proof, write_proof
from engine.plan.choice import Choice, choose_plan
from engine.plan.cluster import least_of
from engine.plan.optimizations import refuse_conflicts
from engine.plan.recommendation import within_trained
from engine.plan.step_layout import StepLayout
from engine.protocol.events import LogLine, PhaseChanged, RecoveryTaken, RunStarted, WarningRaised
from engine.training.checkpoints import CheckpointFolder, ReadOnlyCheckpoints, Retention, verify
from engine.training.disk_space import DiskSpace
from engine.training.state import Progress, read_snapshot
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from engine.models.spec import ModelSpec
    from engine.runs.context import TrainingSession
    from engine.runs.process_group import ProcessGroup


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Verified checkpoint that a run resumes from. Its tensors are read again when they are needed."""

    checkpoint: AtomicDir
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Decisions of a run."""

    spec: ModelSpec
    placement: Placement
    choice: Choice
    "The context and the plan for it."
    checkpoints: CheckpointFolder
    resumed: Resumption | None
    started: float
    "time.monotonic() when the run began."

    training: TrainingSection
    "The configuration's section, with the rate and the schedule's tokens an update."

    @property
    def context(self) -> int:
        """Tokens per window; of the longest ones, where windows grow."""
        return self.choice.context

    @property
    def shortest(self) -> int:
        """Tokens per window of the first stage."""
        schedule = self.choice.schedule
        return self.context if schedule is None else schedule.stages[0].context


def set_up(session: TrainingSession, *, grow: bool = True) -> Setup:
    """Decides, seeds the generators, and announces the run.

    Args:
        session: Has the configuration, and takes the events.
        grow: Whether windows may grow over the run where nothing sets their length.

    Raises:
        EliteError: MODEL_*, DEVICE_UNAVAILABLE, PRECISION_UNAVAILABLE, TIER_DOES_NOT_FIT, NOTHING_TO_RESUME.
    """
    started = time.monotonic()
    config = session.config
    session.emit(PhaseChanged(phase="starting", detail="measuring the files and choosing the plan"))
    _use_cores()
    set_seed(config.training.seed)
    spec = find_model(config.model.name)
    group = session.group
    kept = config.checkpoint
    retention = Retention(newest=kept.keep, best=kept.keep_best, hours=kept.keep_every_hours)
    kind = CheckpointFolder if group.leads else ReadOnlyCheckpoints
    checkpoints = kind(session.run.checkpoints_path, retention)
    space = DiskSpace(session, checkpoints)
    machine = least_of(group.gather(take_inventory(session.run.path)))
    changed = BaseChanges.of(config.model, spec, context=0).applied_to(spec)
    choice = group.agree(lambda: _plan(session, machine, changed, space, grow=grow))
    refuse_conflicts(config, streamed=choice.plan.layout.stream is not None)
    # A plan with a free choice may have chosen 4 bits to make the context fit.
    planned = "nf4" if choice.plan.layout.precision == "nf4" else config.model.precision
    if machine.gpus and config.model.device != "cpu":
        session.emit(PhaseChanged(phase="starting", detail="opening the GPU"))
    placement = _same_in_all(group, choose_placement(config.model.device, planned))
    checkpoints.heal()
    resumed, damaged = group.agree(lambda: _newest_valid(checkpoints) if session.resuming else (None, []))
    if resumed is None and damaged:
        raise NOTHING_TO_RESUME(run=session.run.id)
    # An epoch may end before max_steps; then only the data say after how many updates.
    known = choice.schedule is not None or choice.updates == config.training.max_steps
    planned_updates = (choice.updates if known else 0) or 0
    total_steps = resumed.progress.total_steps if resumed else planned_updates
    session.emit(
        RunStarted(
            model=config.model.name,
            context=choice.context,
            total_steps=total_steps,
            first_step=resumed.progress.step if resumed else 0,
            device=device_name(placement.device),
            pid=os.getpid(),
            engine_version=__version__,
            planned_gpu_bytes=choice.gpu_peak_bytes if placement.device.type == "cuda" else None,
            planned_host_bytes=choice.host_peak_bytes,
            layout=choice.plan.layout.as_json(),
            learning_rate=choice.learning_rate,
        )
    )
    _report_damage(session, resumed, damaged)
    _warn_of_long_context(session, spec, choice.context)
    keep_heap_whole()
    if config.training.memory_tuning:
        tune_memory(placement.device)
    return Setup(
        spec=spec,
        placement=placement,
        choice=choice,
        checkpoints=checkpoints,
        resumed=resumed,
        started=started,
        training=choice.training(config.training),
    )


def _same_in_all(group: ProcessGroup, placement: Placement) -> Placement:
    """Returns the placement in a precision that every rank's GPU supports; one of them may be too old for bf16."""
    formats = group.gather(placement.compute)
    if placement.compute == "bf16" and "fp16" in formats:
        precision: Precision = "nf4" if placement.precision == "nf4" else "fp16"
        return dataclasses.replace(placement, precision=precision, compute="fp16")
    return placement


def _newest_valid(checkpoints: CheckpointFolder) -> tuple[Resumption | None, list[str]]:
    """Finds the newest checkpoint that passes verification, and the damage of the newer ones."""
    damaged: list[str] = []
    for path in checkpoints.newest_first():
        try:
            checkpoint = verify(path)
            return Resumption(checkpoint=checkpoint, progress=read_snapshot(checkpoint).progress), damaged
        except DamagedError as error:
            damaged.append(f"{path.name}: {error}")
    return None, damaged


def _warn_of_long_context(session: TrainingSession, spec: ModelSpec, context: int) -> None:
    """Warns of a context beyond the base model's, because positions that it never saw are untrained."""
    if not within_trained(spec, context):
        session.emit(
            WarningRaised(
                code="context-past-trained-length",
                text=f"windows of {context:,} tokens are longer than the {spec.max_context:,} that {spec.name} was "
                f"trained with; {_positions(session, spec, context)}",
                hint="compare held-out perplexity before and after; set a lower training.tier if it does not fall",
            )
        )


def _positions(session: TrainingSession, spec: ModelSpec, context: int) -> str:
    """Says whether YaRN stretches the positions."""
    factor = BaseChanges.of(session.config.model, spec, context).yarn_factor
    return "its positions are not stretched" if factor is None else f"YaRN stretches its positions {factor:g} times"


def _report_damage(session: TrainingSession, resumed: Resumption | None, damaged: list[str]) -> None:
    for text in damaged:
        session.emit(
            WarningRaised(
                code="checkpoint-damaged",
                text=f"checkpoint {text}",
                hint="the disk may be failing: the run goes on from an older checkpoint",
            )
        )
    if damaged and resumed:
        what = f"went on from step-{resumed.progress.step:06d}"
        session.emit(RecoveryTaken(what=what, why="a newer checkpoint is damaged"))
    if session.resuming and resumed is None:
        session.emit(
            LogLine(level="info", text="the run ended before its first checkpoint: it starts from its beginning")
        )


def _plan(session: TrainingSession, machine: Machine, spec: ModelSpec, space: DiskSpace, *, grow: bool) -> Choice:
    """Plans the context and its step, and writes plan.json."""
    config = _as_planned_before(session) if session.resuming else session.config
    tokens = None
    training = config.training
    # What is left of a run has no promise of its own, and its windows may be set already.
    if not session.resuming or (
        training.context is None and not isinstance(training.tier, int) and not training.stages
    ):
        tokens = estimate_data_tokens(config.data)
    choice = choose_plan(config, machine, spec, tokens, session.group.ranks, grow=grow)
    if session.resuming:
        choice = _in_layouts_of(session, choice)
    schedule = None if choice.schedule is None else choice.schedule.as_json()
    plan = {"note": choice.note, **choice.plan.as_json(), "learning_rate": choice.learning_rate, "schedule": schedule}
    if session.resuming and (share := session.run.planned_fim()) is not None:
        plan["fim"] = share
    text = json.dumps(plan, indent=1)
    proof = read_proof(FAMILIES[spec.family].proof) if FAMILIES[spec.family].proof else None

    def write() -> None:
        replace_text(session.run.plan_path, text + "\n")
        if proof is not None:
            write_proof(proof, session.run.proof_path)
        session.run.write_deepspeed(choice.rated(config), choice.context, session.group.size)

    space.until_written(write)
    return choice


def _in_layouts_of(session: TrainingSession, choice: Choice) -> Choice:
    """Returns the choice with the step layouts of the first plan, which the stages to come shall round as."""
    if choice.schedule is None:
        return choice
    try:
        stored = json.loads(regular_file.read_text(session.run.plan_path))["schedule"]["stages"]
        layouts = [StepLayout.from_json(stage["layout"]) for stage in stored]
        pairs = list(zip(choice.schedule.stages, layouts, strict=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return choice
    stages = tuple(
        dataclasses.replace(stage, plan=dataclasses.replace(stage.plan, layout=layout)) for stage, layout in pairs
    )
    schedule = dataclasses.replace(choice.schedule, stages=stages)
    return dataclasses.replace(choice, plan=schedule.longest, schedule=schedule)


def _as_planned_before(session: TrainingSession) -> RunConfig:
    """Fixes the configuration to the first plan's choices, so that today's free memory does not change the run."""
    config = session.config
    fixed: dict[str, Any] = {"tier": None, "hours": None}
    try:
        plan = regular_file.read_object(session.run.plan_path)
        context, precision = int(plan["context"]), str(plan["precision"])
        if (schedule := plan.get("schedule")) is None:
            fixed |= {"context": context}
        else:
            tokens = schedule["tokens_per_update"]
            stages = [f"{int(stage['context'])}:{int(stage['updates'])}" for stage in schedule["stages"]]
            fixed |= {"stages": stages, "tokens_per_update": tokens if tokens is None else int(tokens)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return config  # no plan was made before the run ended
    if config.training.learning_rate is None:
        fixed |= {"learning_rate": session.run.planned_rate()}
    model = replace(config.model, precision=precision) if config.model.precision == "auto" else config.model
    return replace(config, model=model, training=replace(config.training, **fixed))


def _use_cores() -> None:
    """Limits torch's threads to the cores that this process may use; torch counts the host's, even in a container."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), count_cores()))


def identify_base(session: TrainingSession, spec: ModelSpec) -> Fingerprint:
    """Matches the base's files with its weights, and saves their fingerprint in the run's folder.

    A resumed run must find the weights that it started with, because its checkpoints hold only an adapter and its
    metrics are compared with the base's.

    Raises:
        EliteError: MODEL_*, BASE_CHANGED, or RUN_DAMAGED if the saved fingerprint cannot be read.
    """
    weights, _ = open_weights(spec)
    run = session.run
    try:
        compared = compare_with_base(run.path, weights, f"run {run.id}")
        found = fingerprint(weights)
        if not compared and session.group.leads:
            found.save(run.path)
    except ValueError as error:
        raise RUN_DAMAGED(path=run.path, problem=error) from error
    return found
