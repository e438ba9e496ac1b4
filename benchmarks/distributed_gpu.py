"""Measures what several GPUs of one machine do: exactness over NCCL, the ring's speed-up, ZeRO-3, PowerSGD.

    python benchmarks/distributed_gpu.py OUT.json [--gpus 2] [--minutes 9.3] [--only PART ...]
    python benchmarks/distributed_gpu.py OUT.json --only long-1.5b       a part of its own: one step takes minutes
    python benchmarks/distributed_gpu.py OUT.json --device cpu           the same cases, small, over gloo
    python benchmarks/distributed_gpu.py OUT.json --merge A.json B.json  what several calls found, in one file

| part | what | two H200, about |
|---|---|---|
| parity | loss and gradients against plain transformers in fp64 | 30 s |
| link | bytes a second between ranks | 5 s |
| sums | an update's gradients, whole and by PowerSGD | 15 s |
| ring | 256K × 28 layers and 512K × 14 of the 1.5B | 90 s |
| orders | 256K × 7: zigzag, contiguous, Ulysses | 35 s |
| alone | the ring's windows on one GPU each | 110 s |
| zero | ZeRO-3 of the 7B (needs DeepSpeed) | 90 s |
| long-1.5b | 1,048,576 tokens, all layers, 22.5 GiB a GPU | 8 min, of which 5.5 compute |
| long-7b | 524,288 tokens of the 7B, the same | 6 min, of which 3.5 compute |

Random weights of true shapes. The first five share a launch. OUT.json is written every two seconds: what is
cut off, fails or hangs costs only itself and what follows it in its launch. Rows of an OUT.json that is there stay
unless they are measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.distributed_cases import SIZES
from benchmarks.distributed_parts import PARTS, rank_main

DEFAULT = ["parity", "link", "sums", "ring", "orders", "alone", "zero"]


class Launch:
    """Processes that compute parts, and the file of their results."""

    def __init__(self, args: argparse.Namespace, parts: list[str], ranks: int, limit: float, number: int = 0) -> None:
        self.part = Path(tempfile.mkdtemp()) / "rows.json"
        own = [str(Path(__file__)), args.out, "--device", args.device, "--part", str(self.part), "--only", *parts]
        own += ["--number", str(number), "--cap", str(args.cap), "--ram-gib", str(args.ram_gib)]
        own += ["--layers", str(args.layers), "--context", str(args.context)]
        words = [sys.executable, *own]
        environment = {**os.environ, "NCCL_NVLS_ENABLE": "0", "PYTHONUNBUFFERED": "1"}
        environment.setdefault("OMP_NUM_THREADS", "4" if args.device == "cuda" else "1")
        if args.device == "cpu":
            environment |= {"DS_ACCELERATOR": "cpu"}
        if ranks > 1:
            words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *own]
        else:
            place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            environment |= {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29540 + number)}
            if args.device == "cuda":
                environment["CUDA_VISIBLE_DEVICES"] = str(number % args.gpus)
        print(f"--- {', '.join(parts)} with {ranks} ranks, at most {limit:.0f} s", flush=True)
        self._until = time.monotonic() + limit
        self._process = subprocess.Popen(words, env=environment, start_new_session=True, cwd=ROOT)

    @property
    def runs(self) -> bool:
        """Whether it computes; one that takes too long is ended."""
        if self._process.poll() is not None:
            return False
        if time.monotonic() < self._until:
            return True
        print("    took too long", flush=True)
        self.end()
        return False

    def end(self) -> None:
        """Ends all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def rows(self) -> list[dict[str, Any]]:
        """What has been found so far."""
        found = json.loads(self.part.read_text()) if self.part.exists() else []
        if self._process.returncode:
            found.append({"case": "launch", "ranks": 0, "error": f"ended with {self._process.returncode}"})
        return found


