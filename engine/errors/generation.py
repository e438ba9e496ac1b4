"""Declares errors of generating text and of `engine serve`."""

from __future__ import annotations

from engine.errors import declare

GENERATION_UNKNOWN = declare(
    "generation-unknown",
    "no run and no model is called {reference}",
    "`engine runs` lists the runs, `engine plan` the models; paths to their folders work too",
)
PROMPT_MISSING = declare("prompt-missing", "no prompt was given", "pass --prompt TEXT, or --file PATH[:LINE]")
PROMPT_UNREADABLE = declare("prompt-unreadable", "--file {path}: {problem}", "name a text file, or file:line")
PROMPT_LINE = declare(
    "prompt-line",
    "--file {path}: no line {line}, the last is line {last}",
    "name a line from 1 to {last}, or leave :{line} out to go on after the end",
)
REPLAY_UNAVAILABLE = declare(
    "replay-unavailable",
    "{model} ends every text before its first word, so there is nothing of its own to replay",
    "use another --seed or --template none, or train without replay",
)
SAMPLING_INVALID = declare(
    "sampling-invalid",
    "{problem}",
    "tokens are at least 1, temperature 0 to 10, top-p above 0 and at most 1, seed at least 0",
)
FILL_UNAVAILABLE = declare(
    "fill-unavailable",
    "the tokenizer of {name} has no tokens for fill-in-the-middle",
    "leave --fill out: the model then continues the text before it",
)
SERVE_LIBRARY = declare(
    "serve-library",
    "engine serve needs starlette and uvicorn, which are not installed",
    "install elite-tui[serve]",
)
SERVE_PORT = declare(
    "serve-port",
    "cannot listen on port {port} of {host}: {problem}",
    "pass another --port, or 0 for any free one",
)
SERVE_OPEN = declare(
    "serve-open",
    "--host {host} can be reached by other machines, and --no-token lets all of them in",
    "leave out --no-token, or --host",
)
SERVE_INVALID = declare("serve-invalid", "{problem}", "`engine serve --help` lists the options")
SIDE_MISSING = declare(
    "side-missing", "{name} has no {side} model: it is a base model alone", "name a run to compare two models"
)
