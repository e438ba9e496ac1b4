"""Builds a configuration's token store and reports on it, before anything is trained. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.assets import asset
from engine.data.dataset import build_dataset
from engine.data.report import DataReport, describe
from engine.errors import EliteError
from engine.errors.data import CACHE_FULL, CACHE_UNWRITABLE
from engine.errors.runs import OUTPUT_FULL, OUTPUT_UNWRITABLE
from engine.plan.tiers import tiers

if TYPE_CHECKING:
    from engine.config import DataSection
    from engine.data.reading import Progress
    from engine.models.spec import ModelSpec


def preview(
    data: DataSection, *, model: ModelSpec, cache: Path | None = None, progress: Progress | None = None
) -> DataReport:
    """The report of a configuration's data, counted with the model's own tokenizer where that is on disk.

    Args:
        data: What to read.
        model: Whose tokenizer counts.
        cache: Folder that keeps stores; None for the user's cache.
        progress: Told how far it is; may raise to abandon. A later call goes on from there.

    Raises:
        EliteError: as build_dataset, with CACHE_UNWRITABLE and CACHE_FULL for the cache.
    """
    tokenizer, note = _tokenizer(model)
    with kept_in(cache) as stores:
        dataset = build_dataset(data, tokenizer=tokenizer, context=tiers()[0].context, cache=stores, progress=progress)
    report = describe(dataset, notes=(note,) if note else ())
    # Another tokenizer does not tell whether the model's has tokens for fill-in-the-middle.
    return dataclasses.replace(report, fim=None) if note and data.fim is None else report


def user_cache() -> Path:
    """The folder that keeps stores when none is named."""
    import platformdirs

    return platformdirs.user_cache_path("elite-tui") / "datasets"


@contextlib.contextmanager
def kept_in(cache: Path | None) -> Iterator[Path]:
    """Gives the folder that keeps stores: the one that is named, else the user's cache.

    Raises:
        EliteError: CACHE_UNWRITABLE, CACHE_FULL, in place of what says the same of a run's output folder.
    """
    folder = cache or user_cache()
    try:
        yield folder
    except EliteError as error:
        if error.kind is OUTPUT_UNWRITABLE:
            raise CACHE_UNWRITABLE(path=folder, problem=error.values["problem"]) from error
        if error.kind is OUTPUT_FULL:
            raise CACHE_FULL(path=folder) from error
        raise


def _tokenizer(model: ModelSpec) -> tuple[Any, str]:
    """A tokenizers.Tokenizer, and what to say where it is not the model's own."""
    from tokenizers import Tokenizer

    path = _tokenizer_file(model)
    if path is not None:
        return with_chat_template(Tokenizer.from_file(str(path)), path.parent), ""
    note = f"tokens are counted with the embedded demo model's tokenizer: that of {model.name} is not on disk yet"
    return Tokenizer.from_file(str(asset("demo-model", "tokenizer.json"))), note


@dataclass(frozen=True)
class _Saved:
    """A tokenizer with the chat template and the special tokens that its folder names."""

    backend_tokenizer: Any
    chat_template: Any
    bos_token: str | None
    eos_token: str | None
    eos_token_id: int | None


def with_chat_template(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer with the chat template of its folder; as it is where that holds none.

    Args:
        tokenizer: A tokenizers.Tokenizer.
        folder: With tokenizer_config.json and chat_template.jinja, as transformers writes them.
    """
    settings: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings = found if isinstance(found, dict) else {}
    template = settings.get("chat_template")
    if isinstance(template, list):  # of several, by name
        template = {one["name"]: one["template"] for one in template if isinstance(one, dict) and len(one) > 1}
    with contextlib.suppress(OSError, ValueError):
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not template:
        return tokenizer

    def named(key: str) -> str | None:
        token = settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else None

    end = named("eos_token")
    return _Saved(tokenizer, template, named("bos_token"), end, tokenizer.token_to_id(end) if end else None)


def _tokenizer_file(model: ModelSpec) -> Path | None:
    if model.name == "demo":
        return asset("demo-model", "tokenizer.json")
    if model.path is not None:
        path = model.path / "tokenizer.json"
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.hub_id or model.name, "tokenizer.json")
    return Path(found) if isinstance(found, str) else None
