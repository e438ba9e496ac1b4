"""Sections on checkpoints, recovery, output, evaluation and distribution."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from engine.config.description import MOST_COUNTED, MOST_HELD_OUT, PathText, option, words


class CheckpointSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """When checkpoints are saved."""

    every_minutes: Annotated[
        float, Meta(gt=0, le=MOST_COUNTED, description="A checkpoint at the first step's end after this many minutes.")
    ] = 10.0
    keep: Annotated[
        int, Meta(ge=1, le=MOST_COUNTED, description="Newest checkpoints kept; older ones are deleted.")
    ] = 2
    keep_best: Annotated[
        bool,
        Meta(description="Also keep the checkpoint with the lowest held-out loss (see training.evaluate_every)."),
    ] = True
    keep_every_hours: Annotated[
        float,
        Meta(
            ge=0,
            le=MOST_COUNTED,
            description="Also keep one checkpoint for every so many hours; 0 keeps none for its age.",
        ),
    ] = 24.0


class RecoverySection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Automatic recovery from failures."""

    enabled: Annotated[
        bool,
        Meta(
            description="Deal with full memory, full disks and a loss that breaks out, and go on; "
            "otherwise end with a checkpoint at the first of them."
        ),
    ] = True
    rollbacks: Annotated[
        int,
        Meta(
            ge=0, le=MOST_COUNTED, description="Times that a run may go back and skip data after a loss that broke out."
        ),
    ] = 3
    rate_factor: Annotated[
        float, Meta(gt=0, le=1, description="The learning rate is multiplied by this each time a run goes back.")
    ] = 0.5
    spike_threshold: Annotated[
        float,
        Meta(
            ge=0,
            le=MOST_COUNTED,
            description="A loss this many robust deviations above the median of the latest ones is a spike; "
            "0 looks for none.",
        ),
    ] = 10.0
    host_reserve: Annotated[
        float,
        Meta(ge=0, lt=0.5, description="Share of RAM below which a run uses smaller buffers; 0 never does."),
    ] = 0.03


class OutputSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where results are written."""

    directory: Annotated[
        PathText,
        Meta(min_length=1, description="Folder that receives runs/<id>/.", extra=option("--output")),
    ] = "out"
    model_name: Annotated[
        str,
        Meta(
            pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$",
            description="Name of the fine-tuned model: letters, digits, '.', '_' and '-'; \"\" is the first "
            "repository's.",
            extra=option("--model-name") | words("a name of letters, digits, '.', '_' and '-', at most 64 long"),
        ),
    ] = ""


class EvaluationSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Extent of `engine evaluate`."""

    at_end: Annotated[
        bool,
        Meta(description="Also at the end of a training run that completes, for its report and the result screen."),
    ] = False
    tokens: Annotated[
        int,
        Meta(
            ge=64, le=MOST_HELD_OUT, description="Held-out tokens whose loss is compared at most, base and tuned each."
        ),
    ] = 262_144
    functions: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="Held-out functions that both models complete, at most; they are parsed, never run.",
        ),
    ] = 32
    function_tokens: Annotated[
        int, Meta(ge=8, le=4096, description="Tokens that a completed function may take at most.")
    ] = 160
    lines: Annotated[
        int,
        Meta(ge=0, le=10_000, description="Lines of held-out files that both models complete, at most."),
    ] = 64
    temperature: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            description="Completed functions and lines are the likeliest text at 0, else drawn at this temperature, "
            "both models by the same numbers.",
        ),
    ] = 0.0
    top_p: Annotated[
        float, Meta(gt=0, le=1, description="Drawn text: from the likeliest tokens that sum to this probability.")
    ] = 1.0
    retrieval: Annotated[
        bool,
        Meta(
            description="Complete also with text of the training files in the prompt: the snippets nearest to the "
            "request (BM25), and for the base model whole files. An adapter has to be better than those."
        ),
    ] = True
    general: Annotated[
        bool, Meta(description="Score general code and text too, to see what training made the model forget.")
    ] = True


_LOOPBACK = r"(localhost|127(\.\d{1,3}){3}|\[::1\])"
WEBHOOK_PATTERN = (
    r"^(|\$[A-Za-z_][A-Za-z0-9_]*|https://[^\s/@?#]+([/?]\S*)?|http://" + _LOOPBACK + r"(:\d{1,5})?([/?]\S*)?)$"
)
"""https to any host, http to this machine, the name of an environment variable, or nothing."""


class NotifySection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Who hears of a run's end and of trouble, also without a monitor."""

    webhook: Annotated[
        str,
        Meta(
            pattern=WEBHOOK_PATTERN,
            description="URL that receives a JSON POST when a run ends, recovers, pauses or stalls. $NAME reads it "
            'from that environment variable, "" from ELITE_TUI_WEBHOOK. Journal, plan and report never hold it.',
            extra=words("an https URL, an http URL of this machine, or $NAME of an environment variable"),
        ),
    ] = ""
    desktop: Annotated[
        bool,
        Meta(
            description="Notify on the desktop: by notify-send in a local session, else by the terminal that shows "
            "the run (OSC 9 or OSC 777, and the bell), which works over SSH."
        ),
    ] = True
    stalled_minutes: Annotated[
        float,
        Meta(
            ge=0,
            le=MOST_COUNTED,
            description="A run that shows no sign of work for so long counts as stalled; 0 never does.",
        ),
    ] = 15.0


class DistributedSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Several GPUs, here or on several hosts."""

    gpus: Annotated[
        int,
        Meta(
            ge=0,
            le=4096,
            description="Processes on this host, one a GPU; 0 (on the command line: all) takes every GPU.",
            extra=option("--gpus"),
        ),
    ] = 1
    strategy: Annotated[
        Literal["auto", "data", "zero2", "zero3", "ring", "ulysses"],
        Meta(
            description="How processes share the work. data: each its own windows; zero2, zero3: the same, with "
            "states or weights spread by DeepSpeed; ring, ulysses: each a part of every window. auto takes data where "
            "an update has a window for each process, else ring."
        ),
    ] = "auto"
    compression: Annotated[
        Literal["none", "powersgd"],
        Meta(
            description="powersgd sends gradients as low-rank factors, for links between hosts of at most a few "
            "Gbit/s. Approximate, and slower than whole gradients on a fast link."
        ),
    ] = "none"
    compression_rank: Annotated[int, Meta(ge=1, le=256, description="Rank of PowerSGD's factors.")] = 4
    offload: Annotated[
        Literal["none", "host", "nvme"],
        Meta(description="Where ZeRO keeps its share of states and weights: on the GPU, in host memory, on a disk."),
    ] = "none"
    hostfile: Annotated[
        PathText,
        Meta(description='Hosts that train together, one a line as "name slots=8", this one first; "" is this host.'),
    ] = ""
    port: Annotated[int, Meta(ge=1, le=65535, description="TCP port of the first host where all hosts meet.")] = 29500
    timeout_minutes: Annotated[
        float, Meta(gt=0, le=525_600, description="A rank that waits so long for the tensors of another ends the run.")
    ] = 10.0
    silent_seconds: Annotated[
        float, Meta(ge=5, le=MOST_COUNTED, description="A rank that shows no sign of life for so long ends the run.")
    ] = 60.0
    ring_order: Annotated[
        Literal["zigzag", "contiguous"],
        Meta(
            description="Parts of a window in the ring: zigzag gives each process an early and a late one, so that "
            "causal attention is the same work for all."
        ),
    ] = "zigzag"
