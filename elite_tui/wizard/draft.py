"""Holds the configuration that the user is typing, valid or not, and saves it so that closing loses nothing.

A plain nested mapping of the values that differ from the defaults. Text that cannot be parsed is kept as typed.
It shows as a problem of its field and is still there the next time. The draft also keeps the wizard's own
settings: the what-if machine, the theme, the view of a screen.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, get_args, get_origin
from urllib.parse import unquote

import yaml

from engine import config, regular_file
from engine.config.description import FieldSpec

FILE_NAME = "wizard.json"
PROJECT_FIELDS = {
    "data.repositories": "Repository",
    "model.name": "Base model",
    "output.directory": "Output folder",
    "output.model_name": "Name",
}
"The fields of the first screen, with their labels. Several repositories are separated by commas."
PATH_FIELDS = frozenset({"data.repositories", "data.datasets", "model.name", "output.directory"})
_KEPT = "wizard"
"Section of the file for settings outside the configuration."


def text_of(value: Any) -> str:
    """Formats a value for a form field; None is empty."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        items = [str(item) for item in value]
        if any("," in item or item != unquoted(item.strip()) for item in items):
            return yaml.safe_dump(items, default_flow_style=True, width=float("inf")).strip()
        return ", ".join(items)
    return yaml.safe_dump(value).splitlines()[0] if isinstance(value, bool) else str(value)


def value_of(spec: FieldSpec, text: str) -> Any:
    """Parses typed text to a field's value; returns invalid text unchanged."""
    if spec.choices:
        return next((choice for choice in get_args(spec.type) if str(choice) == text), text)
    if spec.type is str:
        return unquoted(text) if spec.path in PATH_FIELDS else text
    try:
        if get_origin(spec.type) is list:
            if text.lstrip().startswith("["):
                return config.parse_value(text)
            items = [item.strip() for item in text.split(",") if item.strip()]
            return [unquoted(item) for item in items] if spec.path in PATH_FIELDS else items
        return config.parse_value(text)
    except (yaml.YAMLError, ValueError):
        return text


def unquoted(text: str) -> str:
    """Returns a path without a shell's quotes or escapes, with which terminals, shells and file managers paste it."""
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text.startswith("file:///"):
        return unquote(text.removeprefix("file://"))
    return re.sub(r"\\([^\w/\\])", r"\1", text)


class Draft:
    """Values by dotted path, over the defaults."""

    def __init__(
        self, path: Path | None, values: dict[str, dict[str, Any]] | None = None, kept: dict[str, str] | None = None
    ) -> None:
        self._path = path
        self._values = values or {}
        self._kept = kept or {}
        self._saved = self._dump()

    @classmethod
    def load(cls, path: Path) -> Draft:
        """Loads the draft from a file; an absent or unreadable one starts empty (it holds only typed values)."""
        try:
            values = json.loads(regular_file.read_text(path, 1 << 20))
        except (OSError, ValueError, RecursionError):
            values = {}
        known = {spec.path for spec in config.fields()}
        sections = values.items() if isinstance(values, dict) else ()
        kept = {
            section: {name: value for name, value in fields.items() if f"{section}.{name}" in known}
            for section, fields in sections
            if isinstance(fields, dict)
        }
        own = values.get(_KEPT) if isinstance(values, dict) else None
        settings = {n: text for n, text in own.items() if isinstance(text, str)} if isinstance(own, dict) else {}
        return cls(path, {section: fields for section, fields in kept.items() if fields}, settings)

    def save(self) -> None:
        """Writes the draft atomically, if it changed since the last time.

        Raises:
            OSError: the state directory cannot be written.
        """
        text = self._dump()
        if self._path is None or text == self._saved:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=FILE_NAME)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).replace(self._path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._saved = text

    def _dump(self) -> str:
        kept = {_KEPT: self._kept} if self._kept else {}
        return json.dumps({**self._values, **kept}, indent=1, ensure_ascii=False)

    def kept(self, name: str) -> str:
        """Returns a setting of the wizard itself; empty if not set."""
        return self._kept.get(name, "")

    def keep(self, name: str, text: str) -> None:
        """Stores a setting of the wizard itself; empty deletes it."""
        if text:
            self._kept[name] = text
        else:
            self._kept.pop(name, None)

    def get(self, path: str) -> Any:
        """Returns the value at a path, or its default."""
        section, _, name = path.partition(".")
        fields = self._values.get(section, {})
        return fields[name] if name in fields else config.field_spec(path).default

    def set(self, path: str, value: Any) -> None:
        """Sets a value; the default itself is not stored."""
        if value == config.field_spec(path).default:
            self.reset(path)
            return
        section, _, name = path.partition(".")
        self._values.setdefault(section, {})[name] = value

    def set_text(self, path: str, text: str) -> bool:
        """Sets a value from typed text; empty means the default. Returns whether the value changed."""
        spec = config.field_spec(path)
        before = self._dump()
        if text.strip():
            self.set(path, value_of(spec, text.strip()))
        else:
            self.reset(path)
        return self._dump() != before

    def reset(self, path: str) -> None:
        """Resets a field to its default."""
        section, _, name = path.partition(".")
        self._values.get(section, {}).pop(name, None)
        if not self._values.get(section, True):
            del self._values[section]

    def is_default(self, path: str) -> bool:
        """Returns whether a path holds its default."""
        section, _, name = path.partition(".")
        return name not in self._values.get(section, {})

    def mapping(self) -> dict[str, dict[str, Any]]:
        """Returns a copy, as `config.from_mapping` takes it."""
        return {section: dict(fields) for section, fields in self._values.items()}

    def run_config(self) -> config.RunConfig:
        """Parses the draft to a configuration.

        Raises:
            EliteError: CONFIG_INVALID.
        """
        return config.from_mapping(self.mapping(), source="form")

    def problems(self) -> dict[str, config.Problem]:
        """Returns the draft's problems by field."""
        return {problem.field: problem for problem in config.find_problems(self.mapping())}
