"""Describes the fields of a configuration made of msgspec Structs, for forms, options and reference pages.

The sections are built of the types and marks at the top. A field is `Annotated[type, Meta(..., description=...)]`; an
optional one carries its bounds inside:
`Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description=...)]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from msgspec import Meta

if TYPE_CHECKING:
    from msgspec import Struct


PathText = str
MOST_TOKENS = 2**27
"Tokens of the longest window that a configuration may name: 32 of the highest tier."
MOST_HELD_OUT = 2**40
"Tokens and bytes that a limit may allow: more than any repository has."
MOST_COUNTED = 1_000_000
"Steps, times or files that a configuration may count."


def option(flag: str) -> dict[str, str]:
    """Marks a field that has its own command-line option besides `--set`."""
    return {"flag": flag}


def words(allowed: str) -> dict[str, str]:
    """Says in words what a field's pattern allows."""
    return {"allowed": allowed}


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """One field of one section."""

    path: str
    'Section and name, "training.epochs".'
    type: Any
    "Annotation without its Meta: int, float, str, bool, list[str] or a Literal; without None."
    default: Any
    description: str
    flag: str | None
    'Its own command-line option, "--epochs".'
    choices: tuple[str, ...]
    "Values of a Literal, otherwise empty."
    optional: bool
    "Whether null is allowed."
    allowed: str
    'Allowed values in words: "a number above 0 and at most 1".'

    @property
    def section(self) -> str:
        """Part of the path before the dot."""
        return self.path.partition(".")[0]


def describe_fields(config_type: type[Struct]) -> tuple[FieldSpec, ...]:
    """Lists every field of every section of a Struct whose fields are sections, in order of declaration."""
    specs = []
    for section, section_type in get_type_hints(config_type).items():
        defaults = section_type()
        for name, annotation in get_type_hints(section_type, include_extras=True).items():
            annotated, meta = get_args(annotation)
            optional, kind, bounds = _unwrap(annotated, meta)
            specs.append(
                FieldSpec(
                    path=f"{section}.{name}",
                    type=kind,
                    default=getattr(defaults, name),
                    description=meta.description,
                    flag=(meta.extra or {}).get("flag"),
                    choices=tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else (),
                    optional=optional,
                    allowed=_in_words(kind, bounds) + _also(annotated, kind) + (", or null" if optional else ""),
                )
            )
    return tuple(specs)


def _unwrap(annotated: Any, meta: Meta) -> tuple[bool, Any, Meta]:
    """Returns whether null is allowed, the bare type, and the Meta that holds the bounds."""
    options = get_args(annotated)
    if type(None) not in options:
        return False, annotated, meta
    # A number may have words beside it, as in int | Literal["max"]; `_also` names them.
    inner = next(option for option in options if option is not type(None))
    if get_origin(inner) is Annotated:
        kind, bounds = get_args(inner)
        return True, kind, bounds
    return True, inner, meta


def _also(annotated: Any, kind: Any) -> str:
    """Names the words that are allowed beside a number."""
    options = get_args(annotated) if type(None) in get_args(annotated) else ()
    literals = [option for option in options if get_origin(option) is Literal and option is not kind]
    return "".join(f", or {word}" for literal in literals for word in get_args(literal))


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _in_words(kind: Any, bounds: Meta) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        if get_origin(item) is Literal:
            return f"a list of {', '.join(get_args(item))}"
        form = (get_args(item)[1].extra or {}).get("allowed") if get_origin(item) is Annotated else None
        return f"a list of {form or 'texts'}"
    if kind is str and bounds.pattern:
        return str((bounds.extra or {})["allowed"])
    limits = [(bounds.gt, "above"), (bounds.ge, "at least"), (bounds.lt, "below"), (bounds.le, "at most")]
    words = " and ".join(f"{word} {limit:,}" for limit, word in limits if limit is not None)
    return f"{_TYPE_NAMES[kind]} {words}".rstrip()
