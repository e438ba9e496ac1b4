"""Declares errors of what fits: cards, tiers, step layouts, optimizations, and what measures a machine."""

from __future__ import annotations

from engine.errors import DOES_NOT_FIT, TRAINING_FAILED, declare


class StreamPlanError(ValueError):
    """Options that contradict each other, the model or the machine; the message says how."""


HARDWARE_UNKNOWN = declare("hardware-unknown", "unknown card {name}", "{suggestion}")
NO_GPU = declare(
    "no-gpu", "--vram needs a GPU, and this machine has none", "name one with --hardware, for example rtx-4090"
)
WHAT_IF_WITHOUT_GPU = declare(
    "what-if-without-gpu",
    "{vram} GiB of GPU memory were asked for, but there is no GPU to have them",
    "name a card as well, for example rtx-4090",
)
MEASURING_FAILED = declare(
    "measuring-failed", "`engine {command}` measured nothing: {problem}", "{remedy}", exit_code=DOES_NOT_FIT
)
PROFILE_FAILED = declare(
    "profile-failed",
    "this machine could not be measured: {problem}",
    "run `engine profile` again, or `engine profile --quick` for what can be read without measuring",
    exit_code=DOES_NOT_FIT,
)
TIER_DOES_NOT_FIT = declare(
    "tier-does-not-fit",
    "tier {tier} ({context} tokens) does not fit: {reason}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
    about="training.tier",
)
HOURS_TOO_FEW = declare(
    "hours-too-few",
    "{hours} hours are too few for {what}: start, scoring and saving included, it takes about {needed}",
    "use --hours {needed}, a lower tier, or a smaller model",
    exit_code=DOES_NOT_FIT,
    about="training.hours",
)
CONTEXT_DOES_NOT_FIT = declare(
    "context-does-not-fit",
    "a context of {context} tokens does not fit: {reason}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
    about="training.context",
)
PLAN_INVALID = declare(
    "plan-invalid",
    "--plan {text}: {problem}",
    "write for example --plan tile=8192 --plan kv_home=host",
)
LAYOUT_UNAVAILABLE = declare(
    "layout-unavailable",
    "the streamed step cannot be laid out so: {problem}",
    "leave the choice to the plan (--set stream.FIELD=null), or use --set training.step=whole",
    exit_code=TRAINING_FAILED,
)
OPTIMIZATION_UNKNOWN = declare(
    "optimization-unknown", "unknown optimization {id}", "`engine optimizations` lists them; {suggestion}"
)
OPTIMIZATION_CONFLICT = declare("optimization-conflict", "{id} cannot be switched {to}: {reason}", "{remedy}")
OPTIMIZATION_UNAVAILABLE = declare(
    "optimization-unavailable",
    "{id} cannot be used here: {reason}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
)
