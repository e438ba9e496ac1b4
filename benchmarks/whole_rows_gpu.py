"""Runs one whole step over a long window in a detached process, and tells how far it is.

    python benchmarks/whole_rows_gpu.py start FOLDER 1.5b-1m      (returns at once; the row runs on by itself)
    python benchmarks/whole_rows_gpu.py poll FOLDER               (stage, layer, seconds; the table once it is done)
    python benchmarks/whole_rows_gpu.py plan                      (what the planner chooses for each row, without a GPU)
    python benchmarks/whole_rows_gpu.py start FOLDER 1.5b-1m --tiny     (the same path on a CPU, in seconds)

The planner chooses each row's layout for a card of the row's size with this GPU's rates, within the row's RAM and disk;
torch's allocator may take no more than the card has for a step. FOLDER/progress.json holds the stage and the layer that
are being computed, FOLDER/result.json what was predicted beside what was measured, FOLDER/log.txt what libraries wrote.
`start` waits for --wait seconds and prints the progress, for machines where a command's end may end its children.
Attention outputs or hidden states on the disk go to --spill, a folder whose file system has room for them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    model: str
    context: int
    cap: float
    "GiB that torch's allocator may take."
    card: float
    "GiB of GPU memory that the planner supposes, of which it leaves 12% and the CUDA context free."
    ram: float
    "GiB of RAM that it supposes, of which it leaves 12% free."
    disk: float
    "GiB of free disk that it supposes; 0 keeps everything in RAM."
    precision: str = "nf4"
    layers: int | None = None
    stream: dict[str, Any] = dataclasses.field(default_factory=dict)
    "Choices that are taken from the planner, as in the section `stream`."


ROWS = {
    "1.5b-1m": Row("qwen2.5-coder-1.5b", 1_048_576, cap=11.0, card=12.0, ram=72.0, disk=2.0),
    "1.5b-512k-8gb": Row("qwen2.5-coder-1.5b", 524_288, cap=7.25, card=8.0, ram=32.0, disk=70.0),
    "7b-512k": Row("qwen2.5-coder-7b", 524_288, cap=22.5, card=24.0, ram=72.0, disk=2.0),
    "7b-1m": Row("qwen2.5-coder-7b", 1_048_576, cap=22.5, card=24.0, ram=72.0, disk=110.0),
}
TINY = Row(
    *("demo", 512, math.inf, 4.0, 4.0, 4.0),
    precision="auto",
    stream={"tile": 128, "key_block": 256, "hidden_home": "disk", "stash_home": "disk"},
)
"Stands in for every row with --tiny."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("start", "poll", "plan", "run"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("whole-row"))
    parser.add_argument("row", choices=tuple(ROWS), nargs="?", default="1.5b-1m")
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--spill", type=Path, default=Path("/tmp"), help="folder of what is written to the disk")
    parser.add_argument("--layers", type=int, help="decoder layers, if not all: a trial of the same buffers")
    parser.add_argument("--hardware", default="h200", help="plan: the card whose rates are supposed")
    parser.add_argument(
        "--stream", action="append", default=[], metavar="FIELD=VALUE", help="a choice taken from the planner"
    )
    parser.add_argument("--wait", type=float, default=0.0, help="start: seconds to wait and to print the progress")
    given = parser.parse_args()
    if given.what == "plan":
        for name, row in ((name, with_choices(row, given)) for name, row in ROWS.items()):
            print(name, describe(planned(row, machine_of(row, given.hardware))), sep="\n", end="\n\n")
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.what == "start":
        start(given)
        poll(given.folder, given.wait)
    elif given.what == "poll":
        poll(given.folder, given.wait)
    else:
        run(with_choices(TINY if given.tiny else ROWS[given.row], given), given.folder, given.spill, tiny=given.tiny)


def with_choices(row: Row, given: argparse.Namespace) -> Row:
    """Returns a row with the choices of the command line."""
    from engine.config import parse_value

    pairs = (text.split("=", 1) for text in given.stream)
    stream = {**row.stream, **{name: parse_value(value) for name, value in pairs}}
    return dataclasses.replace(row, layers=given.layers, stream=stream)


# --- the process beside it -----------------------------------------------------------------------------------


def start(given: argparse.Namespace) -> None:
    """Starts the row in a session of its own, so that the end of this command does not end it."""
    for name in ("progress.json", "result.json"):
        (given.folder / name).unlink(missing_ok=True)
    command = [sys.executable, __file__, "run", str(given.folder), given.row, "--spill", str(given.spill)]
    command += ["--tiny"] if given.tiny else []
    command += ["--layers", str(given.layers)] if given.layers else []
    command += [part for text in given.stream for part in ("--stream", text)]
    with (given.folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )
    (given.folder / "pid").write_text(str(process.pid))
    print(f"started, process {process.pid}", flush=True)


def poll(folder: Path, wait: float) -> None:
    """Prints the progress every ten seconds for so long, and the table once there is a result."""
    until = time.monotonic() + wait
    while True:
        if (folder / "result.json").exists():
            print(table(json.loads((folder / "result.json").read_text())))
            return
        alive = (folder / "pid").exists() and Path(f"/proc/{(folder / 'pid').read_text()}").exists()
        progress = folder / "progress.json"
        print(progress.read_text() if progress.exists() else "no progress yet", flush=True)
        if not alive:
            print((folder / "log.txt").read_text()[-3000:])
            raise SystemExit("the row's process is gone and left no result")
        if time.monotonic() >= until:
            return
        time.sleep(min(10.0, max(0.1, until - time.monotonic())))


def write(path: Path, value: Any) -> None:
    """Replaces a file at once, so that a reader never sees half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.replace(path)


