"""Proofs of the dataset pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.assets import asset
from engine.config import DataSection
from engine.data.dataset import Dataset, build_dataset
from engine.verify.proof import Bench, demand


def _repository(bench: Bench, name: str, files: dict[str, str]) -> Path:
    root = bench.folder / name
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def _source(seed: int, lines: int = 40) -> str:
    random = np.random.RandomState(seed)
    return "".join(f"def function_{seed}_{i}(x):\n    return x * {random.randint(10_000)}\n" for i in range(lines))


def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(asset("demo-model", "tokenizer.json")))


def _dataset(bench: Bench, root: Path, tokenizer: Any = None, **data: Any) -> Dataset:
    section = DataSection(repositories=[str(root)], **{"fim": 0.0, **data})
    return build_dataset(section, tokenizer=tokenizer or _tokenizer(), context=128, cache=bench.folder / "cache")


def validation_split(bench: Bench) -> str:
    """No held-out file's text is in any training window, and a file keeps its side as the repository grows."""
    files = {f"part{i % 4}/module{i}.py": _source(i) for i in range(40)}
    root = _repository(bench, "repo", files)
    first = _dataset(bench, root, held_out_fraction=0.2)
    summary = first.summary
    train = {str(f.path) for f in summary.files[: len(summary.files) - summary.held_out_files]}
    held = {str(f.path) for f in summary.files[len(summary.files) - summary.held_out_files :]}
    demand(bool(held) and not train & held and len(train | held) == 40, f"{len(train)} and {len(held)} files of 40")
    text = _tokenizer().decode(np.concatenate([window.ids for window in first.train]))
    leaked = [name for name in held if f"function_{name.rpartition('module')[2].removesuffix('.py')}_0(" in text]
    demand(not leaked, f"{len(leaked)} held-out files are in training windows")
    _repository(bench, "repo", {f"new/module{i}.py": _source(i) for i in range(100, 130)})
    again = _dataset(bench, root, held_out_fraction=0.2).summary
    held_again = {str(f.path) for f in again.files[len(again.files) - again.held_out_files :]}
    demand(held <= held_again and not train & held_again, "a file changed sides as the repository grew")
    return f"{len(held)} of 40 files held out, none in training windows; all stay on their side as 30 files are added"


def near_duplicate_removal(bench: Bench) -> str:
    """A file that repeats most of another is left out."""
    text = _source(1, lines=80)
    files = {f"module{i}.py": _source(i) for i in range(10, 20)}
    files |= {"original.py": text, "copied.py": text.replace("function_1_3(", "renamed(")}
    root = _repository(bench, "repo", files)
    counts = {way: len(_dataset(bench, root, near_duplicates=way).summary.files) for way in ("keep", "skip")}
    demand(counts == {"keep": 12, "skip": 11}, f"files {counts}, expected 12 and 11")
    return "12 files, two of which differ in one line: 11 are kept"


def memory_mapped_dataset(bench: Bench) -> str:
    """Tokens come from a memory-mapped file; reading a window copies only that window."""
    root = _repository(bench, "repo", {f"module{i}.py": _source(i, lines=200) for i in range(30)})
    dataset = _dataset(bench, root)
    tokens = dataset.store.tokens
    mapped: Any = tokens
    while isinstance(mapped, np.ndarray) and not isinstance(mapped, np.memmap):
        mapped = mapped.base
    demand(isinstance(mapped, np.memmap), "the tokens are in memory")
    window = dataset.train[0]
    demand(window.ids.base is None or not np.shares_memory(window.ids, tokens), "a window is not a copy of its own")
    return f"{len(tokens):,} tokens ({tokens.nbytes:,} B) mapped from disk; a window copies {window.ids.nbytes:,} B"


def fim(bench: Bench) -> str:
    """Chosen files have their middle moved to the end, marked by the model's own tokens; no character is lost."""
    files = {f"module{i}.py": _source(i) for i in range(30)}
    root = _repository(bench, "repo", files)
    dataset = _dataset(bench, root, fim=0.5)
    tokenizer, offsets = _tokenizer(), dataset.store.offsets()
    train = len(dataset.summary.files) - dataset.summary.held_out_files
    moved = 0
    for index, file in enumerate(dataset.store.files):
        text = tokenizer.decode(dataset.store.tokens[offsets[index] : offsets[index + 1]])
        head, found, rest = text.removesuffix("<|endoftext|>").partition("<|fim_prefix|>")
        demand(not found or index < train, "a held-out file is rearranged")
        if found:
            moved += 1
            before, _, rest = rest.partition("<|fim_suffix|>")
            after, _, middle = rest.partition("<|fim_middle|>")
            head += before + middle + after
        demand(head == f"<|file_sep|>{file.path}\n{files[file.path]}", f"{file.path} is not what it was")
    demand(0 < moved < train, f"{moved} of {train} files are rearranged, asked for half")
    return f"{moved} of {train} training files have their middle at the end; put back, each is what it was"
