"""Why a file is left out: by its name, its size, or its first bytes. Every reason is counted and shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from engine.data.charset import MARKS
from engine.data.generated import is_generated
from engine.data.languages import BULKY_AS_DATA, NOTEBOOK

HEAD_BYTES = 16_384
"Bytes at the start of a file that its kind is told from."
BULKY_BYTES = 32_768
"JSON, XML and plain text above this are data, whatever they are called."

REASONS: Mapping[str, str] = {
    "vendored": "other people's code that was copied in: node_modules, vendor, site-packages and the like",
    "build output": "made by a build or a tool: __pycache__, *.egg-info, .next and the like",
    "lock": "exact versions written by a package manager",
    "generated": "marked as generated, or named like it; documentation that a tool wrote",
    "documentation": "marked as documentation by .gitattributes",
    "minified": "not laid out for people to read",
    "binary": "not text",
    "secrets": "named like a store of credentials, or, with data.secrets=skip, holding any",
    "not searched": "text that the search for secrets did not get through in its time",
    "data": "tables, long JSON or XML, translations and other data",
    "encoded": "hardly anything but base64, hexadecimal digits or tables of numbers",
    "pointer": "stands for a file that Git LFS or git-annex keeps elsewhere",
    "conflict": "holds the marks of a merge that was not finished",
    "notebook": "Jupyter notebooks, with data.notebooks=skip, or such as cannot be read",
    "not source": "no language is known for it",
    "too large": "above data.max_file_bytes",
    "empty": "nothing but white space",
    "encoding": "text in an encoding that cannot be told",
    "duplicate": "the same bytes as another file",
    "near-duplicate": "85% of the lines of another file",
    "symlink": "a link; what it points to is read under its own name",
    "special": "a pipe, socket or device",
    "submodule": "another repository inside this one; name it with a --repo of its own",
    "unreadable": "could not be opened",
    "missing": "tracked by git, but not in the folder",
    "not rows": "files in a data set's folder that are of no kind that is read, or that its state does not name",
    "not a row": "lines or elements of a data set that are no JSON object",
    "another column": "rows of a data set whose text stands in another column than that of its first row",
    "no text": "rows of a data set with nothing in its column",
    "not text": "rows of a data set whose column holds a number, a list or the like",
    "no conversation": "rows of a data set of conversations that hold none",
    "no messages": "conversations without a message",
    "no answer": "conversations in which no assistant speaks",
    "empty answer": "conversations with an answer that says nothing and calls nothing",
    "bad message": "conversations with a message that is no object, has no role, a value that is no JSON, or flags "
    "that are neither 0 nor 1",
    "bad weight": "rows or messages whose weight is neither 0 nor a number from 1e-6 to 1e6",
    "bad role": "conversations with a role that is not known",
    "bad content": "conversations with pictures, numbers or nothing in place of text",
    "bad tool call": "conversations with a call that names no function, or whose arguments are no JSON object",
    "bad tools": "conversations with a definition of a tool that names no function",
    "no pair": "rows of a data set of preferences without a chosen and a rejected answer that differ",
    "not trained": "conversations of which no answer is to be trained on",
    "template": "conversations that the chat template refuses",
    "not split": "conversations whose answers cannot be told in what the chat template makes of them",
    "overlong": "conversations longer than the context",
    "cut off": "rows of a JSON array from where it is no JSON any more, counted as one",
    "held out": "commits of which nothing is left without held-out files and those that are not learnt",
}
"Every reason with its explanation, in the order in which a file is tried."

PROBLEMS = (
    "not a row",
    "another column",
    "no text",
    "not text",
    "cut off",
    "no conversation",
    "no messages",
    "no answer",
    "empty answer",
    "bad message",
    "bad weight",
    "bad role",
    "bad content",
    "bad tool call",
    "bad tools",
    "not trained",
    "template",
    "not split",
)
"Reasons of rows, which are shown with their numbers and what is wrong with them."
SWITCHABLE = (
    "vendored",
    "build output",
    "lock",
    "generated",
    "minified",
    "data",
    "duplicate",
    "documentation",
    "encoded",
)
"Reasons that data.include switches off."
KEPT_BY: Mapping[str, str] = {
    **{reason: f"data.include=[{reason}]" for reason in SWITCHABLE},
    "notebook": "data.notebooks=cells",
    "secrets": "data.secrets=keep",
    "not searched": "data.secrets=keep",
    "not source": "data.extensions=[ENDING=LANGUAGE]",
    "too large": "data.max_file_bytes",
    "near-duplicate": "data.near_duplicates=keep",
    "submodule": "a --repo of its own",
    "overlong": "data.overlong=split",
    "another column": "data.dataset_column names the other one",
}
"Reason → the setting that keeps such files."


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VENDORED = _words(
    """
    node_modules bower_components jspm_packages vendor vendored _vendor third_party third-party thirdparty 3rdparty
    site-packages dist-packages .venv venv virtualenv .tox .nox .eggs Pods Carthage .yarn .pnpm-store
    """
)
_BUILD_OUTPUT = _words(
    """
    __pycache__ .mypy_cache .pytest_cache .ruff_cache .hypothesis .ipynb_checkpoints .next .nuxt .svelte-kit
    .gradle .terraform .parcel-cache .turbo htmlcov .nyc_output DerivedData .dart_tool .git .hg .svn .jj
    """
)
_LOCKS = _words(
    """
    package-lock.json npm-shrinkwrap.json yarn.lock pnpm-lock.yaml bun.lock poetry.lock pdm.lock uv.lock
    pylock.toml Pipfile.lock Cargo.lock Gemfile.lock composer.lock go.sum mix.lock flake.lock pubspec.lock
    Podfile.lock Package.resolved packages.lock.json gradle.lockfile deno.lock conan.lock
    """
)
_GENERATED_NAMES = re.compile(
    r"(_pb2(_grpc)?\.pyi?|_pb\.(js|d\.ts|rb)|\.pb\.(go|cc|h|c|dart|swift|rs)|\.pb\.\w+\.go|\.grpc\.swift|_generated\.\w+"
    r"|\.generated\.\w+|\.g\.(dart|cs|cpp|h|kt|i\.cs)|\.freezed\.dart|\.designer\.(cs|vb)|_string\.go|\.d\.ts\.map)$"
    r"|^zz_generated",
    re.IGNORECASE,
)
_MINIFIED_NAMES = re.compile(r"([.-]min\.(js|css|mjs|html)|\.bundle\.js|\.map)$", re.IGNORECASE)
_DATA = _words(
    """
    csv tsv jsonl ndjson geojson parquet arrow feather avro orc npy npz pkl pickle h5 hdf5 mat rds sav dta sqlite
    sqlite3 db po pot srt vtt dbf shp fasta fastq vcf pdb log svg bib dat safetensors gguf onnx pt pth
    ckpt tfrecord snap har eml mbox
    """
)
_BINARY = _words(
    """
    png jpg jpeg gif bmp ico webp tif tiff psd avif mp3 mp4 wav ogg flac avi mov mkv webm ttf otf woff woff2 eot
    pdf doc docx xls xlsx ppt pptx odt zip gz tgz bz2 xz zst 7z rar tar jar war ear whl egg deb rpm exe dll so dylib
    a o obj lib pyc pyo pyd class wasm bin iso img dmg swf
    """
)
_LONG_LINES_ARE_PROSE = frozenset({"Markdown", "reStructuredText", "Text", "TeX", NOTEBOOK})
_POINTERS = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
    b"/annex/objects/",
)
_SECRET_FILES = re.compile(
    r"^(?:\.env(?:\.(?!example|sample|template|dist|defaults?)[\w-]+)*|\.netrc|_netrc|\.pgpass|\.pypirc|\.npmrc|\.htpasswd"
    r"|\.git-credentials|\.dockercfg|id_(?:rsa|dsa|ecdsa|ed25519)|[\w.-]+\.(?:pem|key|ppk|p12|pfx|jks|keystore|kdbx|gpg)"
    r"|[\w.-]*\.tfstate(?:\.backup)?|credentials|client_secrets?(?:_[\w.-]*)?\.json|service[_-]account[\w.-]*\.json"
    r"|secrets?\.(?:ya?ml|json|toml|ini))$",
    re.IGNORECASE,
)
_ARMOR = b"-----BEGIN "
"""Keys that are written as text begin with it (RFC 7468; RFC 9580, section 6.2). A book about them shows it further
down."""
_LONGEST_POINTER = 1024
_MINIFIED_MEAN_LINE = 300
"Bytes a line, on average; people write about 35."


def is_secret_file(path: PurePosixPath) -> bool:
    """Tells whether a file's name says that it holds credentials: .env, id_rsa, *.pem and the like."""
    return _SECRET_FILES.match(path.name) is not None


