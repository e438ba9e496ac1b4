"""Refuses requests without the token, and on loopback those whose Host header does not name this machine.

A web page can make a browser send requests to loopback, under a name of its own whose address it changes (DNS
rebinding). Such requests carry that name. Requests with a body must be declared as JSON, for which a browser first asks
permission, and no permission is ever given (CORS).
"""

from __future__ import annotations

import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.quantities import format_bytes
from engine.serving.requests import RequestError

LARGEST_BODY = 16 << 20
"""Bytes of a request."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """Returns a Host header without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0].rstrip(".").lower()


class Guard:
    """ASGI middleware that answers unauthorised requests.

    Args:
        app: Answers the others.
        token: Bearer token; "" lets everybody in.
        loopback: Whether the server listens on loopback.
    """

    def __init__(self, app: ASGIApp, *, token: str, loopback: bool) -> None:
        self._app, self._token, self._loopback = app, token.encode(), loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = self._problem(Headers(scope=scope), scope["method"], scope["path"])
        if problem is None:
            await self._app(scope, receive, send)
            return
        headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else None
        await JSONResponse(problem.body(), problem.status, headers)(scope, receive, send)

    def _problem(self, headers: Headers, method: str, path: str) -> RequestError | None:
        if self._loopback and not is_loopback(host_of(headers.get("host", ""))):
            return RequestError("the Host header does not name this machine", status=403, code="host_refused")
        if self._token and path != "/health":
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
                message = "this server needs the token that it printed at its start, as Authorization: Bearer TOKEN"
                return RequestError(message, status=401, code="invalid_api_key")
        if method == "POST":
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return RequestError("send the body as Content-Type: application/json", status=415)
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > LARGEST_BODY:
                return too_large()
        return None


def too_large() -> RequestError:
    """Returns the refusal of a body above LARGEST_BODY."""
    return RequestError(f"the body is larger than {format_bytes(LARGEST_BODY)}", status=413, code="body_too_large")
