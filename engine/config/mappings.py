"""Converts configurations from and to nested mappings, YAML files and `--set` texts."""

from __future__ import annotations

import os
import re
import select
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from engine.config.problems import find_problems
from engine.config.run import RunConfig, field_spec
from engine.errors.usage import CONFIG_INVALID, CONFIG_UNREADABLE, OVERRIDE_MALFORMED
from engine.quantities import format_seconds

if TYPE_CHECKING:
    from pathlib import Path

_CONVERTING = threading.Lock()
"""msgspec 0.22 reads a Struct's fields on its first conversion, and crashes the process if two threads do so."""

_MOST_BYTES = 1 << 20
"Of a configuration."
_FIRST_BYTE_S = 5.0
_LONGEST_NUMBER = 1000
"Characters of a whole number; Python reads no more than 4,300 digits."


def from_mapping(data: Any, source: str = "configuration") -> RunConfig:
    """Builds a RunConfig from nested mappings.

    Args:
        data: Section name → field name → value; absent ones take their defaults.
        source: Named in the error: a file's path, "--set", "form".

    Raises:
        EliteError: CONFIG_INVALID with the first problem (and how many more there are).
    """
    problems = find_problems(data)
    if problems:
        first, more = problems[0], len(problems) - 1
        remedy = first.remedy + (f" ({more} more problem{'s' if more > 1 else ''} after this one)" if more else "")
        raise CONFIG_INVALID(source=source, field=first.field, problem=first.problem, remedy=remedy)
    with _CONVERTING:
        return msgspec.convert(data, RunConfig)


def to_mapping(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Returns the nested mappings that `from_mapping` takes."""
    mapping: dict[str, dict[str, Any]] = msgspec.to_builtins(config)
    return mapping


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads numbers as YAML 1.2 does, keeps dates as text, and refuses a key that is there twice.

    YAML 1.1 makes 90 of 1:30, 8 of 010, and text of 2e-4.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See SafeLoader."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See SafeLoader, whose constructors raise whatever they meet for `!!bool maybe` and `!!int ''`."""
        try:
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _LONGEST_NUMBER:
                return str(node.value)  # text, which is no number of any field
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, LookupError) as error:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            problem = f"{str(node.value)[:40]!r} cannot be read as {tag}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)",
    "tag:yaml.org,2002:float": r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
}
_AS_TEXT = {*_NUMBERS, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag not in _AS_TEXT]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _form in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_form})$"), list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which is a number in YAML 1.1 or 1.2, such as a model's name 1e5."""


_Dumper.yaml_implicit_resolvers = {
    first: _Loader.yaml_implicit_resolvers.get(first, []) + forms
    for first, forms in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def parse_value(text: str) -> Any:
    """Parses one YAML value, as typed after `--set KEY=` or in a form field.

    Raises:
        yaml.YAMLError: the text is not YAML, or is nested too deeply.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def load(path: Path) -> RunConfig:
    """Reads a RunConfig from a YAML file.

    Raises:
        EliteError: CONFIG_UNREADABLE or CONFIG_INVALID.
    """
    return from_mapping(load_mapping(path), source=str(path))


def load_mapping(path: Path) -> dict[str, Any]:
    """Reads nested mappings from a YAML file, without checking them against RunConfig.

    Raises:
        EliteError: CONFIG_UNREADABLE.
    """
    try:
        data = parse_value(_read(path))
    except OSError as error:
        raise CONFIG_UNREADABLE(path=path, problem=error.strerror or error) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise CONFIG_UNREADABLE(path=path, problem=_first_line(error)) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CONFIG_UNREADABLE(path=path, problem="its top level is not a mapping of sections")
    return data


def _read(path: Path) -> str:
    # What a person names may be a pipe, as in --config <(...): it is read, but not for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        # A FIFO with a name may have no writer; the pipe of <(...) has one, however long it takes.
        if path.resolve().is_fifo() and not select.select([file], [], [], _FIRST_BYTE_S)[0]:
            raise ValueError(f"nothing was written to this FIFO within {format_seconds(_FIRST_BYTE_S)}")
        os.set_blocking(file.fileno(), True)
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return data.decode("utf-8")


def _first_line(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8 text"
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + str(getattr(error, "problem", None) or error).splitlines()[0]


def apply_override(data: dict[str, Any], text: str, *, option: str = "--set", section: str = "") -> None:
    """Sets one field of nested mappings from "section.field=value", in place.

    Args:
        data: Sections of a configuration.
        text: The field and its value.
        option: Where it was written, for messages.
        section: The section that every field of the option is of; `text` is then "field=value".

    Raises:
        EliteError: OVERRIDE_MALFORMED.
    """
    form, example = ("FIELD=VALUE", "hidden_home=disk") if section else ("KEY=VALUE", "training.epochs=2")
    malformed = OVERRIDE_MALFORMED(option=option, text=text, form=form, example=example)
    path, equals, value = text.partition("=")
    section, dot, name = (section, ".", path.strip()) if section else path.strip().partition(".")
    if not (equals and dot and section and name):
        raise malformed
    try:
        parsed = parse_value(value)
    except (yaml.YAMLError, ValueError) as error:
        raise malformed from error
    place = data.setdefault(section, {})
    if not isinstance(place, dict):
        place = data[section] = {}
    place[name] = parsed


def to_yaml(config: RunConfig) -> str:
    """Renders the configuration as YAML, each field under a comment with its documentation."""
    lines = ["# Elite TUI run configuration. `engine train --config FILE` repeats this run."]
    mapping = to_mapping(config)
    for section, values in mapping.items():
        lines += ["", f"{section}:"]
        for name, value in values.items():
            lines.append(f"  # {field_spec(f'{section}.{name}').description}")
            # A line break of Unicode inside quotes would be read as a space: it is escaped.
            plain = all(str(item).isprintable() for item in (value if isinstance(value, list) else [value]))
            text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=plain, width=float("inf"))
            lines.append(f"  {name}: {text.removesuffix(chr(10)).removesuffix('...').rstrip()}")
    return "\n".join(lines) + "\n"
