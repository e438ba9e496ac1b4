"""The fine-tuning recipe. Runs setup, data, model, baseline, training, evaluation and saving in this order.

The child process calls `train`. Everything that a person sees of it goes through `session.emit`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import structs

from engine.data.chats import read_template
from engine.data.dataset import Dataset, build_dataset
from engine.data.fim import share_in_words
from engine.data.split import MORE_HELD_OUT, few_held_out
from engine.data.window_source import Update, WindowSource, tokens_per_update
from engine.errors.data import REPOSITORY_TOO_SMALL
from engine.evaluation.baselines import Baselines, digest_windows
from engine.evaluation.curve import past_ratios, read_curve
from engine.evaluation.promise import compare
from engine.evaluation.report import RunReport, write_report
from engine.evaluation.so_far import progress_of, seconds_of
from engine.hardware.process_memory import gpu_peak, host_peak
from engine.models.finite_weights import refuse_weights_not_finite
from engine.models.loading import load_tokenizer, open_weights
from engine.models.placement import device_name
from engine.protocol.commands import Stop
from engine.protocol.events import EvalCompleted, LogLine, PhaseChanged, RunFinished, StepProgress, WarningRaised
from engine.quantities import counted
from engine.recipes.building import Learning, base_changes, build_learning, build_model, choose_step
from engine.recipes.final_eval import final_eval
from engine.recipes.preference import Preferences, refuse_combinations, refuse_dropout
from engine.recipes.promises import keep_for_later_plans, keep_promise
from engine.recipes.setup import Setup, identify_base, set_up
from engine.recipes.sharing import Sharing, choose_sharing
from engine.recipes.stages import StageSwitch, updates_of
from engine.runs.journal import read_events
from engine.steps import partial_checkpoint
from engine.steps.data_parallel import DataParallelStep
from engine.steps.failures import memory_errors, memory_errors_by_phase
from engine.steps.held_out_loss import HeldOutLoss, choose_windows, perplexity
from engine.steps.rank_scoring import evaluate_together
from engine.steps.whole_step import TrainingStep
from engine.steps.zero_step import ZeroStep
from engine.tokenization.encoder import Encoder
from engine.training.components import TrainerComponents
from engine.training.disk_space import DiskSpace
from engine.training.eta import Eta
from engine.training.loop import PROGRESS_SECONDS, fit
from engine.training.state import Progress, read_snapshot, restore

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerFast

    from engine.models.fine_tuning import FineTuning
    from engine.runs.context import TrainingSession


class StopRequestedError(Exception):
    """A stop was requested before the first update or after the last, outside the loop that saves."""


def train(session: TrainingSession) -> None:
    """Trains by `session.config`, and writes the result and a report into the run's directory.

    Raises:
        EliteError: any expected failure, with its remedy. Other exceptions are bugs.
    """
    started = time.monotonic()
    try:
        with memory_errors_by_phase(session):
            _train(session)
    except StopRequestedError:
        _stop_outside_the_loop(session, started)


def _train(session: TrainingSession) -> None:
    refuse_combinations(session.config, session.group.size)
    setup = set_up(session)
    device = setup.placement.device

    session.emit(LogLine(level="info", text=setup.choice.note))
    space = DiskSpace(session, setup.checkpoints)
    session.emit(PhaseChanged(phase="starting", detail="checking the model's files"))
    base = space.until_written(lambda: identify_base(session, setup.spec))

    _enter(session, "data", "reading the repositories")
    tokenizer = load_tokenizer(setup.spec)
    if session.config.data.chat_template:
        # Saved with the result, which answers only to what it was trained with.
        tokenizer.chat_template = read_template(session.config.data.chat_template, Encoder(tokenizer))
    with session.group.leader_first():  # the other ranks reuse the leader's token store
        dataset = space.until_written(lambda: _read_data(session, setup, tokenizer))
    windows, updates = updates_of(setup, dataset.train)
    progress = _open_progress(session, setup, dataset, len(updates))
    promise = space.until_written(lambda: keep_promise(session, setup, updates, dataset.summary.fim))

    _enter(session, "model", f"{setup.spec.name} in {setup.placement.precision} on {device_name(device)}")

    def notify(text: str) -> None:
        session.emit(LogLine(level="info", text=text))

    sharing = choose_sharing(session, setup)
    preferences = Preferences(session) if session.config.training.objective == "dpo" else None
    sharing = sharing if preferences is None else preferences.sharing(sharing)
    tuning, accelerator = build_model(session.config, setup, notify, sharing)
    step = choose_step(session, setup, tuning, accelerator, dataset.train, progress, notify, sharing)

    stages = StageSwitch(session, setup, step, progress, updates)
    scoring = setup.choice.whole.score

    def score() -> HeldOutLoss:
        nonlocal scoring
        with stages.scoring():
            found = _score(session, step, dataset, progress.step, preferences)
        scoring = found.seconds
        return found

    if preferences is not None:
        refuse_dropout(tuning.model)
        _enter(session, "baseline", "the base model on both answers of every pair")
        # Written again after a full disk, it goes on behind the pairs that it knows.
        space.until_written(
            lambda: preferences.score_reference(tuning, step, dataset, updates, _phase_progress(session))
        )

    baselines = None
    if session.group.size == 1 and preferences is None:
        changed = base_changes(session.config, setup)
        layout, fused = setup.choice.plan.layout, session.config.model.fused_kernels
        baselines = Baselines.of(session.run, setup.spec, setup.placement, changed, layout, fused=fused)
    if progress.loss_before is None:
        _enter(session, "baseline", "the base model on the held-out files")
        before = _kept_baseline(session, dataset, baselines)
        if before is None:
            with tuning.untrained():
                before = score()
            _keep_baseline(session, dataset, baselines, before)
            if not math.isfinite(before.loss):
                refuse_weights_not_finite(open_weights(setup.spec)[0])
        scoring = before.seconds
        progress.loss_before, progress.held_out_scored = before.loss, before.tokens

    configured = structs.replace(session.config, training=setup.training)
    learning = build_learning(tuning, configured, context=setup.shortest, total_steps=progress.total_steps)
    seed = session.config.training.seed
    parts = _build_parts(setup, learning, tuning, step, accelerator, windows, score, sharing, seed)
    parts = dataclasses.replace(
        parts,
        updates=updates,
        enter=stages.enter,
        eta=lambda left: _eta(session, setup, left, scoring),
    )
    if setup.resumed:
        restore(read_snapshot(setup.resumed.checkpoint), parts)
    _enter(session, "training", _describe_training(session, setup, progress))
    with memory_errors("training", f"one window of {setup.context:,} tokens", "set a lower tier or training.context"):
        status = fit(session, parts, progress)
    if status == "completed":
        partial_checkpoint.clear(partial_checkpoint.folder_of(session.run.path, session.group.rank))

    learning.keep_result()
    after = None
    if status == "completed":
        try:
            _enter(session, "evaluation", "the fine-tuned model on the held-out files")
            after = score()
        except StopRequestedError:
            status = "stopped"

    evaluation = None
    if status == "completed" and session.config.evaluation.at_end:
        try:
            with stages.scoring():
                reported = _phase_progress(session)
                evaluation = final_eval(session, setup, tuning, step, tokenizer, dataset, reported, baselines)
        except StopRequestedError:
            status = "stopped"

    _enter(session, "saving")
    changes = base_changes(session.config, setup)
    result = session.run.result_path(session.config.training.method)
    with tuning.whole():
        if session.group.leads:
            space.until_written(lambda: tuning.save(result, tokenizer, changes, base))
    journal = session.run.journal_path
    finished = RunFinished(
        status=status,
        steps=progress.step,
        seconds=max(time.monotonic() - setup.started, seconds_of(read_events(journal), time.time())),
        adapter=result.relative_to(session.run.path).as_posix(),
        perplexity_before=perplexity(progress.loss_before),
        perplexity_after=after.perplexity if after else None,
        tokens=progress.tokens,
        gpu_peak=gpu_peak(device),
        host_peak=host_peak(),
    )
    curve, past = read_curve(journal), tuple(past_ratios(session.config.model.name, before=session.run.id))
    compared = compare(promise, read_events(journal), curve, past, until=time.time())
    if status == "completed" and compared.timeline is not None:
        keep_for_later_plans(session, setup, updates, compared.timeline, finished)
    report = RunReport(
        config=session.config,
        finished=finished,
        progress=progress,
        spec=setup.spec,
        context=setup.context,
        precision=setup.placement.precision,
        device=device_name(device),
        adapter_parameters=sum(parameter.numel() for parameter in tuning.weights.values()),
        dataset=dataset.summary,
        preferences=None if after is None else after.preferences,
        predicted_gpu_bytes=setup.choice.gpu_peak_bytes if device.type == "cuda" else None,
        predicted_host_bytes=setup.choice.host_peak_bytes,
        promise=compared,
        held_out_scored=progress.held_out_scored,
        learning_rate=setup.choice.learning_rate,
        curve=curve,
        past=past,
        evaluation=evaluation,
    )
    if session.group.leads:
        space.until_written(lambda: write_report(session.run.report_path, report))
    _enter(session, "finished")
    session.emit(finished)


# --- the stages --------------------------------------------------------------------------------------------


def _read_data(session: TrainingSession, setup: Setup, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Builds the training and held-out windows, from the cache if nothing has changed."""
    data = session.run.data_of(session.config)
    dataset = build_dataset(
        data,
        tokenizer=tokenizer,
        context=setup.context,
        cache=session.run.path.parent.parent / "cache",
        progress=_phase_progress(session),
        limit=setup.context,
        preferences=session.config.training.objective == "dpo",
    )
    summary = dataset.summary
    if not (len(dataset.train) and len(dataset.held_out)):
        raise REPOSITORY_TOO_SMALL(
            path=", ".join((*data.repositories, *data.datasets)),
            tokens=summary.tokens,
            files=counted(len(summary.files), "file"),
        )
    train_files = len(summary.files) - summary.held_out_files
    text = (
        f"{train_files:,} files with {summary.train_tokens:,} tokens to train on, "
        f"{summary.held_out_files:,} with {summary.held_out_tokens:,} held out"
        + (" (tokenised before, unchanged)" if summary.reused else "")
    )
    rearranged = share_in_words(summary.fim, summary.fim_files)
    for line in (*summary.notes, text, *([] if rearranged is None else [rearranged])):
        session.emit(LogLine(level="info", text=line))
    if few := few_held_out(summary.held_out_tokens):
        session.emit(WarningRaised(code="held-out-small", text=few, hint=MORE_HELD_OUT))
    return dataset


