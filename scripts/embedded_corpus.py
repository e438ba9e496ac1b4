"""Makes what the embedded model learns from: listed packages and Python's standard library, cleaned.

    python scripts/embedded_corpus.py collect   --out out/corpus    # download, check licences, clean, write the text
    python scripts/embedded_corpus.py tokenizer --out out/corpus    # a tokenizer trained on it, beside the shipped one
    python scripts/embedded_corpus.py tokens    --out out/corpus    # its token ids, packed: what the training reads
    python scripts/embedded_corpus.py pack      --out out/corpus    # corpus.tar.xz, for a machine without a network

    tar -xJf corpus.tar.xz -C out                                   # there: out/corpus/train, held-out and corpus.json

The list with versions, licences and hashes is recipes/embedded-corpus.toml. Wheels are unpacked, never installed:
nothing of a package runs. The text is what `engine train` would learn of it: the same filters, masked secrets, no
duplicates, no near-duplicates; a file that is almost the same as a held-out one is left out of the training side.
Beyond that, a file is left out that does not parse, or that is mostly a table of numbers or of long strings.
"""

from __future__ import annotations

import argparse
import email.message
import email.parser
import email.policy
import hashlib
import io
import json
import lzma
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine.assets import asset
from engine.config import DataSection
from engine.data.documents import edited
from engine.data.reading import Reading, read
from engine.data.sources import open_sources
from engine.data.syntax import parser_of
from engine.tokenization.encoder import demo_encoder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PERMISSIVE = {"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "MIT", "PSF-2.0", "Zlib"}
SPOKEN = {
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "mit license": "MIT",
    "python software foundation license": "LicenseRef-PSF-based",
}
"""What metadata says in words, before there were licence expressions."""
REVIEWED = {
    "LicenseRef-PSF-based": "matplotlib's own licence: the PSF's, with other names",
    "LicenseRef-Biopython-License-Agreement": "a permissive licence like the historical permission notice",
}
"""Licences without an SPDX identifier that were read and are permissive."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One entry of the list."""

    name: str
    version: str
    licence: str
    sha256: str
    held_out: bool = False

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.version}"


def load_list(path: Path) -> tuple[dict, list[Package]]:
    listed = tomllib.loads(path.read_text(encoding="utf-8"))
    return listed, [Package(**entry) for entry in listed.pop("package")]


# --- collecting --------------------------------------------------------------------------------------------


def download(listed: dict, packages: list[Package], folder: Path) -> dict[str, Path]:
    """The wheel of each package by name, after its hash was compared."""
    folder.mkdir(parents=True, exist_ok=True)
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in packages))
    platforms = [option for name in listed["platforms"] for option in ("--platform", name)]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
            *("--require-hashes", "--python-version", listed["python"], *platforms),
            *("--dest", str(folder), "--requirement", str(requirements)),
        ],
        check=True,
    )
    by_hash = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in folder.glob("*.whl")}
    return {package.name: by_hash[package.sha256] for package in packages}


def stated_licences(metadata: email.message.EmailMessage) -> set[str]:
    """The licences that a package's metadata states, as identifiers."""
    words = [str(metadata.get("License") or "").strip().splitlines()[:1]]
    words.append([c.rpartition("::")[2].strip() for c in metadata.get_all("Classifier", []) if "License ::" in c])
    stated = {word for group in words for word in group}
    return {SPOKEN.get(word.lower(), word) for word in stated} | {str(metadata.get("License-Expression") or "")} - {""}


def check_licence(package: Package, wheel: zipfile.ZipFile) -> None:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
    metadata = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(wheel.read(name))
    stated = stated_licences(metadata)
    if package.licence not in stated:
        raise SystemExit(f"{package.folder}: listed as {package.licence}, but its metadata says {sorted(stated)}")
    parts = set(package.licence.replace(" OR ", " AND ").split(" AND "))
    if not parts <= PERMISSIVE | set(REVIEWED):
        raise SystemExit(f"{package.folder}: {sorted(parts - PERMISSIVE)} is not a licence known to be permissive")


