"""Declares errors of ranks, hostfiles and strategies."""

from __future__ import annotations

from engine.errors import DOES_NOT_FIT, TRAINING_FAILED, declare

RANK_DIED = declare(
    "rank-died",
    "rank {rank} of {ranks} {how}",
    "read its log {log}, then continue with `engine train --resume {run}`, on as many GPUs as are left if need be",
    exit_code=TRAINING_FAILED,
)
RANK_FAILED = declare(
    "rank-failed",
    "rank {rank} of {ranks}: {problem}",
    "{remedy}; its log is {log}",
    exit_code=TRAINING_FAILED,
)
RANK_LOST = declare(
    "rank-lost",
    "rank {rank} lost contact with another rank: {problem}",
    "look for the first rank that failed in the folder ranks of the run, then continue with `engine train --resume`",
    exit_code=TRAINING_FAILED,
)
RANKS_NOT_STARTED = declare(
    "ranks-not-started",
    "{ranks} processes could not be started together: {problem}",
    "check distributed.hostfile and distributed.port, and that every host runs the printed command",
    exit_code=DOES_NOT_FIT,
)
GPUS_MISSING = declare(
    "gpus-missing",
    "{wanted} GPUs were asked for, and this machine has {found}",
    "pass --gpus {found}, --gpus all, or name more hosts in distributed.hostfile",
    exit_code=DOES_NOT_FIT,
    about="distributed.gpus",
)
STRATEGY_UNAVAILABLE = declare(
    "strategy-unavailable",
    "strategy {strategy} cannot be used here: {problem}",
    "{remedy}",
    exit_code=DOES_NOT_FIT,
    about="distributed.strategy",
)
HOSTFILE_INVALID = declare(
    "hostfile-invalid",
    "hostfile {path}: {problem}",
    "write one host a line, as `name slots=8`",
    about="distributed.hostfile",
)
