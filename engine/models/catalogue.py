"""Finds a model's shapes by catalogue name, local directory or hub id. Never loads weights or imports torch."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import regular_file
from engine.assets import asset
from engine.errors.model import MODEL_DIRECTORY_INVALID, MODEL_NOT_AVAILABLE, MODEL_UNKNOWN
from engine.home_folder import expand_home
from engine.models.config_reader import ConfigError, spec_from_config
from engine.models.families import (
    FAMILIES,
    Ability,
    Family,
    admit,
    refusal,
    refuse,
    require,
    setting_refusals,
)
from engine.models.folder import check_quantisation
from engine.models.layer_shapes import Linear
from engine.models.proofs import Proof, find_proof
from engine.models.spec import ModelSpec, as_spec
from engine.models.wrappers import text_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Linear", "ModelSpec", "catalogue", "find_model"]

CATALOGUED = "catalogue"
"""Stands for a proof (engine.models.families.Family.proof) where a row of the catalogue admits a family."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@functools.cache
def catalogue() -> dict[str, ModelSpec]:
    """Loads the architectures of assets/models.toml, by name, in the file's order."""
    entries = tomllib.loads(asset("models.toml").read_text(encoding="utf-8"))
    return {name: _from_entry(name, entry) for name, entry in entries.items()}


def _from_entry(name: str, entry: dict[str, Any]) -> ModelSpec:
    if "config" in entry:
        said = {key: value for key, value in entry.items() if key != "config"}
        said["settings"] = tuple((key, _hashable(value)) for key, value in entry["config"].items())
        return dataclasses.replace(as_spec(_shapes()[name], name=name, family=entry["family"]), **said)
    full = {"full_attention_layers": 0 if "sliding_window" in entry else entry["layers"]}
    return ModelSpec(name=name, **{**full, **FAMILIES[entry["family"]].shape, **entry})


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@functools.cache
def _shapes() -> dict[str, dict[str, Any]]:
    """Loads assets/model_shapes.json: what the settings of each model amount to whose family is not listed."""
    found: dict[str, dict[str, Any]] = json.loads(asset("model_shapes.json").read_text(encoding="utf-8"))
    return found


def find_model(name: str, *, download: bool = True) -> ModelSpec:
    """Finds the shapes of a model.

    Args:
        name: Catalogue name, local directory with a config.json, or hub id ("organisation/model").
        download: Whether the few kilobytes of a hub id's config.json may be fetched if they are not cached.

    Raises:
        EliteError: MODEL_UNKNOWN with the nearest names, MODEL_DIRECTORY_INVALID, MODEL_QUANTISED,
            MODEL_NOT_AVAILABLE, or MODEL_FAMILY_UNSUPPORTED.
    """
    known = catalogue()
    key = name.strip()
    if key.lower() in known:
        return _trainable(known[key.lower()])
    directory = _as_directory(key)
    if directory:
        return _from_directory(directory)
    for spec in known.values():
        if spec.hub_id and spec.hub_id.lower() == key.lower():
            return _trainable(spec)
    if _HUB_ID.fullmatch(key) and not key.startswith("."):
        return _from_hub(key, download=download)
    if "/" in key:
        raise MODEL_DIRECTORY_INVALID(path=name, problem="no such directory")
    raise MODEL_UNKNOWN(name=name or "''", suggestion=_suggest(key, list(known)))


def _as_directory(name: str) -> Path | None:
    try:
        path = expand_home(name)
        return path if name and path.is_dir() else None
    except OSError:  # a name too long for a path
        return None


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    others = "a local directory or a hub id such as Qwen/Qwen2.5-Coder-1.5B works too"
    if near:
        return f"did you mean {' or '.join(near)}? ({others})"
    return f"known: {', '.join(known)}; {others}"


def _from_directory(path: Path) -> ModelSpec:
    config = path / "config.json"
    if not config.is_file():
        snapshot = _snapshot(path)
        within = "" if snapshot is None else f"; its snapshot {snapshot} has one"
        raise MODEL_DIRECTORY_INVALID(path=path, problem=f"it has no config.json{within}")
    return _from_text(_read(config), name=_name_of(path.resolve()), source=str(path), path=path)


