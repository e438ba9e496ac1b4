"""Evaluates a finished run on its held-out files, or on other repositories."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from engine.data.dataset import Dataset, build_dataset
from engine.evaluation.asking import Asking
from engine.evaluation.baselines import Baselines
from engine.evaluation.held_out import HeldOut, training_texts
from engine.evaluation.measure import Progress, Subject, evaluate_pair
from engine.generation.run_models import changes_of, load_pair, models_of
from engine.models.loading import load_tokenizer
from engine.models.placement import device_name
from engine.tokenization.encoder import Encoder

if TYPE_CHECKING:
    from engine.config import DataSection, EvaluationSection, RunConfig
    from engine.evaluation.result import Evaluation
    from engine.runs.run_directory import RunDirectory


def evaluate_run(
    run: RunDirectory,
    config: RunConfig,
    settings: EvaluationSection,
    *,
    repositories: Sequence[Path] = (),
    progress: Progress,
    notify: Callable[[str], None],
) -> Iterator[tuple[Evaluation, Dataset]]:
    """Loads the models of a run once, and scores them on each set of files.

    Args:
        run: A run with a result.
        config: Its configuration.
        settings: Extent of the evaluation.
        repositories: Scored separately, with all of their files; empty is the run's own held-out files.
        progress: Called with the progress; may raise to abort.
        notify: Called with messages for the user.

    Raises:
        EliteError: RUN_WITHOUT_RESULT, REPOSITORY_*, MODEL_*, OUT_OF_MEMORY.
    """
    found = models_of(run, config)
    tokenizer = load_tokenizer(found.spec)
    encoder, context = Encoder(tokenizer), found.context
    own = run.data_of(config)
    wanted: list[tuple[Path | None, DataSection]] = [(path, _data_of(own, path)) for path in repositories]
    wanted = wanted or [(None, own)]
    cache = run.path.parent.parent / "cache"
    pairs = config.training.objective == "dpo"
    datasets = [
        (
            path,
            build_dataset(
                data,
                tokenizer=tokenizer,
                context=context,
                cache=cache,
                progress=progress,
                limit=context,
                preferences=pairs and path is None,
            ),
        )
        for path, data in wanted
    ]
    asking = Asking.of(tokenizer, encoder, found.chat_template(config.data.chat_template), notify)
    pair = load_pair(found, config, notify=notify, spill=run.path)
    baselines = Baselines.of(
        run,
        found.spec,
        found.placement,
        changes_of(found, config),
        found.layout,
        fused=config.model.fused_kernels,
    )
    for path, dataset in datasets:
        if path is None:
            held_out = HeldOut.of(dataset)
            data = "files that training held out"
        else:
            held_out = HeldOut.whole(dataset, found.context, together=config.data.packing)
            data = f"all files of {path}"
        subject = Subject(
            run=run.id,
            model=config.model.name,
            device=device_name(found.placement.device),
            context=found.context,
            data=data,
        )
        trained = list(training_texts(dataset, encoder)) if path is None else []
        evaluation = evaluate_pair(
            pair, held_out, encoder, settings, subject, progress, baselines=baselines, trained=trained, asking=asking
        )
        yield evaluation, dataset


def _data_of(data: DataSection, path: Path) -> DataSection:
    """Returns the data settings for another repository, without added datasets, history or rearrangement."""
    return replace(data, repositories=[str(path)], datasets=[], history=0, fim=0.0)
