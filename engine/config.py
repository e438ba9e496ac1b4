"""RunConfig: the one documented, validated definition of a run.

Each field's annotation carries its range and its documentation. YAML files, command-line options, wizard
fields and the configuration page are all made from it, so a new field appears in all of them::

    fields()              every field, flat, with its path ("training.epochs"), type, default, range, text
    load(path)            a RunConfig from a YAML file
    from_mapping(data)    a RunConfig from nested mappings; all problems at once, each naming its field
    find_problems(data)   the same problems as values, for a form
    to_yaml(config)       the YAML, each field under its documentation

"""

from __future__ import annotations

import difflib
import functools
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import msgspec
import yaml
from msgspec import Meta, Struct, field

from engine import errors
from engine.config_fields import FieldSpec, describe_fields

if TYPE_CHECKING:
    from pathlib import Path

PathText = str
Positive = Annotated[int, Meta(ge=1)]


def _option(flag: str) -> dict[str, str]:
    """Marks a field that has a command-line option of its own besides `--set`."""
    return {"flag": flag}


class ModelSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The model that is fine-tuned."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            description="Catalogue name (`engine plan` lists them), hub id, or a local directory "
            "in Hugging Face format.",
            extra=_option("--model"),
        ),
    ] = "demo"
    precision: Annotated[
        Literal["auto", "bf16", "fp16", "fp32", "nf4"],
        Meta(
            description="How the base weights are stored. nf4 is 4-bit QLoRA; auto takes bf16 (fp16 on cards "
            "without it), nf4 where that leaves no room, and fp32 on a CPU."
        ),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cuda", "cpu"],
        Meta(description="Where to train. auto takes the first GPU, or the CPU where there is none."),
    ] = "auto"
    rope_scaling: Annotated[
        Literal["auto", "none"],
        Meta(
            description="Rotary positions where windows are longer than the model was trained with: auto stretches "
            "them by YaRN, none leaves them alone."
        ),
    ] = "auto"
    kv_heads: Annotated[
        Positive | None,
        Meta(
            description="Key and value heads after pooling groups of them into their mean, for a model that has one "
            "for each query head. Approximate: training has to win it back. Unset: the model's own."
        ),
    ] = None
    fused_kernels: Annotated[
        bool, Meta(description="Norms, rotary positions and MLP in fused GPU kernels, where they are installed.")
    ] = True


class DataSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What the model learns from."""

    repositories: Annotated[
        list[PathText],
        Meta(
            description="Folders whose code the model learns. git's ignore rules are respected.",
            extra=_option("--repo"),
        ),
    ] = field(default_factory=list)
    held_out_fraction: Annotated[
        float,
        Meta(gt=0.0, lt=0.5, description="Share of the files kept out of training, to measure what was learnt."),
    ] = 0.1
    max_file_bytes: Annotated[
        int, Meta(ge=1, description="Files larger than this, in bytes, are left out: they are mostly data.")
    ] = 1_000_000
    secrets: Annotated[
        Literal["mask", "skip", "keep"],
        Meta(
            description="Keys, tokens and passwords found in the files: mask replaces each by a placeholder, "
            "skip leaves out files that hold any, keep learns them."
        ),
    ] = "mask"
    near_duplicates: Annotated[
        Literal["skip", "keep"],
        Meta(description="Files that share 85% of their lines with another file: skip leaves them out, keep does not."),
    ] = "skip"
    packing: Annotated[
        bool,
        Meta(
            description="Whether several short documents share a window; attention and positions begin anew with each."
        ),
    ] = True
    order: Annotated[
        Literal["imports", "path"],
        Meta(
            description="How files follow each other: imports puts each after the files that it imports, path sorts "
            "by name."
        ),
    ] = "imports"
    documents: Annotated[
        Literal["repository", "package", "file"],
        Meta(description="What is read in one piece, so that its files see those before them in the same window."),
    ] = "repository"
    include: Annotated[
        list[Literal["vendored", "build output", "lock", "generated", "minified", "data", "duplicate"]],
        Meta(description="Kinds of files that are otherwise left out, to be learnt all the same."),
    ] = field(default_factory=list)
    notebooks: Annotated[
        Literal["cells", "skip"],
        Meta(description="Jupyter notebooks: cells learns the source of their cells without outputs, skip none."),
    ] = "cells"
    licence_headers: Annotated[
        Literal["once", "keep"],
        Meta(description="The same licence comment at the top of many files: once keeps the first, keep all of them."),
    ] = "once"
    fim: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="Share of the files that are learnt as fill-in-the-middle (arXiv 2207.14255), with the model's "
            "own tokens for it.",
        ),
    ] = 0.0
    history: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Latest commits of each repository that are learnt too, as messages with their diffs.",
            extra=_option("--history"),
        ),
    ] = 0
    datasets: Annotated[
        list[PathText],
        Meta(
            description="Data sets on disk that are learnt too: JSON Lines, Parquet, or a folder saved by Hugging "
            "Face datasets. Each row is a document.",
            extra=_option("--dataset"),
        ),
    ] = field(default_factory=list)
    dataset_column: Annotated[
        str, Meta(description='Column of the data sets that holds the text; "" takes text, content, code or the like.')
    ] = ""
    stores_kept: Annotated[
        int, Meta(ge=1, description="Token stores kept for the next time; those used longest ago are removed.")
    ] = 8


class LoraSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The low-rank adapter (LoRA, arXiv 2106.09685)."""

    rank: Annotated[int, Meta(ge=1, le=1024, description="Rank of the update matrices.")] = 16
    alpha: Annotated[float, Meta(gt=0, description="Scale: the update is multiplied by alpha / rank.")] = 32.0
    dropout: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Dropout on the adapter's input while training."),
    ] = 0.0
    targets: Annotated[
        list[str],
        Meta(
            min_length=1,
            description='Linear layers that get an adapter, by name; "all-linear" is every one but the head.',
        ),
    ] = field(default_factory=lambda: ["all-linear"])
    plus_ratio: Annotated[
        float, Meta(ge=1.0, le=1000.0, description="Learning rate of B over that of A (LoRA+); 1 is plain LoRA.")
    ] = 1.0
    rslora: Annotated[bool, Meta(description="Multiply the update by alpha / sqrt(rank) instead (rsLoRA).")] = False
    dora: Annotated[
        bool, Meta(description="Train the length of each weight column apart from its direction (DoRA); slower.")
    ] = False


class TrainingSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How it learns."""

    method: Annotated[
        Literal["lora", "full"],
        Meta(
            description="What is trained: lora trains a small adapter on the frozen model, full every weight of it "
            "(12 to 16 bytes a parameter; a learning rate ten times smaller suits it)."
        ),
    ] = "lora"
    epochs: Annotated[
        float, Meta(gt=0, le=1000, description="Passes over the training files.", extra=_option("--epochs"))
    ] = 1.0
    max_steps: Annotated[
        Positive | None,
        Meta(
            description="Stop after this many optimiser steps, even in mid-epoch.",
            extra=_option("--max-steps"),
        ),
    ] = None
    tier: Annotated[
        Annotated[int, Meta(ge=1, le=11)] | None,
        Meta(
            description="Context tier, 1 (4K tokens) to 11 (4M tokens). "
            "Unset: the highest that fits and the repository fills.",
            extra=_option("--tier"),
        ),
    ] = None
    context: Annotated[
        Annotated[int, Meta(ge=64)] | None,
        Meta(description="Tokens a window, if not the tier's."),
    ] = None
    step: Annotated[
        Literal["auto", "whole", "streamed"],
        Meta(
            description="How a step is computed. whole keeps a window's activations on the device, streamed runs "
            "it tile by tile in bounded memory with the same gradient; auto takes the faster of what fits."
        ),
    ] = "auto"
    learning_rate: Annotated[float, Meta(gt=0, le=1, description="Peak learning rate.")] = 2e-4
    warmup_fraction: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Share of the steps over which the rate rises linearly to its peak."),
    ] = 0.05
    weight_decay: Annotated[float, Meta(ge=0.0, le=1.0, description="AdamW's decoupled weight decay.")] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0, description="Gradients with a larger 2-norm are scaled down to it.")] = (
        1.0
    )
    tokens_per_update: Annotated[
        Positive | None,
        Meta(description="Tokens gathered before each optimiser step. Unset: 8,192, or one window if larger."),
    ] = None
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1, description="Seeds the adapter, the shuffling and the dropout.")] = 0
    evaluate_every: Annotated[
        int,
        Meta(ge=0, description="Score the held-out files every so many steps; 0 is only before and after."),
    ] = 0
    evaluate_tokens: Annotated[int, Meta(ge=64, description="Held-out tokens scored at most, each time.")] = 65_536
    optimizer: Annotated[
        Literal["adamw", "adamw_8bit", "paged_adamw_8bit"],
        Meta(description="adamw_8bit keeps its states in 8 bits, and paged lets them move to host memory."),
    ] = "adamw"
    schedule: Annotated[
        Literal["cosine", "polynomial", "one_cycle"],
        Meta(
            description="Learning rate over the run: a warm-up, then half a cosine or a polynomial down to zero; or "
            "one cycle up and far down, with the momentum running against it."
        ),
    ] = "cosine"
    polynomial_power: Annotated[
        float, Meta(gt=0, le=10, description="Power of the polynomial schedule; 1 is a straight line.")
    ] = 1.0
    lr_scaling: Annotated[
        Literal["none", "sqrt", "linear"],
        Meta(
            description="How the learning rate grows with tokens_per_update: learning_rate is then that of "
            "8,192 tokens an update."
        ),
    ] = "none"
    clipping: Annotated[
        Literal["norm", "adaptive"],
        Meta(
            description="norm scales the whole gradient down to max_grad_norm; adaptive limits each row to a share of "
            "its weights' own norm (AGC)."
        ),
    ] = "norm"
    adaptive_clip: Annotated[
        float, Meta(gt=0, le=10, description="Largest norm of a row's gradient over that of its weights, for adaptive.")
    ] = 0.01
    gradient_centralization: Annotated[
        bool, Meta(description="Subtract its mean from each row of every matrix's gradient.")
    ] = False
    gradient_noise: Annotated[
        float,
        Meta(ge=0.0, le=10.0, description="Deviation of noise added to the gradient at first, annealed; 0 is none."),
    ] = 0.0
    label_smoothing: Annotated[
        float, Meta(ge=0.0, lt=1.0, description="Probability shared among all tokens instead of the right one.")
    ] = 0.0
    neftune_alpha: Annotated[
        float, Meta(ge=0.0, le=100.0, description="Noise on the embeddings while training (NEFTune); 0 is none.")
    ] = 0.0
    lookahead_steps: Annotated[
        int, Meta(ge=0, le=1000, description="Steps between the updates of Lookahead's slow weights; 0 is none.")
    ] = 0
    lookahead_alpha: Annotated[
        float, Meta(gt=0.0, le=1.0, description="Share of the way that the slow weights go towards the fast ones.")
    ] = 0.5
    ema_decay: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Decay of a moving average of the adapter, which is what is kept; 0 is none."),
    ] = 0.0
    swa_fraction: Annotated[
        float,
        Meta(ge=0.0, lt=1.0, description="Share of the last steps whose adapters are averaged (SWA); 0 is none."),
    ] = 0.0
    early_stopping: Annotated[
        int,
        Meta(
            ge=0,
            description="End after this many evaluations without a lower held-out loss, and keep the best adapter; "
            "0 is never. Needs evaluate_every.",
        ),
    ] = 0
    curriculum: Annotated[
        bool, Meta(description="Cut windows shorter at first: an eighth of the context, a quarter, a half, all of it.")
    ] = False
    micro_batch: Annotated[
        int,
        Meta(
            ge=0,
            le=4096,
            description="Windows that go through the model together where whole windows do; 0 finds the most that fit.",
        ),
    ] = 1
    recompute: Annotated[
        Literal["auto", "always", "never"],
        Meta(
            description="Whether whole windows keep each layer's activations or compute them again; auto keeps them "
            "where they fit."
        ),
    ] = "auto"
    activation_bits: Annotated[
        Literal[16, 8, 4],
        Meta(description="Width of the hidden states that the streamed step stores; 8 and 4 are approximate."),
    ] = 16
    tiled_mlp: Annotated[
        bool, Meta(description="Run the MLP of whole windows over 2,048 tokens at a time: less memory, same result.")
    ] = False
    compile: Annotated[
        bool, Meta(description="Compile the decoder layers of whole windows with torch.compile; slow to start.")
    ] = False
    shifted_attention: Annotated[
        bool,
        Meta(
            description="Attend within quarters of a window while training, half of the heads shifted by half a "
            "quarter (LongLoRA's S2). Approximate; whole windows only."
        ),
    ] = False
    memory_tuning: Annotated[
        bool, Meta(description="Expandable memory segments, TF32 products and tuned kernels on a GPU.")
    ] = True


class CheckpointSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """When progress is saved."""

    every_minutes: Annotated[
        float, Meta(gt=0, description="A checkpoint at the first step's end after this many minutes.")
    ] = 10.0
    keep: Annotated[int, Meta(ge=1, description="Newest checkpoints kept; older ones are deleted.")] = 2
    keep_best: Annotated[
        bool,
        Meta(description="Also keep the checkpoint with the lowest held-out loss (see training.evaluate_every)."),
    ] = True
    keep_every_hours: Annotated[
        float, Meta(ge=0, description="Also keep one checkpoint for every so many hours; 0 keeps none for its age.")
    ] = 24.0


class RecoverySection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a run does about failures by itself."""

    enabled: Annotated[
        bool,
        Meta(
            description="Deal with full memory, full disks and a loss that breaks out, and go on; "
            "otherwise end with a checkpoint at the first of them."
        ),
    ] = True
    rollbacks: Annotated[
        int,
        Meta(ge=0, description="Times that a run may go back and skip data after a loss that broke out."),
    ] = 3
    rate_factor: Annotated[
        float, Meta(gt=0, le=1, description="The learning rate is multiplied by this each time a run goes back.")
    ] = 0.5
    spike_threshold: Annotated[
        float,
        Meta(
            ge=0,
            description="A loss this many robust deviations above the median of the latest ones is a spike; "
            "0 looks for none.",
        ),
    ] = 10.0
    host_reserve: Annotated[
        float,
        Meta(ge=0, lt=0.5, description="Share of RAM below which a run uses smaller buffers; 0 never does."),
    ] = 0.03


class OutputSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where results go."""

    directory: Annotated[
        PathText,
        Meta(min_length=1, description="Folder that receives runs/<id>/.", extra=_option("--output")),
    ] = "out"
    model_name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
            description="Name of the fine-tuned model: letters, digits, '.', '_' and '-'.",
            extra=_option("--model-name"),
        ),
    ] = "my-code-model"


class EvaluationSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What `engine evaluate` measures of a run's result."""

    at_end: Annotated[
        bool, Meta(description="Also at the end of a training run that completes, for its report and the result room.")
    ] = False
    tokens: Annotated[
        int, Meta(ge=64, description="Held-out tokens whose loss is compared at most, base and tuned each.")
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


class DistributedSection(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Several GPUs, here or on several hosts."""

    gpus: Annotated[
        int,
        Meta(
            ge=0,
            le=4096,
            description="Processes on this host, one a GPU; 0 (on the command line: all) takes every GPU.",
            extra=_option("--gpus"),
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
        Meta(description="powersgd sends gradients as low-rank factors, for slow links between hosts. Approximate."),
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
        float, Meta(gt=0, description="A rank that waits so long for the tensors of another ends the run.")
    ] = 10.0
    silent_seconds: Annotated[
        float, Meta(ge=5, description="A rank that shows no sign of life for so long ends the run.")
    ] = 60.0
    ring_order: Annotated[
        Literal["zigzag", "contiguous"],
        Meta(
            description="Parts of a window in the ring: zigzag gives each process an early and a late one, so that "
            "causal attention is the same work for all."
        ),
    ] = "zigzag"


class RunConfig(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Everything that determines a run."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    lora: LoraSection = field(default_factory=LoraSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    output: OutputSection = field(default_factory=OutputSection)
    recovery: RecoverySection = field(default_factory=RecoverySection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)
    distributed: DistributedSection = field(default_factory=DistributedSection)


@functools.cache
def fields() -> tuple[FieldSpec, ...]:
    """Every field of RunConfig in order of declaration."""
    return describe_fields(RunConfig)


@functools.cache
def field_spec(path: str) -> FieldSpec:
    """The field at a dotted path.

    Raises:
        KeyError: there is none.
    """
    return {spec.path: spec for spec in fields()}[path]


# --- reading and checking ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with one field, and what to do."""

    field: str
    problem: str
    remedy: str


def find_problems(data: Any) -> list[Problem]:
    """Everything wrong with nested mappings of values, by field; empty when `from_mapping` would succeed."""
    if not isinstance(data, dict):
        return [
            Problem(
                field="(top level)",
                problem="not a mapping of sections",
                remedy="write sections such as 'training:'",
            )
        ]
    found: list[Problem] = []
    sections = get_type_hints(RunConfig)
    for section, values in data.items():
        if section not in sections:
            found.append(_unknown(str(section), list(sections), "section"))
        elif not isinstance(values, dict):
            found.append(
                Problem(
                    field=section,
                    problem="not a mapping of fields",
                    remedy=f"write 'field: value' lines under '{section}:'",
                )
            )
        else:
            found += _find_section_problems(section, sections[section], values)
    return found or _find_conflicts(data)


def _find_section_problems(section: str, section_type: type, values: dict[Any, Any]) -> list[Problem]:
    found = []
    annotations = get_type_hints(section_type, include_extras=True)
    for name, value in values.items():
        path = f"{section}.{name}"
        if name not in annotations:
            found.append(_unknown(path, [f"{section}.{known}" for known in annotations], "field"))
            continue
        spec = field_spec(path)
        try:
            msgspec.convert(value, annotations[name])
        except msgspec.ValidationError:
            shown = str(value)
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            found.append(
                Problem(
                    field=path,
                    problem=f"{shown} is not {spec.allowed}",
                    remedy="leave it out" if spec.default is None else f"the default is {spec.default}",
                )
            )
    return found


def _find_conflicts(data: dict[str, Any]) -> list[Problem]:
    """Values that are each allowed, but not together."""
    training = data.get("training", {})
    if training.get("tier") is not None and training.get("context") is not None:
        return [
            Problem(
                field="training.context",
                problem="both training.tier and training.context are set",
                remedy="set one of them: a tier stands for a context",
            )
        ]
    return []


def _unknown(path: str, known: list[str], what: str) -> Problem:
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return Problem(field=path, problem=f"unknown {what}", remedy=remedy)


_CONVERTING = threading.Lock()
"""msgspec 0.22 reads a Struct's fields on its first conversion, and crashes the process where two threads do so."""


def from_mapping(data: Any, source: str = "configuration") -> RunConfig:
    """A RunConfig from nested mappings.

    Args:
        data: Section name → field name → value; missing ones take their defaults.
        source: Named in the error: a file's path, "--set", "form".

    Raises:
        EliteError: CONFIG_INVALID with the first problem (and how many more there are).
    """
    problems = find_problems(data)
    if problems:
        first, more = problems[0], len(problems) - 1
        remedy = first.remedy + (f" ({more} more problem{'s' if more > 1 else ''} after this one)" if more else "")
        raise errors.CONFIG_INVALID(source=source, field=first.field, problem=first.problem, remedy=remedy)
    with _CONVERTING:
        return msgspec.convert(data, RunConfig)


def to_mapping(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The nested mappings that `from_mapping` takes."""
    mapping: dict[str, dict[str, Any]] = msgspec.to_builtins(config)
    return mapping


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 2e-4 as a number (YAML 1.2), not as text (YAML 1.1)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """One YAML value, as typed after `--set KEY=` or in a form field.

    Raises:
        yaml.YAMLError: not YAML.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def load(path: Path) -> RunConfig:
    """The RunConfig in a YAML file.

    Raises:
        EliteError: CONFIG_UNREADABLE or CONFIG_INVALID.
    """
    return from_mapping(load_mapping(path), source=str(path))


def load_mapping(path: Path) -> dict[str, Any]:
    """The nested mappings in a YAML file, not yet checked against RunConfig.

    Raises:
        EliteError: CONFIG_UNREADABLE.
    """
    try:
        data = parse_value(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise errors.CONFIG_UNREADABLE(path=path, problem=error.strerror or error) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise errors.CONFIG_UNREADABLE(path=path, problem=_first_line(error)) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise errors.CONFIG_UNREADABLE(path=path, problem="its top level is not a mapping of sections")
    return data


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + str(getattr(error, "problem", None) or error).splitlines()[0]


def apply_override(data: dict[str, Any], text: str) -> None:
    """Sets one field of nested mappings from "section.field=value", in place.

    Raises:
        EliteError: OVERRIDE_MALFORMED.
    """
    path, equals, value = text.partition("=")
    section, dot, name = path.strip().partition(".")
    if not (equals and dot and section and name):
        raise errors.OVERRIDE_MALFORMED(text=text)
    try:
        parsed = parse_value(value)
    except (yaml.YAMLError, ValueError) as error:
        raise errors.OVERRIDE_MALFORMED(text=text) from error
    place = data.setdefault(section, {})
    if not isinstance(place, dict):
        place = data[section] = {}
    place[name] = parsed


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML, each field under a comment with its documentation."""
    lines = ["# Elite TUI run configuration. `engine train --config FILE` repeats this run."]
    mapping = to_mapping(config)
    for section, values in mapping.items():
        lines += ["", f"{section}:"]
        for name, value in values.items():
            lines.append(f"  # {field_spec(f'{section}.{name}').description}")
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
            lines.append(f"  {name}: {text.removesuffix(chr(10)).removesuffix('...').rstrip()}")
    return "\n".join(lines) + "\n"
