"""Declares every user-facing error with its code, sentence, remedy and exit code.

An error is declared once, as an `ErrorKind`, and raised by calling it::

    raise REPOSITORY_MISSING(path=path)

The same declaration feeds the command line, the field beside which the wizard shows it, and the
troubleshooting page. Exit codes follow docs/configuration.md: 2 wrong usage or configuration, 3 does not fit
or pre-flight failed, 4 training failed, 130 interrupted.
"""

from __future__ import annotations

from engine.error_kind import (
    DOES_NOT_FIT,
    INTERRUPTED,
    TRAINING_FAILED,
    USAGE,
    EliteError,
    ErrorKind,
    all_kinds,
    one_line,
)
from engine.error_kind import declare as _declare

__all__ = [
    "DOES_NOT_FIT",
    "INTERRUPTED",
    "TRAINING_FAILED",
    "USAGE",
    "EliteError",
    "ErrorKind",
    "StreamPlanError",
    "all_kinds",
    "one_line",
]


class StreamPlanError(ValueError):
    """Options that contradict each other, the model or the machine; the message says how."""


# --- the command line --------------------------------------------------------------------------------------
USAGE_INVALID = _declare("usage-invalid", "{problem}", "`{command} --help` lists what it takes")
STDOUT_UNWRITABLE = _declare(
    "stdout-unwritable", "standard output cannot be written: {problem}", "send it to another disk or program"
)

# --- configuration -----------------------------------------------------------------------------------------
MIXTURE_INVALID = _declare("mixture-invalid", "data.mixture cannot be used: {problem}", "{remedy}")
CONFIG_INVALID = _declare("config-invalid", "{source}: {field}: {problem}", "{remedy}")
CONFIG_UNREADABLE = _declare(
    "config-unreadable",
    "{path}: cannot read this configuration: {problem}",
    "pass a YAML file written by engine or the wizard",
)
OVERRIDE_MALFORMED = _declare(
    "override-malformed",
    "{option} {text}: not of the form {form}",
    "write for example {option} {example}",
)

WORKING_DIRECTORY_GONE = _declare(
    "working-directory-gone",
    "the working directory has been deleted, or may not be read",
    "change to one that exists, for example: cd ~",
)

# --- the repository and its text ---------------------------------------------------------------------------
REPOSITORY_UNSET = _declare(
    "repository-unset",
    "no repository was named",
    "pass --repo DIR (the folder whose code the model should learn)",
    about="data.repositories",
)
REPOSITORY_MISSING = _declare(
    "repository-missing",
    "repository {path} does not exist",
    "check the path",
    about="data.repositories",
)
REPOSITORY_NOT_A_FOLDER = _declare(
    "repository-not-a-folder",
    "repository {path} is not a folder",
    "pass the folder that holds the code",
    about="data.repositories",
)
REPOSITORY_BARE = _declare(
    "repository-bare",
    "repository {path} holds git's own files and no checked-out ones",
    "check it out (git clone {path} FOLDER) and pass that folder",
    about="data.repositories",
)
REPOSITORY_UNREADABLE = _declare(
    "repository-unreadable",
    "repository {path} cannot be read: {problem}",
    "grant yourself read access, or pass another folder",
    about="data.repositories",
)
REPOSITORY_EMPTY = _declare(
    "repository-empty",
    "repository {path} holds no files",
    "pass a folder that holds source code",
    about="data.repositories",
)
REPOSITORY_NO_SOURCE = _declare(
    "repository-no-source",
    "repository {path} holds no source code to learn from ({skipped})",
    "pass a folder with text source files",
    about="data.repositories",
)
REPOSITORY_TOO_SMALL = _declare(
    "repository-too-small",
    "repository {path} fills only {tokens} tokens in {files} files, too few to train on and hold some back",
    "pass a larger repository, several --repo, or set data.held_out_fraction lower",
    about="data.repositories",
)
REPOSITORY_CHANGING = _declare(
    "repository-changing",
    "files of repository {path} changed while they were read, three times",
    "try again when nothing writes there, or pass a copy",
    about="data.repositories",
)
DATA_SET_UNUSABLE = _declare(
    "data-set-unusable",
    "data set {path} cannot be used: {problem}",
    "pass a .jsonl, .parquet or .arrow file, or a folder saved by datasets' save_to_disk",
    about="data.datasets",
)
DATA_SET_COLUMN = _declare(
    "data-set-column",
    "data set {path} has no column {column}",
    "name one with --set data.dataset_column=NAME; it has {columns}",
    about="data.dataset_column",
)
DATA_SET_LIBRARY = _declare(
    "data-set-library",
    "data set {path} needs pyarrow, which is not installed",
    "install elite-tui[datasets], or pass JSON Lines",
    about="data.datasets",
)
DATE_INVALID = _declare(
    "date-invalid",
    "--{option} is {value}, which is no date",
    "write it as 2026-11-30",
)
CONVERSATIONS_OVERLONG = _declare(
    "conversations-overlong",
    "{longer} of {count} conversations are longer than the context of {context} tokens, the longest has {longest}",
    "{tier}, or say what is done with the longer ones: data.overlong=drop, cut-oldest-tool-output or split",
    about="data.overlong",
)
CHAT_TEMPLATE_MISSING = _declare(
    "chat-template-missing",
    "the data hold conversations, but the model's tokenizer has no chat template",
    "name one with --set data.chat_template=plain (known: {known}), or a .jinja file",
    about="data.chat_template",
)
CHAT_TEMPLATE_UNUSABLE = _declare(
    "chat-template-unusable",
    "the chat template {name} cannot be used: {problem}",
    "name another one with --set data.chat_template=NAME (known: {known}), or a .jinja file",
    about="data.chat_template",
)
FIM_UNAVAILABLE = _declare(
    "fim-unavailable",
    "data.fim is {rate}, but the model's tokenizer has no tokens for fill-in-the-middle",
    "set data.fim=0, or choose a model that was trained with it (Qwen2.5-Coder, StarCoder2, CodeLlama, DeepSeek-Coder)",
    about="data.fim",
)

