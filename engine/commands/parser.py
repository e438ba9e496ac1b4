"""An argparse parser that answers wrong usage as every other error: one line, exit status 2, JSON after `--json`."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from engine.commands.output import print_json
from engine.errors import EliteError
from engine.errors.usage import USAGE_INVALID

_MAY_BE_EMPTY = ("--model-name", "--prompt")
"""Options for which an empty value has a meaning. Elsewhere it is a shell's variable that is unset."""


class CommandParser(argparse.ArgumentParser):
    """Parser of a command or of its sub-commands.

    Attributes:
        commands: Parsers of the sub-commands, by name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands: dict[str, CommandParser] = {}
        self._as_json = False
        self._words: list[str] = []

    def parse_args(  # type: ignore[override]  # argparse's overloads say no more
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parses, and names the options nearest to those that the command does not know."""
        words = list(sys.argv[1:] if args is None else args)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            name = getattr(parsed, "command", None) or ""
            parser = self.commands.get(name, self)
            parser._as_json = self._as_json  # of all words, those before the command too
            parser.refuse(unknown, before=words[: words.index(name)] if name in words else ())
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See argparse."""
        self._words = words = list(sys.argv[1:] if args is None else args)
        options = words[: words.index("--")] if "--" in words else words
        self._as_json = any(len(word) > len("--") and "--json".startswith(word) for word in options)  # or its beginning
        return super().parse_known_args(words, namespace)

    def refuse(self, unknown: Sequence[str], before: Sequence[str] = ()) -> NoReturn:
        """Ends with the words that mean nothing here, and what the first of them may have meant.

        Args:
            unknown: The words.
            before: Words that stand before the command.
        """
        options = [option for action in self._actions for option in action.option_strings]
        first = unknown[0].partition("=")[0]
        near = nearest(first, options) if first.startswith("-") else ""
        if unknown[0] in before and first in options:
            near = f" ({first} follows the command)"
        self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")

    def error(self, message: str) -> NoReturn:
        """Ends with one line."""
        error = USAGE_INVALID(problem=message, command=self.prog)
        self.exit(report(error, as_json=self._as_json, program=self.prog.partition(" ")[0]))

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse drops the value of `--option=--`, and gives the option an unchecked empty list.
        if action.option_strings and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "expected one argument")
        # A command gets its own arguments too, which its parser looks at.
        checked = arg_strings[:1] if action.nargs == argparse.PARSER else arg_strings
        if "" in checked and not set(action.option_strings) & set(_MAY_BE_EMPTY):
            raise argparse.ArgumentError(action, "its value is empty (a variable that is unset?)")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            self._refuse_value_of_unknown(value, choices)
            near = _ELSEWHERE.get(value, nearest(value, choices)) if self.prog == "engine" else nearest(value, choices)
            raise argparse.ArgumentError(None, f"unknown command {value}{near}")
        raise argparse.ArgumentError(action, f"{value} is not one of {', '.join(choices)}")

    def _refuse_value_of_unknown(self, value: str, commands: Sequence[str]) -> None:
        """Names an unknown option instead, where its value was taken for a command."""
        place = self._words.index(value)
        known = ["--json", *(option for action in self._actions for option in action.option_strings)]
        for word in self._words[:place]:
            option = word.partition("=")[0]
            if not option.startswith("-") or any(name.startswith(option) for name in known):
                continue
            later = next((name for name in self._words[place + 1 :] if name in commands), None)
            near = nearest(option, known) if later is None else f" (options of {later} follow it)"
            raise argparse.ArgumentError(None, f"unrecognized arguments: {word}{near}")


_ELSEWHERE = {
    "monitor": " (`elite-tui monitor` shows runs, `engine attach` follows one)",
    "models": " (`engine plan --help` names the models, and `--model` takes one)",
}
"What people look for among the commands, and where it is."


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns " (did you mean X?)" for the known word that is most like another one, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def report(error: EliteError, *, as_json: bool, program: str = "engine") -> int:
    """Prints an error, as JSON on stdout too where that was asked for, and returns its exit status."""
    if as_json:
        print_json({"error": error.code, "message": error.message, "remedy": error.remedy})
    print(f"{program}: {error}", file=sys.stderr)  # noqa: T201
    return error.exit_code