def extract(package: Package, wheel: zipfile.ZipFile, folder: Path, most_bytes: int) -> None:
    """The Python files of a wheel, at most so many bytes of them, chosen by a hash of their paths."""
    found = [info for info in wheel.infolist() if info.filename.endswith(".py") and info.file_size]
    found.sort(key=lambda info: hashlib.sha256(info.filename.encode()).digest())
    left = most_bytes
    for info in found:
        path = PurePosixPath(info.filename)
        if info.file_size > left or path.is_absolute() or ".." in path.parts:
            continue
        left -= info.file_size
        target = folder / package.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(wheel.read(info))


def extract_standard_library(folder: Path) -> str:
    """The running Python's own library, with its tests; returns its folder's name."""
    name = f"python-{platform.python_version()}"
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        inner = path.relative_to(library)
        if not {"site-packages", "lib2to3", "pydoc_data"} & set(inner.parts):
            target = folder / name / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return name


def clean(raw: Path, out: Path) -> tuple[Reading, dict[str, dict[str, Counter]]]:
    """Writes what the engine keeps of raw/. Held-out files come first, and so keep their twins out of the others."""
    # A tenth held out or a hundredth: here it only has to be something, both sides are written.
    data = DataSection(repositories=[str(raw / "held-out"), str(raw / "train")], order="path", documents="file")
    counts: dict[str, dict[str, Counter]] = {"held-out": {}, "train": {}}
    with open_sources(data) as sources:
        reading = read(sources.collection, data, sources.texts, report)
        for item in reading.files:
            document = sources.texts.read(item.file)
            if isinstance(document, str):
                raise SystemExit(f"{item.file.path} changed while it was read")
            text = edited(document.text, item.edits)
            side = item.file.repository.name
            if (flaw := flaw_of(text)) is not None:
                reading.skipped[flaw] += 1
                continue
            target = out / side / item.file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8", newline="")
            package = counts[side].setdefault(item.file.path.parts[0], Counter())
            package.update(files=1, bytes=len(text.encode()))
    return reading, counts


def flaw_of(text: str) -> str | None:
    """Why a file teaches little about writing Python; None where nothing speaks against it."""
    source = text.encode("utf-8", "replace")
    signs = np.frombuffer(source, dtype=np.uint8)
    visible = max(1, np.count_nonzero(signs > ord(" ")))
    lines = source.split(b"\n")
    if np.count_nonzero((signs >= ord("0")) & (signs <= ord("9"))) > 0.2 * visible:
        return "numbers"
    if max(map(len, lines)) > 1000 or len(source) > 80 * len(lines):
        return "long lines"
    if np.count_nonzero(signs >= 0x80) > 0.1 * visible:
        return "other scripts"
    return "does not parse" if parser_of("Python").parse(source).root_node.has_error else None


def report(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:,} of {total:,} {what}   ", end="", file=sys.stderr, flush=True)