# --- the model ---------------------------------------------------------------------------------------------
MODEL_UNKNOWN = _declare("model-unknown", "unknown model {name}", "{suggestion}", about="model.name")
MODEL_DIRECTORY_INVALID = _declare(
    "model-directory-invalid",
    "model directory {path}: {problem}",
    "pass a directory saved with save_pretrained (config.json, safetensors, tokenizer)",
    about="model.name",
)
MODEL_NOT_AVAILABLE = _declare(
    "model-not-available",
    "model {name} is neither on disk nor reachable: {problem}",
    "download it once with network access, or pass a local directory",
    exit_code=DOES_NOT_FIT,
    about="model.name",
)
MODEL_QUANTISED = _declare(
    "model-quantised",
    "model {path} stores its weights as {format}, which cannot be trained and exported here",
    "pass the same model in {supported}",
    about="model.name",
)
BASE_CHANGED = _declare(
    "base-changed",
    "model {path} is not the one that {run} was trained on: {problem}",
    "restore the files of the base model, or train again",
    about="model.name",
)
MODEL_FAMILY_UNSUPPORTED = _declare(
    "model-family-unsupported",
    "model family {family} is not supported by {feature}: {problem}",
    "choose one of {supported}",
    about="model.name",
)
PRECISION_UNAVAILABLE = _declare(
    "precision-unavailable",
    "precision {precision} cannot be used here: {problem}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
    about="model.precision",
)
DEVICE_UNAVAILABLE = _declare(
    "device-unavailable",
    "device {device} cannot be used: {problem}",
    "use --set model.device=auto",
    exit_code=DOES_NOT_FIT,
    about="model.device",
)

