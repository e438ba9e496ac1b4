"""Declares errors of run directories, their results, and of resuming, controlling and deleting a run."""

from __future__ import annotations

from engine.errors import DOES_NOT_FIT, TRAINING_FAILED, declare

OUTPUT_UNWRITABLE = declare(
    "output-unwritable",
    "output {path} cannot be written: {problem}",
    "pass another folder with --output",
    about="output.directory",
)
OUTPUT_FULL = declare(
    "output-full",
    "output {path} has {free} free and this run needs {needed}",
    "free some space, or pass another folder with --output",
    exit_code=DOES_NOT_FIT,
    about="output.directory",
)
RUN_UNKNOWN = declare(
    "run-unknown",
    "no run matches {reference}",
    "`engine runs` lists the runs; a path to a run directory works too",
)
RUN_AMBIGUOUS = declare("run-ambiguous", "{reference} matches several runs: {matches}", "write more of the name")
RUN_NOT_ACTIVE = declare("run-not-active", "run {run} is not active ({status})", "{remedy}")
RUN_CONTROL_UNREACHABLE = declare(
    "run-control-unreachable",
    "run {run} cannot be controlled from here: {problem}",
    "run this command on the training machine, as the user who started the run",
)
RUN_DAMAGED = declare(
    "run-damaged", "run directory {path} is damaged: {problem}", "restore it from a copy, or start a new run"
)
RUN_MOVED = declare(
    "run-moved",
    "run directory {path} was renamed or deleted while its process was training",
    "leave it in place while it is active; `engine train --resume DIRECTORY` continues in a renamed one",
    exit_code=TRAINING_FAILED,
)
RESULT_DAMAGED = declare(
    "result-damaged",
    "the result of run {run} is damaged: {problem}",
    "`engine train --resume {run}` makes it again from the last checkpoint",
)
RUN_WITHOUT_RESULT = declare(
    "run-without-result",
    "run {run} has left no model ({status})",
    "`engine train --resume {run}` continues it; only a run that saved its result can be used",
)
RUN_STILL_ACTIVE = declare(
    "run-still-active", "run {run} is still active ({status})", "`engine attach {run}` follows it"
)
RUN_DELETION_UNCONFIRMED = declare(
    "run-deletion-unconfirmed", "run {run} was not deleted: there is no terminal to ask in", "pass --yes to confirm it"
)
RUN_UNDELETABLE = declare(
    "run-undeletable",
    "{path} cannot be deleted: {problem}",
    "only folders of runs are deleted; remove anything else yourself, with care",
)
RUN_ALREADY_COMPLETE = declare(
    "run-already-complete", "run {run} is complete: nothing is left to train", "start a new run without --resume"
)
RESUME_CHANGES_CONFIG = declare(
    "resume-changes-config",
    "run {run} cannot continue with a changed configuration: {changes}",
    "leave these out, or start a new run without --resume",
)
NOTHING_TO_RESUME = declare(
    "nothing-to-resume", "run {run} has no valid checkpoint to resume from", "start again without --resume"
)
REPORT_UNWRITABLE = declare(
    "report-unwritable", "the report cannot be written to {path}: {problem}", "pass a new file's name with --output"
)
