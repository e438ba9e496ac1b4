"""Runs GGUF files in llama.cpp itself, by the xllamacpp package: the program that they are written for."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_PROGRAM = """
import sys
import xllamacpp

file, *adapters = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path = file
parameters.n_ctx = 512
parameters.n_parallel = 1
parameters.cpuparams.n_threads = 2
parameters.warmup = False
parameters.verbosity = -1
parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0) for adapter in adapters]
server = xllamacpp.Server(parameters)
print("listens at", server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_server(file: Path, *adapters: Path) -> Iterator[Callable[..., Any]]:
    """Starts llama.cpp's server in a process of its own, on a free port of loopback; kills it at the end.

    Yields a function from a path, and a body if that is posted, to the server's answer.
    """
    # In this process, a server that is closed before it is idle waits for ever, with the interpreter's lock held.
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(file), *map(str, adapters)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        told = next((line for line in process.stdout if line.startswith("listens at ")), None)
        assert told is not None, f"the server ended with status {process.wait()}"
        address = told.split()[-1]

        def ask(path: str, body: object = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)

        yield ask
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def llama_cpp(file: Path, vocabulary: int, *adapters: Path) -> Iterator[Callable[..., npt.NDArray[np.float64]]]:
    """Loads a model, and adapters with it; yields a function from a prompt to the next token's log-probabilities.

    The function takes text or token ids, and returns an array of shape (vocabulary,).
    """
    with llama_server(file, *adapters) as ask:

        def chances(prompt: str | list[int]) -> npt.NDArray[np.float64]:
            asked = {
                "prompt": prompt,
                "max_tokens": 1,
                "temperature": 0.0,
                "n_probs": vocabulary,
                "logprobs": vocabulary,
            }
            told = ask("/v1/completions", asked)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            found = np.full(vocabulary, np.nan)
            for token in told:
                found[token["id"]] = token["logprob"]
            return found

        yield chances
