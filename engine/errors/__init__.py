"""Declares every user-facing error with its code, sentence, remedy and exit code; the modules here do so by subject.

    usage         the command line, configuration files, the program itself
    data          repositories, data sets, conversations, chat templates
    model         the base model, its tokenizer, precision and device
    planning      what fits: cards, tiers, step layouts, optimizations
    training      a run in training; distributed: its ranks
    runs          run directories and their results
    export, generation

An error is declared once, as an `ErrorKind`, and raised by calling it::

    raise REPOSITORY_MISSING(path=path)

The same declaration feeds the command line, the field beside which the wizard shows it, and the
troubleshooting page. Exit codes follow docs/configuration.md: 2 wrong usage or configuration, 3 does not fit
or pre-flight failed, 4 training failed, 130 interrupted.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

USAGE = 2
DOES_NOT_FIT = 3
TRAINING_FAILED = 4
INTERRUPTED = 130


class EliteError(Exception):
    """A user-facing error, shown as one line with the problem, its place and the remedy.

    Attributes:
        kind: The declaration that this error is an instance of.
        message: The sentence with its values filled in.
        remedy: The remedy with its values filled in.
        field: Dotted RunConfig path that the error is about ("data.repositories"), or "" for none.
        values: Template values by name, as shown.
    """

    def __init__(self, kind: ErrorKind, message: str, remedy: str, values: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.values = values or {}
        self.kind = kind
        self.message = message
        self.remedy = remedy

    @property
    def code(self) -> str:
        """Stable identifier, such as "repository-missing"."""
        return self.kind.code

    @property
    def exit_code(self) -> int:
        """Process exit status."""
        return self.kind.exit_code

    @property
    def field(self) -> str:
        """RunConfig field that forms show the error beside, "" for none."""
        return self.kind.field

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


@dataclass(frozen=True)
class ErrorKind:
    """Declaration of one error. A call fills the templates by `str.format` with its keywords."""

    code: str
    message: str
    remedy: str
    exit_code: int = USAGE
    field: str = ""

    def __call__(self, **values: Any) -> EliteError:
        """Returns the error, ready to be raised."""
        shown = {name: _shortened(one_line(value)) for name, value in values.items()}
        return EliteError(self, self.message.format(**shown), self.remedy.format(**shown), shown)


def one_line(value: object) -> str:
    """Escapes newlines and terminal escapes in untrusted text (file names, library messages, logs)."""
    text = str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_LONGEST, _FIRST, _LAST = 2_000, 1_200, 300
"""Characters of a value that an error shows whole, and of a longer one's beginning and end."""


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_FIRST]} … ({len(text):,} characters) … {text[-_LAST:]}"


_KINDS: dict[str, ErrorKind] = {}


def declare(code: str, message: str, remedy: str, exit_code: int = USAGE, about: str = "") -> ErrorKind:
    """Declares an error.

    Args:
        code: Stable identifier.
        message: Template of the problem and its place.
        remedy: Template of the remedy.
        exit_code: Process exit status.
        about: RunConfig field that forms show the error beside; "" for none.

    Raises:
        ValueError: the code is declared already.
    """
    if code in _KINDS:
        raise ValueError(f"error code {code!r} is declared twice")
    _KINDS[code] = ErrorKind(code, message, remedy, exit_code, about)
    return _KINDS[code]


def all_kinds() -> list[ErrorKind]:
    """Imports every module here and returns what they declare, for the troubleshooting page."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return list(_KINDS.values())
