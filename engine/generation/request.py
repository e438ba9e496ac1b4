"""Text requests: prompts, places in a file, and sampling settings. No torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from engine.errors.generation import PROMPT_LINE, PROMPT_UNREADABLE
from engine.home_folder import expand_home

Side = Literal["base", "tuned"]
SIDES: tuple[Side, ...] = ("base", "tuned")
_LONGEST = 64 << 20
"""Characters of a file that is read for a place in it; a device never ends."""


class TextRequest(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One prompt, with its sampling settings."""

    id: int = 0
    "Repeated in every event of the answer."
    prompt: str
    path: str = ""
    "Name of the file that begins with the prompt, which is then encoded as in training. Empty for plain text."
    suffix: str = ""
    "Text after the place to fill; needs a tokenizer that supports fill-in-the-middle."
    sides: tuple[Side, ...] = SIDES
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 128
    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


def read_place(text: str) -> tuple[str, str, str]:
    """Returns name, text before and text after a place in a file, from PATH or PATH:LINE.

    The text before ends with that line, counted from 1; without a line, it is the whole file.

    Raises:
        EliteError: PROMPT_UNREADABLE, PROMPT_LINE.
    """
    path, line = expand_home(text), None
    try:
        found = re.fullmatch(r"(.+):(\d+)", text)
        if found and not path.is_file():
            path, line = expand_home(found[1]), int(found[2])
        # Line ends are made \n on reading, so that \r\n and \r end a line too.
        with path.open(encoding="utf-8") as file:
            content = file.read(_LONGEST + 1)
        if len(content) > _LONGEST:
            raise ValueError(f"it has more than {_LONGEST:,} characters")
    except (OSError, ValueError) as error:
        not_text = isinstance(error, UnicodeDecodeError)
        problem = "not UTF-8 text" if not_text else getattr(error, "strerror", None)
        raise PROMPT_UNREADABLE(path=path, problem=problem or error) from error
    if line is None:
        return str(path), content, ""
    # Not splitlines(), which also ends lines at form feeds and other characters that no editor counts. The empty line
    # behind a last line end has a number in editors too.
    lines = re.split(r"(?<=\n)", content)
    last = len(lines)
    if not 1 <= line <= last:
        raise PROMPT_LINE(path=path, line=line, last=last)
    return str(path), "".join(lines[:line]), "".join(lines[line:])
