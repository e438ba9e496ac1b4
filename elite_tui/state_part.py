"""Names the parts of the app's state, by which screens decide what to redraw."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from enum import Enum


class StatePart(Enum):
    """One part of AppState. A part that a worker fetches also names the worker's group."""

    DRAFT = "draft"
    REPOSITORY = "repository"
    MACHINE = "machine"
    TIERS = "tiers"
    WHAT_IF = "what_if"
    MODELS = "models"
    WAYS = "ways"
    PREFLIGHT = "preflight"
    PROFILE = "profile"
    PROBE = "probe"
    MEASURING = "measuring"
    DATA = "data"
    READING = "reading"
    CHECKS = "checks"
    RUNS = "runs"
    SNAPSHOTS = "snapshots"
    RUN = "run"
    "The open runs and the current one."
    COMPARISON = "comparison"
    GENERATION = "generation"
    REPORT = "report"


Parts = AbstractSet[StatePart]
"""Parts of the state that changed."""
