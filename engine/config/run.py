"""RunConfig: all sections together, and a description of every field."""

from __future__ import annotations

import functools

from msgspec import Struct, field

from engine.config.description import FieldSpec, describe_fields
from engine.config.learning import DataSection, LoraSection, ModelSection
from engine.config.running import (
    CheckpointSection,
    DistributedSection,
    EvaluationSection,
    NotifySection,
    OutputSection,
    RecoverySection,
)
from engine.config.training import StreamSection, TrainingSection


class RunConfig(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Everything that determines a run."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    lora: LoraSection = field(default_factory=LoraSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    stream: StreamSection = field(default_factory=StreamSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    output: OutputSection = field(default_factory=OutputSection)
    recovery: RecoverySection = field(default_factory=RecoverySection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    notify: NotifySection = field(default_factory=NotifySection)
    distributed: DistributedSection = field(default_factory=DistributedSection)


@functools.cache
def fields() -> tuple[FieldSpec, ...]:
    """Returns every field of RunConfig in order of declaration."""
    return describe_fields(RunConfig)


@functools.cache
def field_spec(path: str) -> FieldSpec:
    """Returns the field at a dotted path.

    Raises:
        KeyError: there is no such field.
    """
    return {spec.path: spec for spec in fields()}[path]
