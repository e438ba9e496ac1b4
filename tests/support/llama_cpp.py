"""Runs GGUF files in llama.cpp itself, by the xllamacpp package: the program that they are written for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xllamacpp


def open_server(file: Path, adapter: Path | None = None) -> Any:
    """Starts llama.cpp's server in this process, on a free port of loopback."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = 512
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 2
    parameters.warmup = False
    parameters.verbosity = -1
    if adapter is not None:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    return xllamacpp.Server(parameters)


@contextmanager
def llama_cpp(file: Path, vocabulary: int, adapter: Path | None = None) -> Iterator[Any]:
    """Loads a model, and an adapter with it; yields a function from a prompt to the next token's log-probabilities.

    The function takes text or token ids, and returns an array of shape (vocabulary,).
    """
    server = open_server(file, adapter)

    def ask(prompt: str | list[int]) -> npt.NDArray[np.float64]:
        asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, "n_probs": vocabulary, "logprobs": vocabulary}
        told = server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = np.full(vocabulary, np.nan)
        for token in told:
            found[token["id"]] = token["logprob"]
        return found

    yield ask