def _open_progress(session: TrainingSession, setup: Setup, dataset: Dataset, total_steps: int) -> Progress:
    """Creates a new progress record, or continues that of the checkpoint that the run resumes from."""
    data = f"{len(dataset.train)} windows, {dataset.train.token_count} tokens"
    if setup.resumed is None:
        return Progress(total_steps=total_steps, data=data)
    progress = setup.resumed.progress
    if progress.data != data:
        session.emit(
            WarningRaised(
                code="data-changed",
                text=f"the data changed since the run began: {progress.data} then, {data} now",
                hint="some windows may be trained on twice and others not at all; a new run takes each once",
            )
        )
    return dataclasses.replace(progress, total_steps=total_steps, data=data)


def _build_parts(
    setup: Setup,
    learning: Learning,
    tuning: FineTuning,
    step: TrainingStep,
    accelerator: Accelerator,
    windows: WindowSource,
    score: Callable[[], HeldOutLoss],
    sharing: Sharing,
    seed: int,
) -> TrainerComponents:
    """Builds the components of the loop."""

    def score_now() -> float | None:
        try:
            with learning.averaged():
                loss = score().objective
                learning.observe(loss)
        except StopRequestedError:
            return None
        return loss

    updating = learning.updating
    zero = step if isinstance(step, ZeroStep) else None
    return TrainerComponents(
        tuning=tuning,
        step=step,
        optimizer=zero or accelerator.prepare(updating.optimizer),
        guarded=zero is None and updating.guarded,
        schedule=updating.schedule,
        gradients=updating.gradients if zero is None else zero.pipeline,
        accelerator=accelerator,
        windows=windows,
        context=setup.context,
        checkpoints=setup.checkpoints,
        seed=seed,
        evaluate=score_now,
        stateful={**learning.stateful, **sharing.stateful},
        sequences=learning.sequences,
        early_end=learning.early_end,
    )