def versions(device: str) -> dict[str, Any]:
    import importlib.metadata

    found: dict[str, Any] = {}
    for name in ("torch", "transformers", "peft", "accelerate", "deepspeed"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if device == "cuda":
        text = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        found["cards"] = text.strip().splitlines()
        topology = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=False).stdout
        found["topology"] = topology.splitlines()[:8]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """What a person reads, last."""
    lines = []
    alone = {(r["model"], r["context"], r["layers"]): r for r in rows if r["case"] == "alone" and "seconds" in r}
    lines.append(
        "| case | ranks | model | context × layers | seconds | speed-up | GiB reserved a rank / used (planned) "
        "| GiB of RAM a rank (planned) | loss |"
    )
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        if "seconds" not in r or "layers" not in r:
            continue
        one = alone.get((r["model"], r["context"], r["layers"]))
        speed = f"{one['seconds'] / r['seconds']:.2f}" if one else "-"
        used = ", ".join(f"{b / 2**30:.1f}" for b in r.get("gpu_reserved", [])) or "-"
        used += " / " + (", ".join(f"{b / 2**30:.1f}" for b in r.get("gpu_used", [])) or "-")
        plan = f"{r['predicted_gpu_bytes'] / 2**30:.1f}"
        host = ", ".join(f"{b / 2**30:.1f}" for b in r["host_peak"])
        host += f" ({r['predicted_host_bytes'] / 2**30:.1f})"
        lines.append(
            f"| {r['case']} | {r['ranks']} | {r['model']} | {r['context']:,} × {r['layers']} | {r['seconds']:.2f} "
            f"(planned {r['predicted_seconds']:.1f}) | {speed} | {used} ({plan}) | {host} | {r['loss']:.5f} |"
        )
    for r in rows:
        if r["case"].startswith("parity") and "loss_error" in r:
            verdict = "ok" if r["ok"] else "WRONG"
            lines.append(f"{r['case']}: loss {r['loss_error']:.1e}, gradients {r['gradient_error']:.1e}: {verdict}")
        if r["case"] == "link" and "send_receive_bytes_a_second" in r:
            lines.append(
                f"link: {r['send_receive_bytes_a_second'] / 1e9:.1f} GB/s each way, "
                f"all-reduce {r['all_reduce_bytes_a_second'] / 1e9:.1f} GB/s"
            )
        if r["case"].startswith("gradients"):
            parts = [
                f"{k}: {v['bytes'] / 1e6:.2f} MB, {v['seconds'] * 1e3:.2f} ms"
                for k, v in r.items()
                if isinstance(v, dict)
            ]
            lines.append(f"{r['case']}: " + "; ".join(parts))
        if r["case"] == "zero3" and "seconds" in r:
            held = ", ".join(f"{b / 2**30:.2f}" for b in r.get("gpu_after_init", []))
            peak = ", ".join(f"{b / 2**30:.2f}" for b in r.get("gpu_allocated", []))
            lines.append(
                f"zero3: {r['weights_bytes'] / 2**30:.2f} GiB of weights; GiB a rank at rest {held or '-'}, "
                f"peak {peak or '-'}; "
                f"{r['seconds']:.2f} s a step of {r['ranks']} × {r['context']:,} tokens; losses {r['losses']}"
            )
    lines += [
        f"FAILED {r['case']} ({r['ranks']} ranks): {r['error'].strip().splitlines()[-1]}" for r in rows if "error" in r
    ]
    return "\n".join(lines)


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """Two rows with the same one are of the same case."""
    return tuple(row.get(name) for name in ("case", "ranks", "model", "context", "layers"))


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The old rows that were not measured again, and the new ones."""
    again = {identity(row) for row in new}
    return [row for row in old if identity(row) not in again and row["case"] != "launch"] + new


def stored(path: Path) -> dict[str, Any]:
    """A file of results; an empty one where there is none."""
    return json.loads(path.read_text()) if path.exists() else {"commands": [], "rows": []}


def main() -> int:
    """Measures, or merges what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=9.3)
    parser.add_argument("--only", nargs="*", choices=tuple(PARTS), default=DEFAULT)
    parser.add_argument("--layers", type=int, default=0, help="of a long part; 0 is all")
    parser.add_argument("--context", type=int, default=0, help="of a long part; 0 is its own")
    parser.add_argument("--cap", type=float, default=22.5, help="GiB a GPU for a long part")
    parser.add_argument("--ram-gib", type=float, default=250.0, help="RAM to plan with on GPUs; 0 is what is seen")
    parser.add_argument("--merge", nargs="*", default=[])
    parser.add_argument("--part", default="")
    parser.add_argument("--number", type=int, default=0)
    args = parser.parse_args()
    if args.part:
        return rank_main(args)
    result = stored(Path(args.out))
    for name in args.merge:
        one = stored(Path(name))
        result = {**result, **one, "commands": [*result["commands"], *one["commands"]]} | {
            "rows": merged(result["rows"], one["rows"])
        }
    if not args.merge:
        measure(args, result)
    Path(args.out).write_text(json.dumps(result, indent=1))
    print(table(result["rows"]))
    return 0


def measure(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Runs the parts that were asked for, and writes what they find while they run."""
    deadline = time.monotonic() + 60 * args.minutes
    before, done = result["rows"], []  # type: tuple[list[dict[str, Any]], list[dict[str, Any]]]
    result |= {"versions": versions(args.device), "device": args.device}
    result["commands"] = [*result["commands"], "python benchmarks/distributed_gpu.py " + " ".join(sys.argv[1:])]

    def follow(launches: list[Launch]) -> None:
        running = True
        while running:
            running = sum(one.runs for one in launches) > 0  # asks every one: each has its own limit
            rows = [*done, *(row for one in launches for row in one.rows())]
            result["rows"] = merged(before, rows)
            partial = Path(args.out).with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=1))
            partial.replace(args.out)
            if running:
                time.sleep(2)
        done[:] = rows

    def left() -> float:
        return deadline - time.monotonic() - 5

    together = [name for name in args.only if name not in ("alone", "zero")]
    if together:
        follow([Launch(args, together, args.gpus, left())])
    if "alone" in args.only and left() > 20:
        follow([Launch(args, ["alone"], 1, left(), number) for number in range(len(SIZES[args.device].contexts))])
    if "zero" in args.only and left() > 20:
        follow([Launch(args, ["zero"], args.gpus, left())])


if __name__ == "__main__":
    sys.exit(main())
