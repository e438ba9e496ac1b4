"""Speed and memory of building a token store, beside plain tokenisation of the same texts by the same tokenizer.

    python benchmarks/data.py DIR [--threads N] [--store-only] [--json]

Each of the two is measured in a process of its own; MB are millions of bytes of source, per second of wall time and
per second of processor time (that is, per core). Memory is the process's own: the store is a mapped file, whose pages
the kernel keeps while there is room and takes back when there is not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


class PeakMemory:
    """The most anonymous memory that this process has had, sampled twenty times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            now = int(status.partition("RssAnon:")[2].split()[0]) * 1024
            self.bytes = max(self.bytes, now)
            if self._done.wait(0.05):
                return

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measure(part: str, folder: Path) -> dict[str, float]:
    from tokenizers import Tokenizer

    from engine.assets import asset
    from engine.config import DataSection
    from engine.data.dataset import build_dataset
    from engine.data.sources import open_sources

    data = DataSection(repositories=[str(folder)], fim=0.0)
    tokenizer = Tokenizer.from_file(str(asset("demo-model", "tokenizer.json")))
    if part == "store":
        with tempfile.TemporaryDirectory() as cache:
            begun, used = time.monotonic(), time.process_time()
            with PeakMemory() as peak:
                summary = build_dataset(data, tokenizer=tokenizer, context=4096, cache=Path(cache)).summary
            wall, cpu = time.monotonic() - begun, time.process_time() - used
            size, tokens, files = summary.source_bytes, summary.tokens, len(summary.files)
    else:
        with open_sources(data) as sources:
            documents = [sources.texts.read(file) for file in sources.collection.files]
        texts = [document.text for document in documents if not isinstance(document, str)]
        size, files = sum(len(text.encode()) for text in texts), len(texts)
        begun, used = time.monotonic(), time.process_time()
        with PeakMemory() as peak:
            tokens = sum(len(one.ids) for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        wall, cpu = time.monotonic() - begun, time.process_time() - used
    return {
        "bytes": size,
        "tokens": tokens,
        "mb_per_second": size / wall / 1e6,
        "mb_per_core_second": size / cpu / 1e6,
        "peak_bytes": peak.bytes,
        "files": files,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--store-only", action="store_true", help="do not tokenise the texts alone, which holds them all"
    )
    parser.add_argument("--part", choices=["store", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.folder)))
        return
    results = {}
    for part in ("store",) if options.store_only else ("plain", "store"):
        command = [sys.executable, __file__, str(options.folder), "--part", part]
        environment = {**os.environ, "RAYON_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        results[part] = json.loads(done.stdout)
    ratio = None
    if "plain" in results:
        ratio = results["store"]["mb_per_core_second"] / results["plain"]["mb_per_core_second"]
    if options.json:
        print(json.dumps({**results, "ratio_per_core": ratio}))
        return
    for part, figures in results.items():
        print(
            f"{part:6} {figures['files']:8,} files {figures['bytes'] / 1e6:8.1f} MB {figures['tokens']:12,} tokens "
            f"{figures['mb_per_second']:6.2f} MB/s {figures['mb_per_core_second']:6.2f} MB/s a core, "
            f"peak {figures['peak_bytes'] / 2**20:,.0f} MiB"
        )
    if ratio is not None:
        print(f"the store is built at {ratio:.2f} of plain tokenisation's speed per core")


if __name__ == "__main__":
    main()