def _eta(session: TrainingSession, setup: Setup, updates: Sequence[Update], scoring: float) -> Eta:
    """Makes the ETA of the whole run, with the held-out files scored once more after the last update."""
    whole = setup.choice.whole
    seconds = {part.name: part.seconds for part in whole.phases}
    # The baseline has shown what a scoring takes; its prediction is part of that of the evaluation.
    after = seconds["evaluation"] - whole.score + scoring + seconds["saving"] + whole.checkpoint
    return Eta(
        updates=updates,
        planned=setup.choice.step_seconds,
        score=scoring,
        score_every=session.config.training.evaluate_every,
        after=max(0.0, after),
    )


def _score(
    session: TrainingSession, way: TrainingStep, dataset: Dataset, step: int, preferences: Preferences | None
) -> HeldOutLoss:
    """Scores the held-out files or pairs and emits EvalCompleted."""
    report = _phase_progress(session, step)
    if preferences is not None:
        found = preferences.score_held_out(way, dataset.held_out, report)
    else:
        found = evaluate_together(
            session.group,
            way.loss,
            dataset.held_out,
            shared=isinstance(way, DataParallelStep),
            max_tokens=session.config.training.evaluate_tokens,
            progress=lambda done, total: report(done, total, "windows"),
            stopping=StopRequestedError,
        )
    figures = found.preferences
    session.emit(
        EvalCompleted(
            step=step,
            loss=found.loss,
            perplexity=found.perplexity,
            tokens=found.tokens,
            seconds=found.seconds,
            preference_loss=None if figures is None else figures.loss,
            reward_margin=None if figures is None else figures.margin,
            reward_accuracy=None if figures is None else figures.accuracy,
        )
    )
    return found