def collect(options: argparse.Namespace) -> None:
    listed, packages = load_list(options.list)
    wheels = download(listed, packages, options.out / "packages")
    raw = options.out / "raw"
    for folder in (raw, options.out / "train", options.out / "held-out"):
        shutil.rmtree(folder, ignore_errors=True)
    for package in packages:
        with zipfile.ZipFile(wheels[package.name]) as wheel:
            check_licence(package, wheel)
            extract(package, wheel, raw / ("held-out" if package.held_out else "train"), listed["most_bytes"])
    library = extract_standard_library(raw / "train")
    reading, counts = clean(raw, options.out)
    shutil.rmtree(raw)
    licences = {package.folder: package.licence for package in packages} | {library: "PSF-2.0"}
    table = {
        side: {name: {**counted, "licence": licences[name]} for name, counted in sorted(found.items())}
        for side, found in counts.items()
    }
    summary = {"left_out": dict(reading.skipped), "secrets_masked": len(reading.secrets), **table}
    (options.out / "corpus.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for side, found in table.items():
        size, files = sum(c["bytes"] for c in found.values()), sum(c["files"] for c in found.values())
        print(f"{side}: {len(found)} packages, {files:,} files, {size / 1e6:,.1f} MB")
    print(f"left out: {dict(reading.skipped)}; {len(reading.secrets)} secrets masked")


# --- tokens ------------------------------------------------------------------------------------------------


def texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        yield path.read_text(encoding="utf-8")


def tokenizer(options: argparse.Namespace) -> None:
    """Trains one on every file of the training side, and compares it with the shipped one on the held-out packages."""
    from demo_tokenizer import save, train
    from tokenizers import Tokenizer

    made = train(sorted((options.out / "train").rglob("*.py")))
    digest = hashlib.sha256(save(made, options.out / "tokenizer").encode()).hexdigest()
    held_out = list(texts(options.out / "held-out"))
    size = sum(len(text.encode()) for text in held_out)
    shipped = Tokenizer.from_file(str(asset("demo-model", "tokenizer.json")))
    for name, one in (("shipped", shipped), ("trained on this corpus", made)):
        count = sum(len(encoding.ids) for encoding in one.encode_batch_fast(held_out, add_special_tokens=False))
        print(f"{name}: {size / count:.3f} bytes a token over {size:,} held-out bytes")
    print(f"sha256 {digest}")


HELD_OUT = (64, 8193)
"""Windows of the held-out packages, and their tokens: one more than the context, for what each predicts."""
TOGETHER = 500
"""Files that are encoded together."""


def encode(folder: Path) -> Iterator[np.ndarray]:
    """The token ids of each file, package by package, with its path line and end token as the engine has them."""
    encoder = demo_encoder()
    for some in batched(sorted(folder.rglob("*.py")), TOGETHER):
        # A path within the package, as in a user's repository.
        named = [(path.relative_to(folder).parts[1:], path.read_text(encoding="utf-8")) for path in some]
        for ids in encoder.encode_documents([("/".join(parts), text) for parts, text in named]):
            yield ids.astype("<u2")


def batched(paths: list[Path], size: int) -> Iterator[list[Path]]:
    for first in range(0, len(paths), size):
        yield paths[first : first + size]


def tokens(options: argparse.Namespace) -> None:
    """Writes tokens.xz, ids of the training side and windows of the held-out one, and tokens.json about them."""
    encoder = demo_encoder()
    train = np.concatenate(list(encode(options.out / "train")))
    held_out = np.concatenate(list(encode(options.out / "held-out")))
    windows, length = HELD_OUT
    starts = np.linspace(0, len(held_out) - length, windows).astype(np.int64)
    scored = np.stack([held_out[start : start + length] for start in starts])
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 28, "lc": 0, "lp": 1, "pb": 1}]
    packed = lzma.compress(train.tobytes() + scored.tobytes(), format=lzma.FORMAT_XZ, filters=filters)
    (options.out / "tokens.xz").write_bytes(packed)
    fim = encoder.fim
    assert fim is not None
    about = {
        "tokens": len(train),
        "held_out": HELD_OUT,
        "held_out_tokens": len(held_out),
        "end": encoder.end,
        "fim": [fim.prefix, fim.suffix, fim.middle],
        "line_ends": np.flatnonzero(encoder.newlines).tolist(),
        "tokenizer": encoder.fingerprint,
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    (options.out / "tokens.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    print(f"{len(train):,} tokens to train on, {len(held_out):,} held out; {len(packed) / 2**20:.1f} MiB packed")


# --- travelling --------------------------------------------------------------------------------------------


def pack(options: argparse.Namespace) -> None:
    """One archive of the text. xz with a window as large as the corpus: packages repeat themselves far apart."""
    target = options.out / "corpus.tar.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 28}]
    with (
        lzma.open(target, "wb", format=lzma.FORMAT_XZ, filters=filters) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in _packed_files(options.out):
            content = path.read_bytes()
            info = tarfile.TarInfo(str(PurePosixPath("corpus") / path.relative_to(options.out)))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    print(f"{target}: {target.stat().st_size / 1e6:,.1f} MB, sha256 {digest}")


def _packed_files(out: Path) -> Iterator[Path]:
    yield out / "corpus.json"
    for side in ("train", "held-out"):
        yield from sorted((out / side).rglob("*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collect", "tokenizer", "tokens", "pack"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--list", type=Path, default=ROOT / "recipes" / "embedded-corpus.toml")
    options = parser.parse_args()
    {"collect": collect, "tokenizer": tokenizer, "tokens": tokens, "pack": pack}[options.what](options)


if __name__ == "__main__":
    main()