# --- output and run directories ----------------------------------------------------------------------------
OUTPUT_UNWRITABLE = _declare(
    "output-unwritable",
    "output {path} cannot be written: {problem}",
    "pass another folder with --output",
    about="output.directory",
)
OUTPUT_FULL = _declare(
    "output-full",
    "output {path} has {free} free and this run needs {needed}",
    "free some space, or pass another folder with --output",
    exit_code=DOES_NOT_FIT,
    about="output.directory",
)
RUN_UNKNOWN = _declare(
    "run-unknown",
    "no run matches {reference}",
    "`engine runs` lists the runs; a path to a run directory works too",
)
RUN_AMBIGUOUS = _declare("run-ambiguous", "{reference} matches several runs: {matches}", "write more of the name")
FILE_UNWRITABLE = _declare("file-unwritable", "{path} cannot be written: {problem}", "name another with {option}")
RUN_NOT_ACTIVE = _declare("run-not-active", "run {run} is not active ({status})", "{remedy}")
RUN_CONTROL_UNREACHABLE = _declare(
    "run-control-unreachable",
    "run {run} cannot be controlled from here: {problem}",
    "run this command on the training machine, as the user who started the run",
)
RUN_DAMAGED = _declare(
    "run-damaged", "run directory {path} is damaged: {problem}", "restore it from a copy, or start a new run"
)
TOKENIZER_FAILED = _declare(
    "tokenizer-failed",
    "the model's tokenizer cannot be used: {problem}",
    "look at normalizer and pre_tokenizer of its tokenizer.json, or choose another model",
    about="model.name",
)
RUN_MOVED = _declare(
    "run-moved",
    "run directory {path} was renamed or deleted while its process was training",
    "leave it in place while it is active; `engine train --resume DIRECTORY` goes on in a renamed one",
    exit_code=TRAINING_FAILED,
)
RESULT_DAMAGED = _declare(
    "result-damaged",
    "the result of run {run} is damaged: {problem}",
    "`engine train --resume {run}` makes it again from the last checkpoint",
)
RUN_WITHOUT_RESULT = _declare(
    "run-without-result",
    "run {run} has left no model ({status})",
    "`engine train --resume {run}` goes on with it; only a run that saved its result can be used",
)
RUN_STILL_ACTIVE = _declare(
    "run-still-active", "run {run} is still active ({status})", "`engine attach {run}` follows it"
)
RUN_DELETION_UNCONFIRMED = _declare(
    "run-deletion-unconfirmed", "run {run} was not deleted: there is no terminal to ask in", "pass --yes to confirm it"
)
RUN_UNDELETABLE = _declare(
    "run-undeletable",
    "{path} cannot be deleted: {problem}",
    "only folders of runs are deleted; remove anything else yourself, with care",
)
COPY_UNKNOWN = _declare(
    "copy-unknown", "{problem} named {name}", "`engine cache` lists the 4-bit copies; use one name, or all"
)
COPY_IN_USE = _declare(
    "copy-in-use",
    "{path} cannot be removed: a run loads it, or the folder cannot be written",
    "try again when the run has loaded its model",
)
RUN_ALREADY_COMPLETE = _declare(
    "run-already-complete", "run {run} is complete: nothing is left to train", "start a new run without --resume"
)
RESUME_CHANGES_CONFIG = _declare(
    "resume-changes-config",
    "run {run} cannot go on with a changed configuration: {changes}",
    "leave these out, or start a new run without --resume",
)
NOTHING_TO_RESUME = _declare(
    "nothing-to-resume", "run {run} has no valid checkpoint to resume from", "start again without --resume"
)

REPORT_UNWRITABLE = _declare(
    "report-unwritable", "the report cannot be written to {path}: {problem}", "pass a new file's name with --output"
)

# --- export ------------------------------------------------------------------------------------------------
EXPORT_NOTHING = _declare("export-nothing", "run {run} has nothing to export as {target}: {problem}", "{remedy}")
EXPORT_EXISTS = _declare(
    "export-exists", "{path} exists already, and nothing is written over", "pass another folder with --output"
)
EXPORT_FULL = _declare(
    "export-full",
    "{path} has {free} free and the export needs {needed}",
    "free some space, or pass a folder on another disk with --output",
    exit_code=DOES_NOT_FIT,
)
EXPORT_NEEDS = _declare(
    "export-needs",
    "--dtype {dtype} needs llama.cpp's library: {problem}",
    "install it with `pip install 'elite-tui[llama]'`, or export with --dtype q8_0",
)
EXPORT_DTYPE = _declare(
    "export-dtype", "--dtype {dtype} cannot be used with --to {target}: {problem}", "choose one of {supported}"
)
EXPORT_DAMAGED = _declare("export-damaged", "{path} cannot be exported: {problem}", "restore the file, or train again")
EXPORT_DIFFERS = _declare(
    "export-differs",
    "{path} was written, but does not give the run's logits: {problem}",
    "please report this with the model's name",
    exit_code=TRAINING_FAILED,
)