def _snapshot(path: Path) -> Path | None:
    """Returns the snapshot in a model's folder of the hub's cache: that of its main branch, else the newest."""
    try:
        main = (path / "refs" / "main").read_text(encoding="utf-8", errors="replace").strip()
        if main.isalnum() and (path / "snapshots" / main / "config.json").is_file():
            return path / "snapshots" / main
    except OSError:
        pass
    try:
        found = [folder for folder in (path / "snapshots").iterdir() if (folder / "config.json").is_file()]
        return max(found, key=lambda folder: (folder.stat().st_mtime, folder.name), default=None)
    except OSError:
        return None


def _name_of(path: Path) -> str:
    """Names a folder's model: after models--ORG--NAME where the folder is a snapshot in the hub's cache."""
    parts = path.parent.parent.name.split("--")
    if path.parent.name == "snapshots" and parts[0] == "models" and all(parts[1:]) and len(parts) > 1:
        return "/".join(parts[1:])
    return path.name


def _from_hub(hub_id: str, *, download: bool) -> ModelSpec:
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json")
    if isinstance(cached, str):
        text, source = _read(Path(cached)), cached
    elif download:
        text, source = _fetch_config(hub_id), hub_id
    else:
        raise MODEL_NOT_AVAILABLE(name=hub_id, problem="its config.json is not in the local hub cache")
    return _from_text(text, name=hub_id, hub_id=hub_id, source=source)


def _fetch_config(hub_id: str) -> str:
    """Fetches config.json by plain HTTP, because the hub's client retries for 23 s before it reports a lost network."""
    import http.client
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise MODEL_NOT_AVAILABLE(name=hub_id, problem="HF_HUB_OFFLINE is set")
    url = f"{constants.ENDPOINT}/{hub_id}/resolve/main/config.json"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - the hub's own address
            return str(response.read(1_000_000).decode("utf-8"))
    except urllib.error.HTTPError as error:
        error.close()
        raise MODEL_NOT_AVAILABLE(name=hub_id, problem=f"{constants.ENDPOINT} says {error}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MODEL_NOT_AVAILABLE(name=hub_id, problem=error) from error


def _read(config: Path) -> str:
    try:
        return regular_file.read_text(config, follow=True)
    except (OSError, ValueError) as error:
        raise MODEL_DIRECTORY_INVALID(path=config.parent, problem=f"config.json: {error}") from error


def _from_text(text: str, *, name: str, source: str, hub_id: str | None = None, path: Path | None = None) -> ModelSpec:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MODEL_DIRECTORY_INVALID(path=source, problem=f"config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise MODEL_DIRECTORY_INVALID(path=source, problem="config.json is not an object")
    config = text_settings(config)
    family = config.get("model_type")
    proof = _admit_by_proof(family, config)
    if not isinstance(family, str) or family not in FAMILIES:
        unknown = f"{source} does not name a family whose shapes are known"
        problem = f"{unknown}, and `engine verify --model {source}` has not admitted it" if path else unknown
        raise refuse(family or "(none)", "planned", problem)
    _refuse_untrainable(family, setting_refusals(config))
    check_quantisation(source, config)
    if proof is not None:
        return proof.spec(name=name, hub_id=hub_id, path=path)
    try:
        spec = spec_from_config(config, name=name, hub_id=hub_id, path=path)
        return dataclasses.replace(spec, stored_in_4_bits=config.get("quantization_config") is not None)
    except ConfigError as error:
        raise MODEL_DIRECTORY_INVALID(path=source, problem=error) from error


def _admit_by_proof(family: Any, config: Mapping[str, Any]) -> Proof | None:
    """Takes a family that is not listed into the registry, or out of it, as the proof of these very settings says."""
    listed = FAMILIES.get(family) if isinstance(family, str) else None
    if not isinstance(family, str) or (listed is not None and not listed.proof):
        return None
    proof = find_proof(config)
    FAMILIES.pop(family, None)
    if proof is not None:
        admit(family, proof.family)
    return proof


def _trainable(spec: ModelSpec) -> ModelSpec:
    if spec.settings and spec.family not in FAMILIES:
        # Proven as every family of docs/families.md. A folder of such a model is still proven by its own settings.
        admit(spec.family, Family(shape={"adapts_mlp": spec.adapts_mlp}, proof=CATALOGUED))
    _refuse_untrainable(spec.family, {})
    return spec


def _refuse_untrainable(family: str, by_setting: Mapping[Ability, str]) -> None:
    """Refuses a model that neither kind of step can train, before anything else of it is read."""
    whole, streamed = (refusal(family, way) or by_setting.get(way) for way in ("whole", "streamed"))
    if whole and streamed:
        raise refuse(family, "whole", whole)
    require(family, "planned")