# --- the row -------------------------------------------------------------------------------------------------


def machine_of(row: Row, hardware: str | None) -> Any:
    """A machine with the row's memory: this one's rates, or those of a card by its data sheet."""
    from engine.hardware.cards import find_card, simulate
    from engine.hardware.inventory import take_inventory

    sizes = {"ram_total": round(row.ram * GIB), "ram_available": round(row.ram * GIB)}
    disk = round(row.disk * GIB)
    if hardware is not None:
        machine = simulate(find_card(hardware), ram_bytes=sizes["ram_total"], disk_bytes=disk)
    else:
        machine = take_inventory(Path("/tmp"))
    gpus = tuple(
        dataclasses.replace(gpu, memory_total=round(row.card * GIB), memory_free=None) for gpu in machine.gpus[:1]
    )
    return dataclasses.replace(machine, gpus=gpus, disk_free=disk, disk_total=max(disk, machine.disk_total), **sizes)


def planned(row: Row, machine: Any) -> tuple[Any, Any]:
    """Returns the request and the plan that the planner chooses for a row, or ends with why none fits."""
    from engine.config import StreamSection, TrainingSection
    from engine.models.catalogue import find_model
    from engine.plan.planner import plan_context
    from engine.plan.request import PlanRequest

    spec = find_model(row.model)
    spec = spec.with_layers(row.layers) if row.layers else spec
    stream = StreamSection(**row.stream)
    request = PlanRequest.of(machine, spec, row.precision, training=TrainingSection(step="streamed"), stream=stream)
    found = plan_context(request, row.context)
    if not found.fits:
        raise SystemExit(f"{row.model} {row.context:,}: {found.reason}; {found.remedy}")
    return request, found