def reasons_by_path(path: PurePosixPath) -> Iterator[str]:
    """The reasons to leave out a file that its path within the repository tells, the first one first."""
    for folder in path.parts[:-1]:
        if folder in _VENDORED:
            yield "vendored"
        if folder in _BUILD_OUTPUT or folder.endswith((".egg-info", ".dist-info")):
            yield "build output"
    name = path.name
    if name in _LOCKS:
        yield "lock"
    if is_secret_file(path):
        yield "secrets"
    if _MINIFIED_NAMES.search(name):
        yield "minified"
    if _GENERATED_NAMES.search(name):
        yield "generated"
    stem, dot, extension = name.rpartition(".")
    if dot and stem:
        extension = extension.lower()
        if extension in _BINARY:
            yield "binary"
        if extension in _DATA:
            yield "data"


def reasons_by_size(size: int, language: str | None, max_file_bytes: int) -> Iterator[str]:
    """The reasons that its size in bytes tells."""
    if size == 0:
        yield "empty"
    if size > max_file_bytes:
        yield "too large"
    if language in BULKY_AS_DATA and size > BULKY_BYTES:
        yield "data"


def is_binary(content: bytes) -> bool:
    """Whether bytes are not text: they hold a NUL and do not start with the mark of UTF-16 or UTF-32."""
    return b"\0" in content and not content.startswith(MARKS)


def reasons_by_head(head: bytes, language: str, name: str = "") -> Iterator[str]:
    """The reasons that a text file's first HEAD_BYTES tell; `name` is its base name."""
    if not head.strip():
        yield "empty" if len(head) < HEAD_BYTES else "data"
        return
    if head.startswith(_POINTERS) and len(head) < _LONGEST_POINTER:
        yield "pointer"
    # The ending alone says nothing: AsciiDoc's chapters and AGS' scripts have it too.
    if name.lower().endswith(".asc") and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_ARMOR):
        yield "secrets"
    if is_generated(head, language, name):
        yield "generated"
    if language not in _LONG_LINES_ARE_PROSE and len(head) > 2 * _MINIFIED_MEAN_LINE:
        lines = head.count(b"\n") + (head.count(b"\r") if b"\n" not in head else 0) + 1
        if len(head) / lines > _MINIFIED_MEAN_LINE:
            yield "minified"
