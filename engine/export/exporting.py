"""Exports a run to a folder that appears complete or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine.config.names import as_name
from engine.errors import EliteError
from engine.errors.export import EXPORT_DTYPE
from engine.export.card import render_card, render_modelfile
from engine.export.commands import commands
from engine.export.merged import merged_bytes, write_merged
from engine.export.merging import read_updates
from engine.export.source import Source, check_base, merged, open_source
from engine.export.target import new_folder
from engine.export.weights import count
from engine.models.hub import find_folder

if TYPE_CHECKING:
    from engine.export.check import Difference
    from engine.export.source import Merged
    from engine.runs.run_directory import RunDirectory

Target = Literal["adapter", "merged", "gguf", "gguf-adapter", "gguf-base"]
GGUF_DTYPES = ("bf16", "fp16", "f32", "q8_0", "q5_k_m", "q4_k_m")
DTYPES: dict[Target, tuple[str, ...]] = {
    "adapter": (),
    "gguf-adapter": (),
    "merged": ("bf16", "fp16", "f32"),
    "gguf": GGUF_DTYPES,
    "gguf-base": GGUF_DTYPES,
}
ORIGINAL = "The adapter is folded into the base's original weights."
DEQUANTISED = (
    "The base exists in 4 bits only: the adapter is folded into what those give back, not into the original weights."
)
ALONE = "The base as it was before training, for adapters that llama.cpp adds as it runs."
UNTOUCHED = "Every weight was trained; nothing had to be folded in."
NOT_AS_TRAINED = " It was trained on a 4-bit copy of them, so its results can differ a little from those of the run."


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Description of a written export."""

    path: Path
    target: Target
    dtype: str | None
    base: str
    "Sentence on the base that the adapter was merged into; empty for an adapter."
    files: dict[str, int]
    "Name → bytes."
    commands: tuple[str, ...] = ()
    "Lines for a shell that use it."
    difference: Difference | None = None
    "Difference from the run's own model, where it was compared."
    unchecked: str = ""
    "Reason why it was not compared; empty where it was, or where check is False."


def default_folder(run: RunDirectory, target: Target, dtype: str | None) -> Path:
    """Returns the default folder of an export."""
    return run.path / "exports" / (f"{target}-{dtype}" if dtype else target)


def export(
    run: RunDirectory,
    target: Target,
    output: Path | None = None,
    dtype: str | None = None,
    *,
    check: bool | None = None,
    notify: Callable[[int, int], None] = lambda _done, _total: None,
) -> Exported:
    """Exports a run as an adapter, a merged model or a GGUF file; or its base as a GGUF file.

    Args:
        run: A run with a result.
        target: Kind of export.
        output: A folder that does not exist yet; by default below the run's own.
        dtype: Format of the weights; by default that of the base.
        check: Whether to reload it and compare its logits before it appears under its name. None compares where file
            and memory sizes permit.
        notify: Called with the tensors written and their total.

    Raises:
        EliteError: EXPORT_*, MODEL_*, OUTPUT_UNWRITABLE. Nothing is left on disk then.
    """
    if dtype is not None and dtype not in DTYPES[target]:
        problem = "an adapter stays as it was trained" if not DTYPES[target] else "it is not a format of it"
        supported = ", ".join(DTYPES[target]) or "--to merged or gguf"
        raise EXPORT_DTYPE(dtype=dtype, target=target, problem=problem, supported=supported)
    source = open_source(run, target)
    if target == "adapter":
        return _export_adapter(source, output or default_folder(run, target, None), check)
    if target == "gguf-adapter":
        return _export_gguf_adapter(source, output or default_folder(run, target, None))
    with merged(source) as model:
        chosen = dtype or model.stored_dtype
        folder = (output or default_folder(run, target, chosen)).absolute()
        about = _words(source, dequantised=model.weights.dequantised)
        file: str | None = None
        if target in ("gguf", "gguf-base"):
            from engine.export.gguf_file import GgufFile

            planned = GgufFile(source, model, chosen)
            file = f"{as_name(source.base_name) or 'base' if source.is_base else source.name}-{chosen}.gguf"
            with new_folder(folder, planned.bytes) as aside:
                planned.write(aside / file, notify)
                if not source.is_base:
                    modelfile = render_modelfile(source, file, planned.tokenizer, model.config.max_position_embeddings)
                    (aside / "Modelfile").write_text(modelfile, encoding="utf-8")
                checked = _compare(source, model, aside, chosen, file, check)
                return _finish(source, target, chosen, about, aside, folder, *checked)

        with new_folder(folder, merged_bytes(model.weights, chosen)) as aside:
            write_merged(aside, source, model, chosen, notify)
            checked = _compare(source, model, aside, chosen, file, check)
            return _finish(source, target, chosen, about, aside, folder, *checked)