def describe(found: tuple[Any, Any]) -> str:
    _, plan = found
    sizes = ", ".join(
        f"{name} {size / GIB:.1f} GiB"
        for name, size in (("GPU", plan.gpu_peak_bytes), ("host", plan.host_peak_bytes), ("disk", plan.disk_bytes))
    )
    text = f"  {plan.layout.describe()}\n  {sizes}, {plan.step_seconds:,.0f} s"
    if plan.written_bytes:
        text += f", writes {plan.written_bytes / GIB:.0f} GiB a step"
    if plan.diskless is not None:
        text += f"\n  without the disk: {plan.diskless.step_seconds:,.0f} s with {plan.diskless.settings}"
    return text


class Watch(threading.Thread):
    """Writes the progress once a second, and keeps the highest host memory that it saw."""

    def __init__(self, path: Path, began: float) -> None:
        super().__init__(daemon=True)
        self.path, self.began, self.state = path, began, {"stage": "start"}
        self.rss = 0
        self.spilled = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1.0):
            self.look()

    def look(self) -> None:
        import psutil

        process = psutil.Process()
        self.rss = max(self.rss, process.memory_info().rss)
        self.spilled = max(self.spilled, spilled_bytes())
        write(self.path, {**self.state, "seconds": round(time.monotonic() - self.began, 1), "host_gib": self.rss / GIB})


def spilled_bytes() -> int:
    """Bytes of this process's unlinked spill files."""
    total = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if "(deleted)" in str(link.readlink()):
                total += os.fstat(int(link.name)).st_blocks * 512
        except OSError:
            continue  # closed meanwhile
    return total


def run(row: Row, folder: Path, spill: Path, *, tiny: bool) -> None:
    began = time.monotonic()
    watch = Watch(folder / "progress.json", began)
    watch.look()
    watch.start()
    try:
        result = measure(row, spill, watch, tiny=tiny)
    except BaseException as error:
        result = {"error": f"{type(error).__name__}: {error}", "at": dict(watch.state)}
        write(folder / "result.json", result)
        raise
    finally:
        watch.ended.set()
    result["wall_seconds"] = time.monotonic() - began
    write(folder / "result.json", result)


def measure(row: Row, spill: Path, watch: Watch, *, tiny: bool) -> dict[str, Any]:
    """Runs one step, with the same buffers and kernels as a run, and returns predicted beside measured."""
    import gc

    import psutil
    import torch

    from engine.benchmarking.streaming import gradient_norm, limit_memory, reset_peak, synchronize
    from engine.config import LoraSection
    from engine.models.adapter import attach_adapter
    from engine.models.fused import fuse_kernels
    from engine.models.placement import choose_placement
    from engine.models.random import random_model
    from engine.streaming.step import StreamedStep

    placement = choose_placement("cpu" if tiny else "cuda", row.precision)
    machine = machine_of(row, None)
    if tiny:
        machine = dataclasses.replace(machine, gpus=())
    request, plan = planned(row, machine)
    stream = plan.layout.stream
    watch.state = {"stage": "loading", "plan": plan.layout.describe()}
    limit_memory(placement.device, None if tiny else row.cap)
    torch.manual_seed(0)
    home = torch.device("cpu") if stream.streams_weights else placement.device
    base = random_model(request.spec, placement, weights_device=home)
    fused = fuse_kernels(base, placement.device)
    model = attach_adapter(base, LoraSection(), seed=0).train()
    synchronize(placement.device)
    tokens = torch.randint(0, request.spec.vocab_size, (row.context,), generator=torch.Generator().manual_seed(0))
    gc.collect()
    before, watch.rss = psutil.Process().memory_info().rss, 0
    layers: list[dict[str, Any]] = []
    started = time.monotonic()

    def note() -> Callable[[Any], None]:
        last: list[Any] = [None]

        def told(progress: Any) -> None:
            watch.state = {"stage": progress.stage, "layer": progress.layer, "done": progress.done,
                           "of": progress.total, "step_seconds": round(time.monotonic() - started, 1)}  # fmt: skip
            if (progress.stage, progress.layer) != last[0]:
                last[0] = (progress.stage, progress.layer)
                layers.append({"stage": progress.stage, "layer": progress.layer,
                               "at": round(time.monotonic() - started, 2)})  # fmt: skip

        return told

    with StreamedStep(model, stream, device=placement.device, spill_directory=spill, timed=True) as step:
        reset_peak(placement.device)
        started = time.monotonic()
        outcome = step.run(tokens, progress=note())
        synchronize(placement.device)
        seconds = time.monotonic() - started
        watch.look()
        backend = step.backend_name
    if not math.isfinite(outcome.loss_sum):
        raise FloatingPointError(f"the loss is {outcome.loss_sum}")
    cuda = placement.device.type == "cuda"
    return {
        "command": f"python benchmarks/whole_rows_gpu.py {' '.join(sys.argv[1:])}",
        "all_layers": request.spec.layers,
        "row": dataclasses.asdict(row) | {"cap": None if math.isinf(row.cap) else row.cap},
        "machine": {
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "torch": torch.__version__,
            "spill": str(spill),
        },
        "plan": dataclasses.asdict(stream),
        "fused": fused,
        "backend": backend,
        "loss": outcome.loss_sum / outcome.predicted,
        "gradient_norm": gradient_norm(model),
        "predicted": predicted(request, plan, row.context),
        "measured": {
            "seconds": seconds,
            "stages": outcome.seconds,
            "gpu_allocated": torch.cuda.max_memory_allocated() if cuda else 0,
            "gpu_reserved": torch.cuda.max_memory_reserved() if cuda else 0,
            "host_grown": watch.rss - before,
            "host_process": watch.rss,
            "disk": watch.spilled,
        },
        "layers": layers,
    }


