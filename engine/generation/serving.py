"""Serves text requests as JSON lines, in order, until the input ends: the protocol between an app and the engine.

    in    {"id": 1, "prompt": "...", ...}   (engine.generation.request.TextRequest)      {"stop": true}
    out   {"event": "ready", "name": ..., "device": ..., "sides": [...]}
          {"event": "text", "id": 1, "side": "base", "text": "..."}
          {"event": "done", "id": 1, "side": "base", "tokens": 128, "seconds": 2.1, "stopped": false}
          {"event": "failed", "id": 1, "message": "...", "remedy": "..."}

Requests are answered one after the other. A stop ends the current one and those that wait. Requests read before the
input ended are still answered.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import EliteError
from engine.generation.request import TextRequest

if TYPE_CHECKING:
    from engine.generation.writer import Writer

Say = Callable[[dict[str, Any]], None]


class _Inbox:
    """Queue of requests, and a count of stops."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.requests: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self.stops = 0
        threading.Thread(target=self._read, args=(lines,), name="requests", daemon=True).start()

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            if not line.strip():
                continue
            if _is_stop(line):
                self.stops += 1
            else:
                self.requests.put((self.stops, line))
        self.requests.put(None)


def _is_stop(line: str) -> bool:
    try:
        return bool(json.loads(line) == {"stop": True})
    except (ValueError, RecursionError):
        return False


def serve(writer: Writer, lines: Iterable[str], say: Say) -> None:
    """Answers requests until the lines end.

    Args:
        writer: The models.
        lines: Requests; read in a separate thread.
        say: Called with each event.
    """
    inbox = _Inbox(lines)
    say({"event": "ready", "name": writer.name, "device": writer.device, "sides": list(writer.sides)})
    while (item := inbox.requests.get()) is not None:
        number, line = item
        if number == inbox.stops:
            _answer(writer, line, say, lambda number=number: inbox.stops > number)  # type: ignore[misc]


def _answer(writer: Writer, line: str, say: Say, stopped: Callable[[], bool]) -> None:
    try:
        request = msgspec.json.decode(line.encode(), type=TextRequest)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        say({"event": "failed", "id": None, "message": f"not a request: {error}", "remedy": ""})
        return
    try:
        for side in request.sides:
            began, count = time.monotonic(), 0
            for text in writer.write(request, side):
                count += 1
                if text:
                    say({"event": "text", "id": request.id, "side": side, "text": text})
                if stopped():
                    break
            seconds = time.monotonic() - began
            done = {"event": "done", "id": request.id, "side": side, "tokens": count, "seconds": seconds}
            say({**done, "stopped": stopped()})
            if stopped():
                return
    except EliteError as error:
        say({"event": "failed", "id": request.id, "message": error.message, "remedy": error.remedy})
