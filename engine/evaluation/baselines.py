"""Scores of base models, kept beside a run's token stores for later runs with the same model, files and settings.

A base model does not change while an adapter is trained, so that its held-out loss and the functions that it completes
are the same in every run. A kept score is used only if all that it depends on hashes to its name. One that cannot be
read is scored again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine import __version__, durable, regular_file
from engine.models.base_fingerprint import fingerprint
from engine.models.loading import open_weights
from engine.models.placement import Placement, device_name
from engine.whole_file import replace_text

if TYPE_CHECKING:
    from engine.data.windows import Window
    from engine.models.base_changes import BaseChanges
    from engine.models.spec import ModelSpec
    from engine.plan.step_layout import StepLayout
    from engine.runs.run_directory import RunDirectory

_VERSION = 2
_MOST = 64
"""Scores that stay in a folder; the ones written first are removed."""
_LIBRARIES = ("torch", "transformers", "bitsandbytes", "tokenizers", "tree-sitter")


def digest(value: Any) -> str:
    """Hashes a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_windows(windows: Iterable[tuple[int, Window]]) -> str:
    """Hashes numbered windows: tokens, documents, and what is learnt of them."""
    found = hashlib.sha256()
    for number, window in windows:
        found.update(f"{number} {len(window)} {window.starts}\n".encode())
        for part in (window.ids, window.predicted, window.weights):
            found.update(b"-" if part is None else part.tobytes())
    return found.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """Scores of one base model on this machine.

    Args:
        folder: Where scores are kept.
        model: Identity of the model, its precision, the device and the libraries.
    """

    folder: Path
    model: str

    @staticmethod
    def of(
        run: RunDirectory,
        spec: ModelSpec,
        placement: Placement,
        changes: BaseChanges,
        layout: StepLayout,
        *,
        fused: bool,
    ) -> Baselines:
        """Identifies the base model of a run.

        Args:
            run: The run, whose output folder keeps the scores.
            spec: The model, whose stored weights are sampled.
            placement: Its device and precision.
            changes: Changes to it before training.
            layout: Layout of the step; hidden states of fewer than 16 bits change losses.
            fused: Whether fused kernels are used where the device has them.

        Raises:
            OSError, EliteError: the weights cannot be read.
        """
        stream = layout.stream
        identity = {
            "weights": dict(fingerprint(open_weights(spec)[0]).parts),
            "changes": dataclasses.asdict(changes),
            "device": device_name(placement.device),
            "precision": [placement.precision, placement.compute, fused],
            "activation_bits": 16 if stream is None else stream.activation_bits,
            "versions": [__version__, *(_installed(name) for name in _LIBRARIES)],
        }
        return Baselines(folder=run.path.parent.parent / "cache" / "baselines", model=digest(identity))

    def read(self, what: str, settings: Any) -> Any:
        """Returns the kept score of the same model and settings; None if there is none, or it is damaged.

        Args:
            what: Kind of score.
            settings: All that it depends on besides the model, as a JSON value.
        """
        path = self._path(what, settings)
        try:
            found = regular_file.read_object(path)
            value = found["value"]
            return value if found["version"] == _VERSION and found["sha256"] == digest(value) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def keep(self, what: str, settings: Any, value: Mapping[str, Any]) -> None:
        """Keeps a score. A disk that does not take it costs only the next run's time.

        Args:
            what, settings: As in `read`.
            value: A JSON value.
        """
        text = json.dumps({"version": _VERSION, "sha256": digest(value), "value": value})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(self._path(what, settings), text + "\n")
            self._remove_old()
        except OSError as error:
            if not (durable.is_full(error) or durable.is_transient(error) or isinstance(error, PermissionError)):
                raise

    def _path(self, what: str, settings: Any) -> Path:
        return self.folder / f"{what}-{digest([self.model, settings])[:32]}.json"

    def _remove_old(self) -> None:
        kept = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[: max(0, len(kept) - _MOST)]:
            path.unlink(missing_ok=True)


def _installed(name: str) -> str:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return ""