# --- what fits ---------------------------------------------------------------------------------------------
HARDWARE_UNKNOWN = _declare("hardware-unknown", "unknown card {name}", "{suggestion}")
NO_GPU = _declare("no-gpu", "--vram was given, but this machine has no GPU", "name a card with --hardware")
WHAT_IF_WITHOUT_GPU = _declare(
    "what-if-without-gpu",
    "{vram} GiB of GPU memory were asked for, but there is no GPU to have them",
    "name a card as well, for example rtx-4090",
)
MEASURING_FAILED = _declare(
    "measuring-failed", "`engine {command}` measured nothing: {problem}", "{remedy}", exit_code=DOES_NOT_FIT
)
READING_STOPPED = _declare(
    "reading-stopped", "the reading of the repository was stopped", "f5 goes on where it was", exit_code=INTERRUPTED
)
PROFILE_FAILED = _declare(
    "profile-failed",
    "this machine could not be measured: {problem}",
    "run `engine profile` again, or `engine profile --quick` for what can be read without measuring",
    exit_code=DOES_NOT_FIT,
)
TIER_DOES_NOT_FIT = _declare(
    "tier-does-not-fit",
    "tier {tier} ({context} tokens) does not fit: {reason}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
    about="training.tier",
)
HOURS_TOO_FEW = _declare(
    "hours-too-few",
    "{hours} hours are too few for {what}: start, scoring and saving included, it takes about {needed}",
    "use --hours {needed}, a lower tier, or a smaller model",
    exit_code=DOES_NOT_FIT,
    about="training.hours",
)
CONTEXT_DOES_NOT_FIT = _declare(
    "context-does-not-fit",
    "a context of {context} tokens does not fit: {reason}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
    about="training.context",
)

PLAN_INVALID = _declare(
    "plan-invalid",
    "--plan {text}: {problem}",
    "write for example --plan tile=8192 --plan kv_home=host",
)

LAYOUT_UNAVAILABLE = _declare(
    "layout-unavailable",
    "the streamed step cannot be laid out so: {problem}",
    "leave the choice to the plan (--set stream.FIELD=null), or use --set training.step=whole",
    exit_code=TRAINING_FAILED,
)
OPTIMIZATION_UNKNOWN = _declare(
    "optimization-unknown", "unknown optimization {id}", "`engine optimizations` lists them; {suggestion}"
)
OPTIMIZATION_CONFLICT = _declare("optimization-conflict", "{id} cannot be switched {to}: {reason}", "{remedy}")
OPTIMIZATION_UNAVAILABLE = _declare(
    "optimization-unavailable",
    "{id} cannot be used here: {reason}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
)

# --- using the result ----------------------------------------------------------------------------------------
GENERATION_UNKNOWN = _declare(
    "generation-unknown",
    "no run and no model is called {reference}",
    "`engine runs` lists the runs, `engine plan` the models; paths to their folders work too",
)
PROMPT_MISSING = _declare(
    "prompt-missing", "there is nothing to go on with", "pass --prompt TEXT, or --file PATH[:LINE]"
)
PROMPT_UNREADABLE = _declare("prompt-unreadable", "--file {path}: {problem}", "name a text file, or file:line")
REPLAY_UNAVAILABLE = _declare(
    "replay-unavailable",
    "{model} ends every text before its first word, so there is nothing of its own to replay",
    "use another --seed or --template none, or train without replay",
)
SAMPLING_INVALID = _declare(
    "sampling-invalid",
    "{problem}",
    "tokens are at least 1, temperature 0 to 10, top-p above 0 and at most 1, seed at least 0",
)
FILL_UNAVAILABLE = _declare(
    "fill-unavailable",
    "the tokenizer of {name} has no tokens for fill-in-the-middle",
    "leave --fill out: the model then goes on with what stands before",
)
SERVE_LIBRARY = _declare(
    "serve-library",
    "engine serve needs starlette and uvicorn, which are not installed",
    "install elite-tui[serve]",
)
SERVE_PORT = _declare(
    "serve-port",
    "cannot listen on port {port} of {host}: {problem}",
    "pass another --port, or 0 for any free one",
)
SERVE_OPEN = _declare(
    "serve-open",
    "--host {host} can be reached by other machines, and --no-token lets all of them in",
    "leave out --no-token, or --host",
)
SERVE_INVALID = _declare("serve-invalid", "{problem}", "`engine serve --help` lists the options")
SIDE_MISSING = _declare(
    "side-missing", "{name} has no {side} model: it is a base model alone", "name a run to compare two models"
)

