"""Fingerprints the base weights of a run before anything else of it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import errors
from engine.models.base_fingerprint import Fingerprint, compare_with_base, fingerprint
from engine.models.loading import open_weights

if TYPE_CHECKING:
    from engine.models.spec import ModelSpec
    from engine.runs.context import TrainingSession


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
        if not compare_with_base(run.path, weights, f"run {run.id}") and session.group.leads:
            fingerprint(weights).save(run.path)
    except ValueError as error:
        raise errors.RUN_DAMAGED(path=run.path, problem=error) from error
    return fingerprint(weights)
