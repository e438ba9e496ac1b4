"""Keeps proofs that models of families outside the registry are computed rightly, by the settings that they hold for.

`engine verify --model` makes them (engine.verify.family_proof), in seconds. Here they are found, without torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine import __version__
from engine.models.families import Ability, Family
from engine.models.spec import ModelSpec, as_spec
from engine.whole_file import replace_text

VERSION = 5
"""Of what is compared. A proof of another version counts for nothing."""
_IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "architectures",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "quantization_config",
    }
)
"""Keys of config.json that change nothing of what a proof compares."""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a small copy of a model's configuration."""

    version: int = VERSION
    engine: str
    "Version of this package, whose code the proof is about as well."
    transformers: str
    model_type: str
    settings: str
    "Name of the configuration that it holds for."
    refused: dict[str, str]
    "Ability → why it is refused; empty where it is admitted."
    differences: dict[str, float]
    "Comparison → largest relative difference."
    adapts_mlp: bool
    shape: dict[str, Any]
    "Fields of ModelSpec; none where the plan cannot count it."
    seconds: float

    @property
    def admitted(self) -> frozenset[Ability]:
        """Returns the abilities that were shown to be right."""
        return frozenset(ability for ability, problem in self.refused.items() if not problem)  # type: ignore[misc]

    @property
    def family(self) -> Family:
        """Returns the row of the registry that follows from it."""
        problems = [problem for problem in self.refused.values() if problem]
        shape = {"adapts_mlp": self.adapts_mlp}
        return Family(does=self.admitted, because=problems[0] if problems else "", shape=shape, proof=self.settings)

    def spec(self, *, name: str, hub_id: str | None, path: Path | None) -> ModelSpec:
        """Returns the shapes of the model that it was made of.

        Raises:
            ValueError: what the proof says of them cannot be read.
        """
        found = as_spec(self.shape, name=name, family=self.model_type, hub_id=hub_id)
        return dataclasses.replace(found, path=path)


def settings_name(config: Mapping[str, Any]) -> str:
    """Returns a short name of a config.json, the same for all configurations that a proof of one holds for."""
    known = {key: value for key, value in config.items() if key not in _IRRELEVANT}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def library_version() -> str:
    """Returns the version of transformers, whose code the proof is about."""
    from importlib.metadata import version  # loads the email package, and most commands need no proof

    return version("transformers")


def find_proof(config: Mapping[str, Any]) -> Proof | None:
    """Finds the proof that is kept for a config.json; returns None where none is, or it was made with other code."""
    return read_proof(settings_name(config))


def read_proof(settings: str) -> Proof | None:
    """Reads the proof that is kept under a configuration's short name, as `find_proof` does."""
    try:
        found = msgspec.json.decode(_path(settings).read_bytes(), type=Proof)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return (
        found
        if (found.version, found.engine, found.transformers) == (VERSION, __version__, library_version())
        else None
    )


def keep_proof(proof: Proof) -> Path:
    """Keeps a proof in the user's cache.

    Raises:
        OSError: the cache cannot be written.
    """
    path = _path(proof.settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_proof(proof, path)
    return path


def write_proof(proof: Proof, path: Path) -> None:
    """Writes a proof as JSON.

    Raises:
        OSError: the folder cannot be written.
    """
    replace_text(path, msgspec.json.format(msgspec.json.encode(proof), indent=1).decode() + "\n")


def _path(settings: str) -> Path:
    import platformdirs

    return platformdirs.user_cache_path("elite-tui") / "proofs" / f"{settings}.json"