def _export_adapter(source: Source, folder: Path, check: bool | None) -> Exported:
    folder = folder.absolute()
    files = [path for path in sorted(source.result.iterdir()) if path.is_file() and path.name != "README.md"]
    with new_folder(folder, sum(path.stat().st_size for path in files)) as aside:
        for path in files:
            shutil.copyfile(path, aside / path.name)
        # Reread it, so that an adapter damaged on disk is not exported.

        read_updates(aside)
        return _finish(source, "adapter", None, "", aside, folder, *_compare_adapter(source, aside, check))


def _export_gguf_adapter(source: Source, folder: Path) -> Exported:
    from engine.export.gguf_adapter import GgufAdapter

    folder = folder.absolute()
    with merged(source) as model:
        planned = GgufAdapter(source, model)
    with new_folder(folder, planned.bytes) as aside:
        planned.write(aside / f"{source.name}-lora.gguf")
        return _finish(source, "gguf-adapter", None, "", aside, folder, None, "llama.cpp adds it to its base")


def _compare(
    source: Source, model: Merged, aside: Path, dtype: str, gguf: str | None, check: bool | None
) -> tuple[Difference | None, str]:
    """Returns the result of a comparison, or the reason why there was none."""
    if check is False:
        return None, ""
    from engine.export.check import compare, reason_against

    parameters = sum(count(model.weights.shape(name)) for name in model.weights.names())
    against = "" if check else reason_against(parameters, sum(path.stat().st_size for path in aside.iterdir()))
    return (None, against) if against else (compare(source, model, aside, dtype, gguf), "")


def _compare_adapter(source: Source, aside: Path, check: bool | None) -> tuple[Difference | None, str]:
    if check is False:
        return None, ""
    from engine.export.check import compare_adapter, reason_against
    from engine.models.loading import open_weights

    try:
        find_folder(source.spec, download=check is True)
        weights, _ = open_weights(source.spec)
        check_base(source, weights)
    except EliteError as error:
        if check:
            raise
        # An adapter is useful without its base.
        return None, error.message
    parameters = sum(count(shape) for shape in weights.shapes.values())
    against = "" if check else reason_against(parameters, parameters)
    return (None, against) if against else (compare_adapter(source, aside), "")


def _finish(
    source: Source,
    target: Target,
    dtype: str | None,
    about: str,
    aside: Path,
    folder: Path,
    difference: Difference | None,
    unchecked: str,
) -> Exported:
    """Writes the model card, and returns the description of the export."""
    names = sorted(path.name for path in aside.iterdir())
    (aside / "README.md").write_text(render_card(source, target, dtype, about, names), encoding="utf-8")
    files = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
    return Exported(
        path=folder,
        target=target,
        dtype=dtype,
        base=about,
        files=files,
        commands=commands(source, target, folder, names),
        difference=difference,
        unchecked=unchecked,
    )


def _words(source: Source, *, dequantised: bool) -> str:
    if source.is_base:
        return ALONE
    if not source.is_adapter:
        return UNTOUCHED
    if dequantised:
        return DEQUANTISED
    return ORIGINAL + (NOT_AS_TRAINED if source.config.model.precision == "nf4" else "")
