"""Run directories whose files somebody else changed, or that took damage, read by every command that reads a run."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from engine import atomic_dir
from engine.runs.journal import seal_line
from tests.chaos.fuzzing import Bench
from tests.chaos.odd import DAMAGES, damage, mutate, odd, odd_header, odd_json

Change = Callable[[bytes, random.Random], bytes]


def odd_journal(original: bytes, rng: random.Random) -> bytes:
    """A journal with odd values under valid checksums, in another order now and then."""
    if rng.random() < 0.2:
        return mutate(original, rng)
    events = [json.loads(line) for line in original.splitlines()]
    for event in events:
        event.pop("crc", None)
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(events))
        events[place] = odd(events[place], rng)
    if rng.random() < 0.2:
        rng.shuffle(events)
    lines = []
    for event in events:
        line = json.dumps(event, separators=(",", ":")).encode()
        lines.append(seal_line(line) if line.endswith(b"}") and rng.random() < 0.9 else line)
    return b"\n".join(lines) + b"\n"


FILES: tuple[tuple[str, Change], ...] = (
    ("events.jsonl", odd_journal),
    ("plan.json", odd_json),
    ("process.json", odd_json),
    ("config.yaml", mutate),
    ("deepspeed.json", odd_json),
    ("report.md", mutate),
    ("evaluation.json", odd_json),
    ("base_weights.json", odd_json),
    ("adapter/adapter_config.json", odd_json),
    ("adapter/adapter_model.safetensors", odd_header),
    ("adapter/manifest.json", odd_json),
    ("adapter/base_weights.json", odd_json),
    ("adapter/tokenizer.json", odd_json),
    ("adapter/tokenizer_config.json", odd_json),
    ("checkpoints/{newest}/manifest.json", odd_json),
    ("checkpoints/{newest}/state.json", odd_json),
)


def make(bench: Bench, rng: random.Random, folder: Path) -> list[str]:
    """One or two files changed, and one command."""
    run = folder / "out" / "runs" / bench.run.name
    shutil.copytree(bench.run, run)
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    for name, change in rng.sample(FILES, rng.choice([1, 1, 2])):
        path = run / name.format(newest=newest)
        if not path.is_file():
            continue
        # Numbers of its own: how many it draws depends on the content, which holds times and paths.
        own = random.Random(rng.getrandbits(64))
        if own.random() < 0.15:
            damage(path, own.choice(DAMAGES))
        else:
            path.write_bytes(change(path.read_bytes(), own))
    if rng.random() < 0.7 and (run / "adapter").is_dir():
        _seal(run / "adapter")
    make_old(run)
    return rng.choice(commands(run, folder, rng))


def make_old(run: Path) -> None:
    """An odd record of the process may be one of another machine, which lives for two minutes after its last write."""
    for name in ("process.json", "config.yaml"):
        if (run / name).exists():
            os.utime(run / name, (1e9, 1e9), follow_symlinks=False)


def commands(run: Path, folder: Path, rng: random.Random) -> list[list[str]]:
    """What reads a run."""
    reference = str(run)
    return [
        ["runs", "--output", str(folder / "out"), *rng.choice([[], ["--json"]])],
        ["attach", reference, *rng.choice([[], ["--json"]])],
        ["evaluate", reference, "--tokens", "32", "--functions", "1", *rng.choice([[], ["--json"]])],
        ["generate", reference, "--prompt", "x", "--max-tokens", "1", *rng.choice([[], ["--json"]])],
        ["export", reference, "--to", rng.choice(["adapter", "merged", "gguf", "gguf-adapter"]), "--no-check",
         "--output", str(folder / "exported")],
        [rng.choice(["stop", "pause", "resume"]), reference, "--json"],
        ["delete", reference, "--yes"],
        ["doctor", "--quick", "--config", str(run / "config.yaml"), "--output", str(folder / "written")],
    ]  # fmt: skip


def _seal(folder: Path) -> None:
    """Gives a folder the manifest that its contents should have, as who writes an adapter can."""
    aside = folder.with_name("aside")
    shutil.copytree(folder, aside, symlinks=True, ignore=_irregular)
    atomic_dir.seal(folder, aside, {})


def _irregular(folder: str, names: list[str]) -> list[str]:
    """What cannot be copied. It stays away: the manifest would not list it."""
    return [name for name in names if not (Path(folder) / name).is_file() or (Path(folder) / name).is_symlink()]
