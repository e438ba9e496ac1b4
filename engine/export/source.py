"""Opens a run's result for export: its adapter or model, the base under it, and their metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import regular_file
from engine.config import model_name
from engine.errors import EliteError
from engine.errors.export import EXPORT_DAMAGED, EXPORT_NOTHING
from engine.errors.runs import RESULT_DAMAGED
from engine.export.merging import MergedWeights, read_updates
from engine.export.weights import StoredWeights
from engine.models.base_changes import NO_CHANGES, BaseChanges, stretch_positions
from engine.models.base_fingerprint import compare_with_base
from engine.models.catalogue import ModelSpec, find_model
from engine.models.families import require
from engine.models.folder import ModelFolder, open_folder
from engine.models.hub import find_folder
from engine.runs.result_check import result_problem
from engine.runs.run_summary import ACTIVE

if TYPE_CHECKING:
    from engine.config import RunConfig
    from engine.models.weight_map import WeightMap
    from engine.runs.run_directory import RunDirectory
    from engine.tokenization.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run's result."""

    run: RunDirectory
    config: RunConfig
    spec: ModelSpec
    result: Path
    "Folder of the adapter, or of the whole model."
    is_adapter: bool
    changes: BaseChanges
    "Changes to the base before the adapter was trained on it."
    is_base: bool = False
    "Whether the base is exported, without the adapter."

    @property
    def name(self) -> str:
        """The tuned model's name, suitable for file names."""
        return model_name(self.config)

    @property
    def base_name(self) -> str:
        """Name of the base model that is valid on other machines."""
        spec = self.spec
        return spec.hub_id or (spec.path.name if spec.path else spec.name)

    @cached_property
    def base_folder(self) -> ModelFolder:
        """The base model's files. It has `renames` where they are those of a multimodal wrapper."""
        return open_folder(find_folder(self.spec))

    @property
    def weights_spec(self) -> ModelSpec:
        """Model of the files that the exported weights come from: the base under the adapter, or the whole model.

        A run in 4 bits trained on a quantised copy; these files are the originals of that copy.
        """
        if self.is_adapter:
            return self.spec
        return dataclasses.replace(self.spec, name=self.result.name, path=self.result, hub_id=None)


def open_source(run: RunDirectory, target: str) -> Source:
    """Opens a run's result.

    Raises:
        EliteError: EXPORT_NOTHING, EXPORT_DAMAGED, RESULT_DAMAGED, CONFIG_*, MODEL_*.
    """
    config = run.load_config()
    results = [path for path in (run.adapter_path, run.model_path) if path.is_dir()]
    if not results:
        status = run.status()
        if status in ACTIVE:
            state, remedy = f"it is {status}", f"wait for its end, or end it with `engine stop {run.id}`"
        else:
            state = f"it is {status} and left no adapter"
            remedy = f"`engine train --resume {run.id}` goes on to its end"
        raise EXPORT_NOTHING(run=run.id, target=target, problem=state, remedy=remedy)
    if (problem := result_problem(results[0])) is not None:
        raise RESULT_DAMAGED(run=run.id, problem=problem)
    spec = find_model(config.model.name)
    require(spec.family, "exported")
    is_adapter = results[0] == run.adapter_path
    if target in ("adapter", "gguf-adapter", "gguf-base") and not is_adapter:
        raise EXPORT_NOTHING(
            run=run.id, target=target, problem="it trained every weight of the model", remedy="use --to merged"
        )
    try:
        changes = BaseChanges.read(results[0])
    except (OSError, ValueError, TypeError) as error:
        raise EXPORT_DAMAGED(path=results[0], problem=error) from error
    return Source(
        run=run,
        config=config,
        spec=spec,
        result=results[0],
        is_adapter=is_adapter,
        changes=changes,
        is_base=target == "gguf-base",
    )


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A model that is ready to be written: its lazily read tensors, and its configuration."""

    weights: MergedWeights
    config: Any
    "transformers configuration of the merged model."
    base: Path
    "Directory of the base's files."

    @property
    def stored_dtype(self) -> str:
        """Format that the base is stored in: bf16, fp16 or f32."""
        import torch

        names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "f32"}
        if self.weights.dequantised:
            return "bf16"
        dtypes = (self.weights.stored_dtype(name) for name in self.weights.names())
        return next((names[dtype] for dtype in dtypes if dtype in names), "bf16")


@contextmanager
def merged(source: Source) -> Iterator[Merged]:
    """Opens the run's model with the adapter merged into the base's own weights; without it where `is_base`.

    Raises:
        EliteError: MODEL_*, BASE_CHANGED, EXPORT_DAMAGED.
    """
    from engine.models.loading import open_weights

    map_, config = open_weights(source.weights_spec)
    check_base(source, map_)
    updates = read_updates(source.result, map_) if source.is_adapter and not source.is_base else {}
    changes = source.changes if source.is_adapter else NO_CHANGES
    if changes.yarn_factor is not None:
        stretch_positions(config, changes.yarn_factor)
        config.max_position_embeddings = round(config.max_position_embeddings * changes.yarn_factor)
    heads = config.num_attention_heads
    if changes.kv_heads is not None:
        config.num_key_value_heads = changes.kv_heads
    with StoredWeights(map_) as stored:
        weights = MergedWeights(stored, updates, changes, heads=heads, tied=config.tie_word_embeddings)
        config.tie_word_embeddings = config.tie_word_embeddings and not weights.unties_head
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        yield Merged(weights=weights, config=config, base=map_.folder.path)


def check_base(source: Source, weights: WeightMap) -> None:
    """Checks that an adapter is merged into the weights that it was trained on.

    Raises:
        EliteError: BASE_CHANGED, EXPORT_DAMAGED.
    """
    if source.is_adapter:
        try:
            compare_with_base(source.result, weights, f"run {source.run.id}")
        except (OSError, ValueError) as error:
            raise EXPORT_DAMAGED(path=source.result, problem=error) from error


def trained_encoder(result: Path) -> Encoder:
    """Loads the tokenizer with which a run encoded its data, as the run saved it.

    Raises:
        EliteError: EXPORT_DAMAGED.
    """
    from engine.models.tokenizer_files import open_saved
    from engine.tokenization.encoder import Encoder

    try:
        return Encoder(open_saved(result))
    except (EliteError, OSError, ValueError) as error:
        raise EXPORT_DAMAGED(path=result, problem=f"its tokenizer cannot be read ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; {} where there is no such file.

    Raises:
        EliteError: EXPORT_DAMAGED.
    """
    try:
        return regular_file.read_object(path, follow=True, bounded=False) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise EXPORT_DAMAGED(path=path, problem=error) from error
