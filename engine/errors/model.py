"""Declares errors of the base model, its tokenizer, precision and device, and of its 4-bit copies."""

from __future__ import annotations

from engine.errors import DOES_NOT_FIT, declare

MODEL_UNKNOWN = declare("model-unknown", "unknown model {name}", "{suggestion}", about="model.name")
MODEL_DIRECTORY_INVALID = declare(
    "model-directory-invalid",
    "model directory {path}: {problem}",
    "pass a directory saved with save_pretrained (config.json, safetensors, tokenizer)",
    about="model.name",
)
MODEL_NOT_AVAILABLE = declare(
    "model-not-available",
    "model {name} is neither on disk nor reachable: {problem}",
    "download it once with network access, or pass a local directory",
    exit_code=DOES_NOT_FIT,
    about="model.name",
)
MODEL_QUANTISED = declare(
    "model-quantised",
    "model {path} stores its weights as {format}, which cannot be trained and exported here",
    "pass the same model in {supported}",
    about="model.name",
)
MODEL_WEIGHTS_NOT_FINITE = declare(
    "model-weights-not-finite",
    "the model's own weights are damaged: {tensor} in {path} holds {value}",
    "download the model again, or pass another one",
    about="model.name",
)
BASE_CHANGED = declare(
    "base-changed",
    "model {path} is not the one that {run} was trained on: {problem}",
    "restore the files of the base model, or train again",
    about="model.name",
)
MODEL_FAMILY_UNSUPPORTED = declare(
    "model-family-unsupported",
    "model family {family} is not supported by {feature}: {problem}",
    "choose one of {supported}",
    about="model.name",
)
PRECISION_UNAVAILABLE = declare(
    "precision-unavailable",
    "precision {precision} cannot be used here: {problem}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
    about="model.precision",
)
DEVICE_UNAVAILABLE = declare(
    "device-unavailable",
    "device {device} cannot be used: {problem}",
    "use --set model.device=auto",
    exit_code=DOES_NOT_FIT,
    about="model.device",
)
TOKENIZER_FAILED = declare(
    "tokenizer-failed",
    "the model's tokenizer cannot be used: {problem}",
    "look at normalizer and pre_tokenizer of its tokenizer.json, or choose another model",
    about="model.name",
)
COPY_UNKNOWN = declare(
    "copy-unknown", "{problem} named {name}", "`engine cache` lists the 4-bit copies; use one name, or all"
)
COPY_IN_USE = declare(
    "copy-in-use",
    "{path} cannot be removed: a run loads it, or the folder cannot be written",
    "try again when the run has loaded its model",
)
