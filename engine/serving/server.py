"""Listens, and runs the application until a signal ends it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from engine.errors import EliteError
from engine.errors.generation import SERVE_PORT


def listen(host: str, port: int) -> socket.socket:
    """Opens the socket, before the models are loaded: a port that is in use is said at once.

    Raises:
        EliteError: SERVE_PORT.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise _unusable(host, port, error) from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()
    except (OSError, OverflowError) as error:
        opened.close()
        raise _unusable(host, port, error) from error
    return opened


def _unusable(host: str, port: int, error: Exception) -> EliteError:
    problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return SERVE_PORT(host=host, port=port, problem=problem[:1].lower() + problem[1:])


class _Server(uvicorn.Server):
    """A server whose answers under way end with it."""

    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as uvicorn calls it
        """Ends without raising the signal again, which the base class would do."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._stopping()


def run(app: ASGIApp, opened: socket.socket, stopping: Callable[[], None]) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        app: The application.
        opened: From `listen`.
        stopping: Called when a signal comes, in its handler.
    """
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none", proxy_headers=False,
        timeout_graceful_shutdown=10, h11_max_incomplete_event_size=64 << 10, http="h11", loop="asyncio",
    )  # fmt: skip
    _Server(config, stopping).run(sockets=[opened])
