"""Runs the pre-flight checks that need torch, in a separate process, and prints one JSON row per line.

Reads a request from standard input (engine.launch.doctor); `--alone` uses the demo model instead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from engine.config import RunConfig, from_mapping
from engine.errors import EliteError, one_line
from engine.hardware.nvml import Nvml
from engine.launch.doctor import Check
from engine.launch.recipe_import import collector_at_rest
from engine.models.catalogue import find_model
from engine.quantities import format_bytes

_CHUNK = 1 << 30
_TRIAL_TOKENS = 64


def main() -> int:
    """Answers one request and returns the exit status."""
    request: dict[str, Any] = {} if "--alone" in sys.argv else json.load(sys.stdin)
    config = from_mapping(request.get("config", {}))
    precision = str(request.get("precision") or "auto")
    steps: dict[str, Callable[[], Iterator[Check]]] = {
        "number formats": lambda: _formats(config, precision),
        "GPU memory": lambda: _gpu_memory(config, request.get("gpu_bytes")),
        "tokenizer": lambda: _tokenizer(config),
        "trial step": lambda: _trial(config, precision),
    }
    for name, step in steps.items():
        try:
            with collector_at_rest():
                rows = list(step())
        except EliteError as error:
            rows = [Check(name=name, status="failed", text=error.message, remedy=error.remedy)]
        except Exception as error:
            # Any exception of a library here would end a run too, so it is the row's finding.
            problem = one_line(f"{type(error).__name__}: {error}")[:300]
            rows = [Check(name=name, status="failed", text=problem, remedy=_REMEDIES[name])]
        for row in rows:
            print(json.dumps(asdict(row)), flush=True)  # noqa: T201 - the answer
    return 0


_REMEDIES = {
    "number formats": "reinstall torch for this machine, with this program's versions (constraints.txt)",
    "GPU memory": "look at nvidia-smi: the card may be held by others, or need a reset",
    "tokenizer": "download the model again, or pass a directory saved with save_pretrained",
    "trial step": "reinstall torch, transformers, peft and bitsandbytes together, with constraints.txt",
}


def _formats(config: RunConfig, precision: str) -> Iterator[Check]:
    """Checks that the libraries load together and that one matrix product in the run's precision is right."""
    import torch

    from engine.models.placement import choose_placement

    placement = choose_placement(config.model.device, precision)
    if placement.precision == "nf4":
        import bitsandbytes  # noqa: F401 - its binary is built for one CUDA version and may fail to load
    a = torch.arange(256, device=placement.device, dtype=torch.float32).view(16, 16) / 256
    product = (a.to(placement.dtype) @ a.to(placement.dtype)).float().cpu()
    exact = a.cpu() @ a.cpu()
    error = float((product - exact).abs().max())
    if not error < 0.05:
        raise RuntimeError(f"a matrix product in {placement.compute} is wrong by {error}")
    built = torch.version.cuda
    if placement.device.type == "cpu" and config.model.device == "auto" and built is None and _has_driver():
        yield Check(
            name="number formats",
            status="warning",
            text="there is an NVIDIA GPU, but this torch is built for the CPU alone",
            remedy="reinstall torch from PyPI (`pip install --force-reinstall torch`), or set model.device=cpu",
        )
        return
    where = f"{torch.cuda.get_device_name()}, torch for CUDA {built}" if placement.device.type == "cuda" else "cpu"
    yield Check(
        name="number formats",
        status="passed",
        text=f"weights in {placement.precision}, computing in {placement.compute} on {where}",
    )


def _has_driver() -> bool:
    nvml = Nvml.open()
    if nvml is None:
        return False
    try:
        return bool(nvml.gpus())
    finally:
        nvml.close()


def _gpu_memory(config: RunConfig, wanted: int | None) -> Iterator[Check]:
    """Checks that the planned GPU memory can be allocated, 1 GiB at a time."""
    import torch

    if config.model.device == "cpu" or not torch.cuda.is_available():
        yield Check(name="GPU memory", status="skipped", text="training runs on the CPU")
        return
    if wanted is None:
        yield Check(name="GPU memory", status="skipped", text="there is no plan that says how much is needed")
        return
    total = torch.cuda.mem_get_info()[1]
    held: list[Any] = []
    got, goal = 0, wanted
    try:
        while got < goal:
            size = min(_CHUNK, goal - got)
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            got += size
    except torch.OutOfMemoryError:
        yield Check(
            name="GPU memory",
            status="failed",
            text=f"{format_bytes(got)} could be allocated of the {format_bytes(goal)} that the plan needs",
            remedy="end other processes on the card, or set a lower training.tier",
        )
        return
    finally:
        held.clear()
        torch.cuda.empty_cache()  # the trial step needs it next
    yield Check(
        name="GPU memory",
        status="passed",
        text=f"{format_bytes(got)} allocated of {format_bytes(total)}",
    )


def _tokenizer(config: RunConfig) -> Iterator[Check]:
    """Checks that the tokenizer belongs to the model and that code survives the round trip."""
    from engine.models.loading import load_tokenizer

    spec = find_model(config.model.name)
    tokenizer = load_tokenizer(spec)
    sample = "def f(x):\n\treturn {'ü': x ** 2}  # 1,5\n"
    ids = tokenizer.encode(sample, add_special_tokens=False)
    highest = max(tokenizer.get_vocab().values())
    if tokenizer.decode(ids) != sample:
        yield Check(
            name="tokenizer",
            status="warning",
            text="code does not survive encoding and decoding unchanged",
            remedy="check with `engine data` what the model will see",
        )
        return
    yield Check(name="tokenizer", status="passed", text=f"{highest + 1:,} ids, the model knows {spec.vocab_size:,}")


def _trial(config: RunConfig, precision: str) -> Iterator[Check]:
    """Runs one forward and backward of the embedded model, with an adapter, in the run's precision.

    For a model in a local folder, it first matches the files with the model's weights.
    """
    import torch

    from engine.data.windows import Window
    from engine.models.adapter import attach_adapter, trainable
    from engine.models.loading import load_model, open_weights
    from engine.models.placement import choose_placement
    from engine.steps.whole_step import WholeSequenceStep

    spec = find_model(config.model.name)
    if spec.path is not None:
        open_weights(spec)
    placement = choose_placement(config.model.device, precision)
    model = attach_adapter(load_model(find_model("demo"), placement), config.lora, config.training.seed)
    step = WholeSequenceStep(
        model, recompute=False, autocast=lambda: torch.autocast(placement.device.type, dtype=placement.dtype)
    )
    window = (torch.arange(_TRIAL_TOKENS) * 7 % 4096).numpy()
    result = step.run([Window(window)], 1.0 / (_TRIAL_TOKENS - 1), _Alone())
    gradients = [p.grad for p in trainable(model).values() if p.grad is not None]
    norm = float(torch.stack([g.float().norm() for g in gradients]).norm()) if gradients else 0.0
    if not (0 < norm < float("inf") and 0 < result.loss_sum < float("inf")):
        raise RuntimeError(f"the trial's loss is {result.loss_sum} and its gradient's norm {norm}")
    yield Check(name="trial step", status="passed", text=f"forward and backward in {placement.precision} work")


class _Alone:
    """StepMonitor that ignores progress and never stops."""

    def progress(self, stage: str, done: int, total: int, *, layer: int | None = None, tile: int | None = None) -> None:
        """Ignores progress."""

    def stop_requested(self) -> bool:
        """Returns False."""
        return False


if __name__ == "__main__":
    raise SystemExit(main())
