"""Declares errors of repositories, data sets, conversations and their chat templates."""

from __future__ import annotations

from engine.errors import DOES_NOT_FIT, INTERRUPTED, declare

MIXTURE_INVALID = declare("mixture-invalid", "data.mixture cannot be used: {problem}", "{remedy}")
REPOSITORY_UNSET = declare(
    "repository-unset",
    "no repository was named",
    "pass --repo DIR (the folder whose code to train on)",
    about="data.repositories",
)
REPOSITORY_MISSING = declare(
    "repository-missing",
    "repository {path} does not exist",
    "check the path",
    about="data.repositories",
)
REPOSITORY_REMOTE = declare(
    "repository-remote",
    "repository {path} is not on this machine",
    "clone it (git clone) and pass the clone's folder",
    about="data.repositories",
)
REPOSITORY_NOT_A_FOLDER = declare(
    "repository-not-a-folder",
    "repository {path} is not a folder",
    "pass the folder that holds the code",
    about="data.repositories",
)
REPOSITORY_BARE = declare(
    "repository-bare",
    "repository {path} holds git's own files and no checked-out ones",
    "check it out (git clone {path} FOLDER) and pass that folder",
    about="data.repositories",
)
REPOSITORY_UNREADABLE = declare(
    "repository-unreadable",
    "repository {path} cannot be read: {problem}",
    "grant yourself read access, or pass another folder",
    about="data.repositories",
)
REPOSITORY_EMPTY = declare(
    "repository-empty",
    "repository {path} holds no files",
    "pass a folder that holds source code",
    about="data.repositories",
)
REPOSITORY_NO_SOURCE = declare(
    "repository-no-source",
    "repository {path} holds no source code to train on ({skipped})",
    "pass a folder with text source files",
    about="data.repositories",
)
REPOSITORY_TOO_SMALL = declare(
    "repository-too-small",
    "repository {path} fills only {tokens} tokens in {files}, too few to train on and hold some back",
    "pass a larger repository, several --repo, or set data.held_out_fraction lower",
    about="data.repositories",
)
REPOSITORY_CHANGING = declare(
    "repository-changing",
    "files of repository {path} changed while they were read, three times",
    "try again when nothing writes there, or pass a copy",
    about="data.repositories",
)
DATA_SET_UNUSABLE = declare(
    "data-set-unusable",
    "data set {path} cannot be used: {problem}",
    "pass a .jsonl, .parquet or .arrow file, or a folder saved by datasets' save_to_disk",
    about="data.datasets",
)
DATA_SET_COLUMN = declare(
    "data-set-column",
    "data set {path} has no column {column}",
    "name one with --set data.dataset_column=NAME; it has {columns}",
    about="data.dataset_column",
)
DATA_SET_LIBRARY = declare(
    "data-set-library",
    "data set {path} needs pyarrow, which is not installed",
    "install elite-tui[datasets], or pass JSON Lines",
    about="data.datasets",
)
CONVERSATIONS_OVERLONG = declare(
    "conversations-overlong",
    "{longer} of {count} conversations are longer than the context of {context} tokens, the longest has {longest}",
    "{tier}, or say what is done with the longer ones: data.overlong=drop, cut-oldest-tool-output or split",
    about="data.overlong",
)
CHAT_TEMPLATE_MISSING = declare(
    "chat-template-missing",
    "the data hold conversations, but the model's tokenizer has no chat template",
    "name one with --set data.chat_template=plain (known: {known}), or a .jinja file",
    about="data.chat_template",
)
CHAT_TEMPLATE_UNUSABLE = declare(
    "chat-template-unusable",
    "the chat template {name} cannot be used: {problem}",
    "name another one with --set data.chat_template=NAME (known: {known}), or a .jinja file",
    about="data.chat_template",
)
FIM_UNAVAILABLE = declare(
    "fim-unavailable",
    "data.fim is {rate}, but the model's tokenizer has no tokens for fill-in-the-middle",
    "set data.fim=0, or choose a model that was trained with it (Qwen2.5-Coder, StarCoder2, CodeLlama, DeepSeek-Coder)",
    about="data.fim",
)
READING_STOPPED = declare(
    "reading-stopped", "the reading of the repository was stopped", "f5 goes on where it was", exit_code=INTERRUPTED
)
CACHE_UNWRITABLE = declare(
    "cache-unwritable",
    "the cache {path} cannot be written: {problem}",
    "set XDG_CACHE_HOME to another folder, or pass one with `engine data --out`",
)
CACHE_FULL = declare(
    "cache-full",
    "no space is left for tokens in the cache {path}",
    "free some space, set XDG_CACHE_HOME to another folder, or pass one with `engine data --out`",
    exit_code=DOES_NOT_FIT,
)