def _asked(session: TrainingSession, dataset: Dataset) -> dict[str, Any]:
    """Returns all that the base model's held-out loss depends on besides the model."""
    most = session.config.training.evaluate_tokens
    return {"windows": digest_windows(choose_windows(dataset.held_out, most)), "most": most}


def _kept_baseline(session: TrainingSession, dataset: Dataset, baselines: Baselines | None) -> HeldOutLoss | None:
    """Returns the base model's held-out loss of an earlier run, and emits it; None if there is none."""
    found = None if baselines is None else baselines.read("held-out", _asked(session, dataset))
    if not isinstance(found, dict):
        return None
    try:
        kept = HeldOutLoss(loss=float(found["loss"]), tokens=int(found["tokens"]), seconds=float(found["seconds"]))
    except (TypeError, KeyError, ValueError):
        return None
    session.emit(LogLine(level="info", text="the base model's loss is that of an earlier run with the same files"))
    session.emit(
        EvalCompleted(step=0, loss=kept.loss, perplexity=kept.perplexity, tokens=kept.tokens, seconds=kept.seconds)
    )
    return kept


def _keep_baseline(session: TrainingSession, dataset: Dataset, baselines: Baselines | None, found: HeldOutLoss) -> None:
    if baselines is not None and math.isfinite(found.loss):
        value = {"loss": found.loss, "tokens": found.tokens, "seconds": found.seconds}
        baselines.keep("held-out", _asked(session, dataset), value)


# --- words, progress and stopping --------------------------------------------------------------------------


def _enter(session: TrainingSession, phase: str, detail: str = "") -> None:
    if session.group.agree(lambda: session.commands.stop_requested) and phase not in ("saving", "finished"):
        raise StopRequestedError
    session.check_run()
    session.emit(PhaseChanged(phase=phase, detail=detail))


def _phase_progress(session: TrainingSession, step: int = 0) -> Callable[[int, int, str], None]:
    """Returns a callback that emits done, total and unit at a limited rate; it raises StopRequestedError on a stop."""
    told_at = 0.0

    def report(done: int, total: int, stage: str) -> None:
        nonlocal told_at
        if session.commands.stop_requested:
            raise StopRequestedError
        now = time.monotonic()
        if done == total or now - told_at >= PROGRESS_SECONDS:
            told_at = now
            session.emit(StepProgress(step=step, stage=stage, done=done, total=total))

    return report


def _describe_training(session: TrainingSession, setup: Setup, progress: Progress) -> str:
    if setup.choice.schedule is not None:
        return setup.choice.schedule.describe()
    tokens = tokens_per_update(session.config.training, setup.context)
    left = progress.total_steps - progress.step
    after = f" after step {progress.step:,}" if progress.step else ""
    return f"{counted(left, 'step')}{after} of {tokens:,} tokens, windows of {setup.context:,}"


def _stop_outside_the_loop(session: TrainingSession, started: float) -> None:
    """Ends a run that was stopped outside the loop. Earlier checkpoints are unchanged."""
    while (command := session.commands.poll()) is not None:
        stop = isinstance(command, Stop)
        session.acknowledge(command, accepted=stop, text="stopping" if stop else "the run is stopping")
    session.emit(LogLine(level="info", text="stopped before the next update: there is nothing new to save"))
    journal = session.run.journal_path
    done = progress_of(read_events(journal))
    seconds = max(time.monotonic() - started, seconds_of(read_events(journal), time.time()))
    session.emit(RunFinished(status="stopped", steps=done.step, tokens=done.tokens, seconds=seconds))
