"""Renders conversations by a model's own chat template (Jinja), sandboxed, and bounded in time and size.

The environment is that of transformers' `apply_chat_template`: an immutable sandbox with `raise_exception`,
`strftime_now`, loop controls and `{% generation %}`. A template comes with a model from anywhere, so loops, calls and
the growth of strings are counted here as well.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from engine.quantities import format_bytes, format_seconds

SECONDS = 20.0
"""For one conversation. A session of 128K tokens takes a few milliseconds."""
LONGEST = 64 << 20
"""Characters that a rendering may have, or any value on the way to it."""
_LARGEST_NUMBER = 100_000
"""For what fills or cuts text."""
_SIZED = frozenset({"center", "indent", "wordwrap", "truncate", "batch", "slice", "round", "tojson"})
"""Filters that a number makes write much."""
_BITS = 4096
"""Of a whole number."""
_WIDTH = re.compile(r"\d{6,}")
_TYPE = re.compile(r"'(?:engine\.[\w.]+|dict|list) object'")
"""As Jinja calls a value of a row, between marks or without."""
_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")


class RenderError(Exception):
    """A template cannot render a conversation. The message says why, on one line."""


class TemplateSyntaxError(Exception):
    """A template is no Jinja. The message says where."""


@dataclass(frozen=True)
class Marks:
    """Characters that stand for no text, which a conversation and its template do not hold.

    Attributes:
        open, close: Around a string of the conversation; `open` is followed by its number in `digits`.
        inert: Within the name of a control token that a string spells out.
        begin, end: Around what a template puts between `{% generation %}` and `{% endgeneration %}`.
        digits: Sixteen digits.
    """

    open: str
    close: str
    inert: str
    begin: str
    end: str
    digits: str

    @classmethod
    def apart_from(cls, text: str) -> Marks:
        """Chooses private characters that the text does not hold."""
        used = {ord(found) for found in _PRIVATE.findall(text)}
        first = next(base for base in range(0xF0000, 0x10FF00, 32) if used.isdisjoint(range(base, base + 21)))
        signs = [chr(first + place) for place in range(21)]
        return cls(signs[0], signs[1], signs[2], signs[3], signs[4], "".join(signs[5:]))

    def number(self, value: int) -> str:
        """Writes a number, in three digits or more."""
        return "".join(self.digits[int(digit, 16)] for digit in f"{value:03x}")

    def read(self, digits: str) -> int:
        """Reads a number."""
        return functools.reduce(lambda total, digit: total * 16 + self.digits.index(digit), digits, 0)

    def without(self, text: str) -> str:
        """Removes all marks."""
        return re.sub(f"[{self.open}{self.close}{self.inert}{self.begin}{self.end}{self.digits}]", "", text)


class ChatTemplate:
    """A chat template.

    Attributes:
        name: For messages.
        source: Its Jinja, or that of its variants by name ("default", "tool_use").
        tokens: The special tokens that it names.
    """

    def __init__(self, name: str, source: str | Mapping[str, str], tokens: Mapping[str, Any] | None = None) -> None:
        """Compiles a template.

        Args:
            name: For messages.
            source: Jinja, or Jinja by name; "tool_use" renders conversations with tools.
            tokens: The special tokens that templates name, such as bos_token.

        Raises:
            TemplateSyntaxError: it is no Jinja.
        """
        self.name = name
        self.source = source
        self.tokens = {key: str(value) for key, value in (tokens or {}).items() if isinstance(value, str)}
        self._environment = _Environment()
        sources = {"default": source} if isinstance(source, str) else dict(source)
        try:
            self._templates = {key: self._environment.from_string(text) for key, text in sources.items()}
        except jinja2.TemplateSyntaxError as error:
            raise TemplateSyntaxError(f"line {error.lineno}: {error.message}") from error
        except Exception as error:  # constants are computed while it is compiled
            raise TemplateSyntaxError(_first_line(error)) from error
        self.text = "\n".join(sources.values())

    @property
    def names_date(self) -> bool:
        """Whether what it renders depends on the day."""
        return "strftime_now" in self.text

    @property
    def marks_answers(self) -> bool:
        """Whether it says itself what a model writes, by `{% generation %}`."""
        return re.search(r"\{%-?\+?\s*generation\b", self.text) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        prompt: bool = False,
        marks: Marks | None = None,
        now: datetime | None = None,
    ) -> str:
        """Renders messages.

        Args:
            messages: As `apply_chat_template` takes them.
            tools: Definitions of functions.
            prompt: Whether the prompt for an answer follows (`add_generation_prompt`).
            marks: Marks the generation blocks.
            now: What the template is told of the time.

        Raises:
            RenderError: the template refuses the messages, fails, or takes too long.
        """
        template = self._templates.get("tool_use") if tools else None
        template = template or self._templates.get("default") or next(iter(self._templates.values()))
        environment = self._environment
        environment.begin(marks, now)
        pieces: list[str] = []
        length = 0
        try:
            given = {**self.tokens, "messages": list(messages), "tools": list(tools) if tools else None}
            for piece in template.generate(**given, documents=None, add_generation_prompt=prompt):
                pieces.append(piece)
                length += len(piece)
                environment.tick()
                _check_length(length)
        except RenderError:
            raise
        except RecursionError:
            raise RenderError("it calls itself without end") from None
        except MemoryError:
            raise RenderError("it needs too much memory") from None
        except Exception as error:  # a template may fail in any way
            raise RenderError(_first_line(error)) from error
        return "".join(pieces)


def _first_line(error: Exception) -> str:
    said = _TYPE.sub("a value", str(error).strip().partition("\n")[0][:300])
    return said or type(error).__name__


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise RenderError(f"it makes more than {format_bytes(LONGEST)} of text")


def _raise(message: object) -> None:
    raise RenderError(str(message).strip().partition("\n")[0][:300] or "it refuses the conversation")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Differs from Jinja's own filter, which escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """The tag `{% generation %}`."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        marks = self.environment.marks  # type: ignore[attr-defined]
        return caller() if marks is None else f"{marks.begin}{caller()}{marks.end}"


