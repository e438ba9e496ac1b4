"""Declares errors of a run in training."""

from __future__ import annotations

from engine.errors import INTERRUPTED, TRAINING_FAILED, declare

OUT_OF_MEMORY = declare(
    "out-of-memory",
    "out of {place} memory in {phase}: {largest} was the largest part",
    "{remedy}",
    exit_code=TRAINING_FAILED,
)
MEMORY_FULL = declare(
    "memory-full",
    "out of {place} memory in phase {phase}: {problem}",
    "close other programs or choose a lower tier; `engine train --resume {run}` continues from what was saved",
    exit_code=TRAINING_FAILED,
)
LOSS_NOT_FINITE = declare(
    "loss-not-finite",
    "the loss became {value} at step {step}",
    "lower training.learning_rate, or use precision bf16 instead of fp16",
    exit_code=TRAINING_FAILED,
)
GRADIENT_NOT_FINITE = declare(
    "gradient-not-finite",
    "the gradient's norm became {value} at step {step}",
    "lower training.learning_rate, or use precision bf16 instead of fp16",
    exit_code=TRAINING_FAILED,
)
TRAINING_UNSTABLE = declare(
    "training-unstable",
    "the loss diverged again after {rollbacks} rollbacks (last: {last})",
    "lower training.learning_rate or look at the data of these steps; {report} lists what was tried",
    exit_code=TRAINING_FAILED,
)
GPU_LOST = declare(
    "gpu-lost",
    "the GPU or its driver failed at step {step}: {problem}",
    "look at nvidia-smi and the system log, restart the machine if need be, and go on from {kept} with "
    "`engine train --resume {run}`",
    exit_code=TRAINING_FAILED,
)
CHILD_DIED = declare(
    "child-died",
    "the training process exited without reporting an error ({problem})",
    "read {log}, then continue with `engine train --resume {run}`",
    exit_code=TRAINING_FAILED,
)
INTERRUPTED_TWICE = declare(
    "interrupted",
    "the run was interrupted twice and ended without a new checkpoint",
    "`engine train --resume {run}` continues from its last checkpoint, if it has one",
    exit_code=INTERRUPTED,
)
