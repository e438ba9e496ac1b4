"""One long session from its row to its gradient, in tiles, against plain transformers over the whole sequence.

    OMP_NUM_THREADS=1 python benchmarks/session_parity.py OUT.json [--tokens 65536] [--precision fp64]

The model has two narrow layers; the code is that of tests/training/test_long_session.py. A session of 65,536 tokens
takes minutes of a core's time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# In place of this folder, whose data.py would hide tests/data.
sys.path[:1] = [str(ROOT / "tests"), str(ROOT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--tile", type=int, default=4096)
    parser.add_argument("--precision", choices=("fp32", "fp64"), default="fp64")
    args = parser.parse_args()
    import torch
    from training.test_long_session import compare

    from engine.benchmarking.machine import describe_machine

    began = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        dtype = torch.float64 if args.precision == "fp64" else torch.float32
        found = compare(Path(temporary), args.tokens, args.tile, dtype)
    result = {
        "command": " ".join(["python", "benchmarks/session_parity.py", *(Path(word).name for word in sys.argv[1:])]),
        "machine": describe_machine(torch.device("cpu")),
        "cpu_seconds": round(time.process_time() - began),
        "precision": args.precision,
        **found,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
