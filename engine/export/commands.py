"""Lists the shell commands that use an export, by the programs it was written for."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.export.source import Source

BASE = "BASE.gguf"
"""Stands for the file of an adapter's base, which `--to gguf-base` writes."""


def commands(source: Source, target: str, folder: Path, files: list[str]) -> tuple[str, ...]:
    """Returns lines for a shell, which work from any folder.

    Ollama takes the paths of a Modelfile from the Modelfile's own folder.

    Args:
        source: The run.
        target: adapter, merged, gguf, gguf-adapter or gguf-base.
        folder: Absolute path of the export.
        files: Names of its files.
    """
    place = quoted(str(folder))
    file = quoted(str(folder / next((name for name in files if name.endswith(".gguf")), "")))
    if target == "gguf":
        create = f"ollama create {source.name} -f {quoted(str(folder / 'Modelfile'))}"
        return f"{create} && ollama run {source.name}", f"llama-server -m {file}"
    if target == "gguf-adapter":
        return (f"llama-server -m {BASE} --lora {file}",)
    if target == "gguf-base":
        return (f"llama-server -m {file} --lora {source.name}-lora.gguf",)
    if target == "merged":
        return (f"vllm serve {place}",)
    return ()


def quoted(path: str) -> str:
    """Quotes a path for a POSIX shell, in printable characters alone: others would be escaped on the terminal."""
    if path.isprintable():
        return shlex.quote(path)
    octal = "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 0x80) or byte in b"/._- " else f"\\{byte:03o}"
        for byte in os.fsencode(path)
    )
    return f"\"$(printf '{octal}')\""