def predicted(request: Any, plan: Any, context: int) -> dict[str, Any]:
    """Bytes and seconds of the plan, the GPU's as its allocator counts them, without Adam's states: none are made."""
    from engine.plan.ledger_lines import NOT_ALLOCATED
    from engine.plan.request import workload_of

    work = workload_of(request, context)
    place = "gpu" if request.on_gpu else "host"
    own = [part for part in plan.parts if part.where == place and part.name not in NOT_ALLOCATED]
    slack = sum(part.bytes for part in own if part.name == "allocator slack")
    states = 8 * work.lora_parameters
    return {
        "seconds": plan.step_seconds,
        "time": {part.name: part.seconds for part in plan.time},
        "gpu_allocated": sum(part.bytes for part in own) - slack - states if request.on_gpu else 0,
        "gpu_peak": plan.gpu_peak_bytes,
        "host": plan.host_peak_bytes,
        "disk": sum(part.bytes for part in plan.parts if part.where == "disk" and "checkpoint" not in part.name),
        "written": plan.written_bytes,
        "parts": {part.name: part.bytes for part in plan.parts},
    }


def table(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"ERROR {result['error']}\n  at {result['at']}"
    said, was, row = result["predicted"], result["measured"], result["row"]
    lines = [
        f"{row['model']} {row['precision']}, {row['context']:,} tokens, "
        f"{row['layers'] or 'all'} layers, {result['backend']}, loss {result['loss']:.4f}",
        f"  {'':<16}{'predicted':>12}{'measured':>12}",
    ]
    for name, left, right in (
        ("GPU GiB", said["gpu_allocated"] / GIB, was["gpu_allocated"] / GIB),
        ("GPU reserved", said["gpu_peak"] / GIB, was["gpu_reserved"] / GIB),
        ("host GiB", said["host"] / GIB, was["host_process"] / GIB),
        ("disk GiB", said["disk"] / GIB, was["disk"] / GIB),
        ("seconds", said["seconds"], was["seconds"]),
    ):
        lines.append(f"  {name:<16}{left:>12,.2f}{right:>12,.2f}")
    stages = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in was["stages"].items())
    return "\n".join([*lines, f"  {stages}; in all {result['wall_seconds']:,.0f} s with loading"])


if __name__ == "__main__":
    main()
