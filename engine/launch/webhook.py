"""Posts a notice to a webhook. The URL is a secret: no message of this module quotes any part of it."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from engine import __version__
from engine.config import WEBHOOK_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.runs.notices import Notice

VARIABLE = "ELITE_TUI_WEBHOOK"
"""Environment variable with the webhook of all runs that name none."""
TIMEOUT_S = 5.0
LARGEST = 4096
"""Bytes of a body."""


class WebhookError(Exception):
    """Why a notice was not delivered, without the URL."""


def find_url(setting: str, environment: Mapping[str, str] = os.environ) -> str:
    """Returns the URL that `notify.webhook` stands for; "" where there is none.

    Raises:
        WebhookError: a variable holds something else than a URL that is allowed.
    """
    name = setting[1:] if setting.startswith("$") else VARIABLE if not setting else ""
    url = environment.get(name, "").strip() if name else setting
    if url.startswith("$") or not re.fullmatch(WEBHOOK_PATTERN, url):
        raise WebhookError(f"${name} is neither https nor a loopback address")
    if setting.startswith("$") and not url:
        raise WebhookError(f"${name} is not set")
    return url


def body_of(notice: Notice, facts: Mapping[str, str | int | None]) -> bytes:
    """Encodes a notice as JSON of at most `LARGEST` bytes.

    `text` is what Slack, Mattermost and Teams show, `content` what Discord shows.
    """
    line = f"{notice.title}: {notice.text}"
    body: dict[str, Any] = {
        "event": notice.kind,
        **{name: value[:200] if isinstance(value, str) else value for name, value in facts.items()},
        "title": notice.title,
        "text": line,
        "content": line,
    }
    while len(encoded := json.dumps(body).encode()) > LARGEST:
        line = line[: len(line) // 2]
        body["text"] = body["content"] = line
    return encoded


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which could lead to another host or to plain http."""

    def redirect_request(self, *_: Any) -> None:
        """See urllib."""


def post(url: str, body: bytes) -> None:
    """Posts a JSON body. Reads no answer beyond its status.

    Raises:
        WebhookError: it was not taken.
    """
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if _is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    headers = {"Content-Type": "application/json", "User-Agent": f"elite-tui/{__version__}"}
    try:
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310 - see the pattern
        urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
        raise WebhookError(f"it answered {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WebhookError(_reason(getattr(error, "reason", error))) from None


def _reason(error: object) -> str:
    """Names a failure by its kind, as texts of libraries quote the URL."""
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} seconds"
    if isinstance(error, socket.gaierror):
        return "its host is not known"
    if isinstance(error, ssl.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