class _Counted(NodeTransformer):
    """Puts a call of `_tick` into every loop and macro, and makes a call of `~`, which the sandbox does not see."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named by Jinja
        return self._with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return nodes.Call(nodes.Name("_concat", "load"), node.nodes, [], None, None, lineno=node.lineno)

    def _with_tick(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        call = nodes.Call(nodes.Name("_tick", "load"), [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node


class _Environment(ImmutableSandboxedEnvironment):
    """transformers' environment with limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.marks: Marks | None = None
        self._now = datetime(2000, 1, 1)  # noqa: DTZ001 - local time, as templates write it
        self._deadline = float("inf")
        self.filters = {name: _limited(name, used) for name, used in self.filters.items()}
        self.filters["tojson"] = _limited("tojson", _tojson)
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": self._strftime,
            "_tick": self.tick,
            "_concat": self._concat,
        }

    def begin(self, marks: Marks | None, now: datetime | None) -> None:
        """Begins a rendering."""
        self.marks, self._now = marks, now or self._now
        self._deadline = time.thread_time() + SECONDS

    def tick(self) -> str:
        """Checks the time."""
        if time.thread_time() > self._deadline:
            raise RenderError(f"it takes more than {format_seconds(SECONDS)}")
        return ""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counted().visit(super()._parse(source, name, filename))
        return tree

    def _strftime(self, wanted: str) -> str:
        return self._now.strftime(wanted)

    def _concat(self, *parts: object) -> str:
        texts = [str(part) for part in parts]
        _check_length(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """See SandboxedEnvironment."""
        self.tick()
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                    _check_length(len(sequence) * max(count, 0))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > _BITS:
                raise RenderError("it computes too large a number")
        elif operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise RenderError("it formats too wide a text")
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _check_length(len(left) + len(right))
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > _BITS:
            raise RenderError("it computes too large a number")
        return result

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in Jinja
        """See SandboxedEnvironment."""
        __self.tick()
        owner = getattr(__obj, "__self__", None)
        # A macro may be passed any number that a call of a tool has.
        _check_call(getattr(__obj, "__name__", ""), (owner, *args), kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _limited(name: str, used: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(used)
    def checked(*args: Any, **kwargs: Any) -> Any:
        # Some are passed the environment or a context first.
        given = args[1:] if args and not isinstance(args[0], (str, int, list, tuple, dict)) else args
        _check_call(name, given, kwargs)
        return used(*args, **kwargs)

    return checked


def _check_call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuses a call that would make much of little. `args` begin with what a method belongs to."""
    first = args[0] if args else None
    for value in (*args[1:], *kwargs.values()) if name in _SIZED or isinstance(first, (str, bytes)) else ():
        if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
            raise RenderError(f"it passes {name or 'a function'} a number above {_LARGEST_NUMBER:,}")
    if name == "replace" and isinstance(first, str) and len(args) > 2:
        old, new = str(args[1]), str(args[2])
        _check_length(len(first) + first.count(old) * len(new))
    elif name == "join" and len(args) > 1:
        texts, between = (args[1], first) if isinstance(first, str) else (first, args[1])
        if isinstance(texts, (list, tuple, range)):
            _check_length(len(texts) * len(str(between)))
    elif name in ("format", "format_map") and isinstance(first, str) and _WIDTH.search(first):
        raise RenderError("it formats too wide a text")
