"""Declares errors of `engine export`."""

from __future__ import annotations

from engine.errors import DOES_NOT_FIT, TRAINING_FAILED, declare

EXPORT_NOTHING = declare("export-nothing", "run {run} has nothing to export as {target}: {problem}", "{remedy}")
EXPORT_EXISTS = declare(
    "export-exists", "{path} exists already, and nothing is written over", "pass another folder with --output"
)
EXPORT_FULL = declare(
    "export-full",
    "{path} has {free} free and the export needs {needed}",
    "free some space, or pass a folder on another disk with --output",
    exit_code=DOES_NOT_FIT,
)
EXPORT_NEEDS = declare(
    "export-needs",
    "--dtype {dtype} needs llama.cpp's library: {problem}",
    "install it with `pip install 'elite-tui[llama]'`, or export with --dtype q8_0",
)
EXPORT_DTYPE = declare(
    "export-dtype", "--dtype {dtype} cannot be used with --to {target}: {problem}", "choose one of {supported}"
)
EXPORT_DAMAGED = declare("export-damaged", "{path} cannot be exported: {problem}", "restore the file, or train again")
EXPORT_DIFFERS = declare(
    "export-differs",
    "{path} was written, but does not give the run's logits: {problem}",
    "please report this with the model's name",
    exit_code=TRAINING_FAILED,
)
