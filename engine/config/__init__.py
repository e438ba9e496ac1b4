"""RunConfig: the one documented, validated definition of a run.

Each field's annotation carries its range and its documentation. YAML files, command-line options, wizard fields and the
configuration page are all generated from it, so a new field appears in all of them::

    fields()              every field, flat, with its path ("training.epochs"), type, default, range, text
    load(path)            a RunConfig from a YAML file
    from_mapping(data)    a RunConfig from nested mappings; reports all problems at once, each with its field
    find_problems(data)   the same problems as values, for a form
    to_yaml(config)       the YAML, each field under its documentation

"""

from engine.config.description import FieldSpec
from engine.config.learning import DataSection, LoraSection, ModelSection
from engine.config.mappings import apply_override, from_mapping, load, load_mapping, parse_value, to_mapping, to_yaml
from engine.config.names import model_name
from engine.config.problems import Problem, find_problems
from engine.config.run import RunConfig, field_spec, fields
from engine.config.running import (
    WEBHOOK_PATTERN,
    CheckpointSection,
    DistributedSection,
    EvaluationSection,
    NotifySection,
    OutputSection,
    RecoverySection,
)
from engine.config.training import StreamSection, TrainingSection

__all__ = [
    "WEBHOOK_PATTERN",
    "CheckpointSection",
    "DataSection",
    "DistributedSection",
    "EvaluationSection",
    "FieldSpec",
    "LoraSection",
    "ModelSection",
    "NotifySection",
    "OutputSection",
    "Problem",
    "RecoverySection",
    "RunConfig",
    "StreamSection",
    "TrainingSection",
    "apply_override",
    "field_spec",
    "fields",
    "find_problems",
    "from_mapping",
    "load",
    "load_mapping",
    "model_name",
    "parse_value",
    "to_mapping",
    "to_yaml",
]