# --- while training ----------------------------------------------------------------------------------------
OUT_OF_MEMORY = _declare(
    "out-of-memory",
    "out of {place} memory in {phase}: {largest} was the largest part",
    "{remedy}",
    exit_code=TRAINING_FAILED,
)
MEMORY_FULL = _declare(
    "memory-full",
    "out of {place} memory in phase {phase}: {problem}",
    "close other programs or choose a lower tier; `engine train --resume {run}` goes on from what was saved",
    exit_code=TRAINING_FAILED,
)
LOSS_NOT_FINITE = _declare(
    "loss-not-finite",
    "the loss became {value} at step {step}",
    "lower training.learning_rate, or use precision bf16 instead of fp16",
    exit_code=TRAINING_FAILED,
)
GRADIENT_NOT_FINITE = _declare(
    "gradient-not-finite",
    "the gradient's norm became {value} at step {step}",
    "lower training.learning_rate, or use precision bf16 instead of fp16",
    exit_code=TRAINING_FAILED,
)
TRAINING_UNSTABLE = _declare(
    "training-unstable",
    "the loss broke out again after {rollbacks} times of going back (last: {last})",
    "lower training.learning_rate or look at the data of these steps; {report} lists what was tried",
    exit_code=TRAINING_FAILED,
)
GPU_LOST = _declare(
    "gpu-lost",
    "the GPU or its driver failed at step {step}: {problem}",
    "look at nvidia-smi and the system log, restart the machine if need be, and go on from {kept} with "
    "`engine train --resume {run}`",
    exit_code=TRAINING_FAILED,
)
CHILD_DIED = _declare(
    "child-died",
    "the training process ended without a last word ({problem})",
    "read {log}, then continue with `engine train --resume {run}`",
    exit_code=TRAINING_FAILED,
)
RANK_DIED = _declare(
    "rank-died",
    "rank {rank} of {ranks} {how}",
    "read its log {log}, then continue with `engine train --resume {run}`, on as many GPUs as are left if need be",
    exit_code=TRAINING_FAILED,
)
RANK_FAILED = _declare(
    "rank-failed",
    "rank {rank} of {ranks}: {problem}",
    "{remedy}; its log is {log}",
    exit_code=TRAINING_FAILED,
)
RANK_LOST = _declare(
    "rank-lost",
    "rank {rank} lost touch with another rank: {problem}",
    "look for the first rank that failed in the folder ranks of the run, then continue with `engine train --resume`",
    exit_code=TRAINING_FAILED,
)
RANKS_NOT_STARTED = _declare(
    "ranks-not-started",
    "{ranks} processes could not be started together: {problem}",
    "check distributed.hostfile and distributed.port, and that every host runs the printed command",
    exit_code=DOES_NOT_FIT,
)
GPUS_MISSING = _declare(
    "gpus-missing",
    "{wanted} GPUs were asked for, and this machine has {found}",
    "pass --gpus {found}, --gpus all, or name more hosts in distributed.hostfile",
    exit_code=DOES_NOT_FIT,
    about="distributed.gpus",
)
STRATEGY_UNAVAILABLE = _declare(
    "strategy-unavailable",
    "strategy {strategy} cannot be used here: {problem}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
    about="distributed.strategy",
)
HOSTFILE_INVALID = _declare(
    "hostfile-invalid",
    "hostfile {path}: {problem}",
    "write one host a line, as `name slots=8`",
    about="distributed.hostfile",
)
INTERRUPTED_TWICE = _declare(
    "interrupted",
    "the run was interrupted twice and ended without a new checkpoint",
    "`engine train --resume {run}` continues from its last checkpoint, if it has one",
    exit_code=INTERRUPTED,
)
INTERNAL = _declare(
    "internal", "unexpected {kind}: {problem}", "please report this with {log}", exit_code=TRAINING_FAILED
)
