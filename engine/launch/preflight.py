"""Checks a run before its process starts, for the command line and the wizard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.config import model_name
from engine.data.repositories import estimate_data_tokens
from engine.errors.data import REPOSITORY_UNSET
from engine.errors.usage import CONFIG_INVALID
from engine.hardware.inventory import take_inventory
from engine.home_folder import expand_home
from engine.models.base_changes import check_pooling
from engine.models.catalogue import find_model
from engine.models.folder import open_folder
from engine.plan.choice import choose_plan
from engine.plan.optimizations import refuse_conflicts
from engine.plan.strategy import choose_strategy, ranks_to_start
from engine.runs.run_directory import MINIMUM_FREE, check_output

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.hardware.rank_place import Ranks
    from engine.models.catalogue import ModelSpec
    from engine.plan.choice import Choice

_CHECKPOINT_BYTES = 12
"""Bytes of an adapter parameter in a checkpoint, its value and AdamW's two states in fp32."""

_TOKEN_BYTES = 4


def check(config: RunConfig, ranks: Ranks | None = None) -> RunConfig:
    """Checks everything that a configuration names, and returns it with absolute paths. See `check_and_plan`."""
    return check_and_plan(config, ranks)[0]


def check_and_plan(config: RunConfig, ranks: Ranks | None = None) -> tuple[RunConfig, Choice]:
    """Checks everything that a configuration names, and returns it with absolute paths, and its plan.

    Leaves nothing behind.

    Takes as long as listing the repositories does.

    Args:
        config: Configuration of the run.
        ranks: Ranks that are already running; None means the ranks that would be started.

    Raises:
        EliteError: REPOSITORY_*, DATA_SET_*, MODEL_*, OUTPUT_UNWRITABLE, OUTPUT_FULL, TIER_DOES_NOT_FIT,
            CONTEXT_DOES_NOT_FIT, HOURS_TOO_FEW, DEVICE_UNAVAILABLE, PRECISION_UNAVAILABLE, CONFIG_INVALID,
            OPTIMIZATION_CONFLICT, GPUS_MISSING, HOSTFILE_INVALID or STRATEGY_UNAVAILABLE.
    """
    if not (config.data.repositories or config.data.datasets):
        raise REPOSITORY_UNSET()
    spec = find_model(config.model.name)
    if spec.path is not None:
        open_folder(spec.path)
    config = _in_stored_precision(with_absolute_paths(config), spec)
    output = Path(config.output.directory)
    check_output(output)
    tokens = estimate_data_tokens(config.data)
    check_output(output, needed_bytes(config, spec, tokens))
    check_pooling(config.model, spec)
    machine = take_inventory(output)
    chosen = choose_plan(config, machine, spec, tokens, ranks)
    streamed = chosen.plan.layout.stream is not None
    refuse_conflicts(config, streamed=streamed)
    ranks = ranks or ranks_to_start(config, machine)
    if ranks.all > 1:
        choose_strategy(config, spec, ranks=ranks.all, streamed=streamed, spreads=False)
    return config, chosen


def _in_stored_precision(config: RunConfig, spec: ModelSpec) -> RunConfig:
    """Sets the precision of a model whose files hold only 4 bits.

    Raises:
        EliteError: CONFIG_INVALID.
    """
    if not spec.stored_in_4_bits or config.model.precision == "nf4":
        return config
    if config.model.precision != "auto":
        raise CONFIG_INVALID(
            source="configuration",
            field="model.precision",
            problem=f"{config.model.precision} is not what {spec.name} is stored in: 4 bits",
            remedy="set it to nf4 or auto, or pass the same model in 16 bits",
        )
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, precision="nf4"))


def needed_bytes(config: RunConfig, spec: ModelSpec, repository_tokens: int) -> int:
    """Sums the bytes that a run writes for tokens, adapter, checkpoints (kept, best and new), journal and log."""
    parameters = spec.lora_parameters(config.lora.rank, config.lora.targets, config.lora.expert_rank)
    checkpoints = (config.checkpoint.keep + 2) * _CHECKPOINT_BYTES * parameters
    return MINIMUM_FREE + checkpoints + 4 * parameters + _TOKEN_BYTES * repository_tokens


def partial_checkpoint_bytes(config: RunConfig, spec: ModelSpec, context: int) -> int:
    """Returns the bytes of the partial checkpoints of a long step (engine.steps.partial_checkpoint).

    A partial checkpoint holds the gradient stream, and gradients in fp32. It counts twice, because a new one is written
    beside the previous one.
    """
    return 2 * (
        2 * context * spec.hidden_size
        + 4 * spec.lora_parameters(config.lora.rank, config.lora.targets, config.lora.expert_rank)
    )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Makes a configuration's paths absolute, for processes with another current folder and for repeating the run.

    Names the model too, which is called after the repository unless it has a name.

    Raises:
        EliteError: MODEL_*.
    """
    spec = find_model(config.model.name)
    repositories, datasets = (
        [str(_absolute(text)) for text in texts] for texts in (config.data.repositories, config.data.datasets)
    )
    template = config.data.chat_template
    template = str(_absolute(template)) if template.endswith(".jinja") else template
    name = str(spec.path.absolute()) if spec.path else config.model.name
    return msgspec.structs.replace(
        config,
        model=msgspec.structs.replace(config.model, name=name),
        data=msgspec.structs.replace(config.data, repositories=repositories, datasets=datasets, chat_template=template),
        output=msgspec.structs.replace(
            config.output, directory=str(_absolute(config.output.directory)), model_name=model_name(config)
        ),
    )


def _absolute(text: str) -> Path:
    return expand_home(text).absolute()
