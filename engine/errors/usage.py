"""Declares errors of the command line, of configuration files, and of the program itself."""

from __future__ import annotations

from engine.errors import TRAINING_FAILED, declare

USAGE_INVALID = declare("usage-invalid", "{problem}", "`{command} --help` lists what it takes")
STDOUT_UNWRITABLE = declare(
    "stdout-unwritable", "standard output cannot be written: {problem}", "send it to another disk or program"
)
CONFIG_INVALID = declare("config-invalid", "{source}: {field}: {problem}", "{remedy}")
CONFIG_UNREADABLE = declare(
    "config-unreadable",
    "{path}: cannot read this configuration: {problem}",
    "pass a YAML file written by engine or the wizard",
)
OVERRIDE_MALFORMED = declare(
    "override-malformed",
    "{option} {text}: not of the form {form}",
    "write for example {option} {example}",
)
WORKING_DIRECTORY_GONE = declare(
    "working-directory-gone",
    "the working directory has been deleted, or may not be read",
    "change to one that exists, for example: cd ~",
)
DATE_INVALID = declare(
    "date-invalid",
    "--{option} is {value}, which is no date",
    "write it as 2026-11-30",
)
SESSIONS_NONE = declare(
    "sessions-none",
    "there is no session to write: {problem}",
    "pass files of Claude Code, Codex, SWE-agent, mini-swe-agent or OpenHands, and options that choose some of them",
)
FILE_UNWRITABLE = declare("file-unwritable", "{path} cannot be written: {problem}", "name another with {option}")
INTERNAL = declare(
    "internal", "unexpected {kind}: {problem}", "please report this with {log}", exit_code=TRAINING_FAILED
)
