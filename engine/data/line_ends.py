"""Tells texts whose lines end as on Windows, and ends their lines as git stores them."""

from __future__ import annotations


def ends_in_crlf(text: str) -> bool:
    """Tells whether lines end in carriage return and line feed throughout, and neither stands alone.

    A checkout on Windows has such files, which git stores without the carriage return; where ends are mixed, they may
    be meant.
    """
    ends = text.count("\r\n")
    return ends > 0 and ends == text.count("\n") == text.count("\r")


def with_line_feeds(text: str) -> str:
    """Returns a text with a line feed alone for each line end of Windows."""
    return text.replace("\r\n", "\n")
