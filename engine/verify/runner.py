"""Runs proofs in order, and turns every outcome into a verdict."""

from __future__ import annotations

import importlib
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from engine.errors import EliteError, one_line
from engine.plan.optimizations import Optimization
from engine.verify.proof import Bench, ProofFailedError, UnavailableError, Verdict


def verify(rows: Iterable[Optimization], device: torch.device) -> Iterator[Verdict]:
    """Yields the verdict on each row as soon as it is known."""
    for row in rows:
        yield prove(row, device)


def prove(row: Optimization, device: torch.device) -> Verdict:
    """Runs one row's proof. Any exception is a failure, since an effect that cannot be shown does not count."""
    module, _, function = row.proof.partition(":")
    began = time.monotonic()

    def verdict(status: str, evidence: str = "", reason: str = "") -> Verdict:
        return Verdict(
            id=row.id,
            status=status,  # type: ignore[arg-type]
            evidence=evidence,
            reason=one_line(reason),
            seconds=round(time.monotonic() - began, 2),
        )

    with tempfile.TemporaryDirectory(prefix="elite-tui-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bench = Bench(device=device, folder=Path(folder))
        rng = torch.get_rng_state()
        try:
            # Otherwise the first accelerator's number format would apply to all later ones.
            AcceleratorState._reset_state(reset_partial_state=True)
            torch.manual_seed(0)
            return verdict("passed", getattr(importlib.import_module(module), function)(bench))
        except UnavailableError as missing:
            return verdict("unavailable", reason=str(missing))
        except ProofFailedError as failed:
            return verdict("failed", reason=str(failed))
        except EliteError as refused:
            return verdict("failed", reason=f"{refused.code}: {refused}")
        except Exception as error:
            return verdict("failed", reason=f"{type(error).__name__}: {error}")
        finally:
            torch.set_rng_state(rng)
            if device.type == "cuda":
                torch.cuda.empty_cache()
