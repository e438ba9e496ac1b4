"""The endpoint as a Starlette application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from engine.errors import EliteError
from engine.generation.batched import TokenEvent
from engine.runs.crash_log import internal_error
from engine.serving.answers import End, Form, Text
from engine.serving.guard import LARGEST_BODY, Guard, too_large
from engine.serving.prompts import Prepared, Prompts
from engine.serving.requests import ApiRequest, ChatRequest, CompletionRequest, RequestError, read_request
from engine.serving.text import StoppingText
from engine.serving.worker import BusyError, Job, StoppedError, Worker

Events = asyncio.Queue[TokenEvent | Exception]
LEFT = 499
"""Status of an answer that nobody waits for, as nginx logs it."""


def make_app(
    prompts: Prompts, worker: Worker, tokenizer: Any, *, token: str, loopback: bool, report: Callable[[str], None]
) -> Starlette:
    """Makes the application.

    Args:
        prompts: Encodes requests.
        worker: Answers them.
        tokenizer: A tokenizers.Tokenizer, which decodes the answers.
        token: Bearer token; "" lets everybody in.
        loopback: Whether the server listens on loopback.
        report: Called with a line for the user where a request fails by no fault of its own.
    """
    endpoint = _Endpoint(prompts, worker, tokenizer)

    def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse(error.body(), error.status)

    def left(_: Request, __: Exception) -> Response:
        return Response(status_code=LEFT)

    def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = "GET /v1/models, POST /v1/completions, POST /v1/chat/completions, GET /health"
        message = f"{error.detail}: {request.method} {request.url.path}; there is {known}"
        return JSONResponse(RequestError(message, status=error.status_code).body(), error.status_code, error.headers)

    def failed(_: Request, error: Exception) -> Response:
        problem = internal_error(error)
        report(f"{problem.message}; {problem.remedy}")
        return JSONResponse(RequestError("internal error", status=500).body(), 500)

    return Starlette(
        routes=[
            Route("/health", endpoint.health),
            Route("/v1/models", endpoint.models),
            Route("/v1/models/{name:path}", endpoint.model),
            Route("/v1/completions", endpoint.complete, methods=["POST"]),
            Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, token=token, loopback=loopback)],
        exception_handlers={RequestError: refused, ClientDisconnect: left, HTTPException: unknown, Exception: failed},
    )


class _Endpoint:
    """The routes."""

    def __init__(self, prompts: Prompts, worker: Worker, tokenizer: Any) -> None:
        self._prompts, self._worker, self._tokenizer = prompts, worker, tokenizer
        self._models = {
            name: {
                "id": full,
                "object": "model",
                "created": 0,
                "owned_by": "engine",
                "side": side,
                "max_model_len": worker.capacity,
            }
            for full, side in prompts.names.items()
            for name in (full, side)
        }

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "unanswered": self._worker.unanswered})

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._models[name] for name in self._prompts.names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._models:
            raise RequestError(f"there is no model {name[:200]!r}", status=404, code="model_not_found", param="model")
        return JSONResponse(self._models[name])

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, read_request(await _body(request), CompletionRequest))

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, read_request(await _body(request), ChatRequest))

    async def _answer(self, http: Request, request: CompletionRequest | ChatRequest) -> Response:
        prepared = await run_in_threadpool(self._prompts.prepare, request)
        form = Form(prepared.model, isinstance(request, ChatRequest))
        job, events = self._submit(prepared)
        parts = self._parts(prepared, events)

        def leave() -> None:
            self._worker.cancel(job)

        if request.stream:
            return _Stream(form.chunks(parts, counted=_counted(request)), leave)
        answer = asyncio.ensure_future(_whole(parts, form))
        gone = asyncio.ensure_future(_gone(http))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(await answer) if answer.done() else Response(status_code=LEFT)
        finally:
            leave()
            answer.cancel()
            gone.cancel()

    def _submit(self, prepared: Prepared) -> tuple[Job, Events]:
        loop, events = asyncio.get_running_loop(), Events()

        def notify(event: TokenEvent | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads the answer any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(prepared.side, prepared.prompt, prepared.sampling, notify)
        try:
            self._worker.submit(job)
        except (BusyError, StoppedError) as error:
            raise _problem(error) from None
        return job, events

    async def _parts(self, prepared: Prepared, events: Events) -> AsyncIterator[Text | End]:
        text = StoppingText(self._tokenizer, prepared.prompt, prepared.stops)
        count = 0
        while True:
            event = await events.get()
            if isinstance(event, Exception):
                raise _problem(event)
            if event.token is not None:
                count += 1
                if part := text.push(event.token):
                    yield Text(part)
            if event.finished is None and not text.stopped:
                continue
            if part := text.end():
                yield Text(part)
            yield End(
                "length" if event.finished == "length" and not text.stopped else "stop", len(prepared.prompt), count
            )
            return


class _Stream(StreamingResponse):
    """Server-sent events, behind which the job is cancelled, however they end."""

    def __init__(self, chunks: AsyncIterator[bytes], leave: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _body(request: Request) -> bytes:
    """Reads a body of at most LARGEST_BODY bytes."""
    body = bytearray()
    async for some in request.stream():
        body += some
        if len(body) > LARGEST_BODY:
            raise too_large()
    return bytes(body)


async def _whole(parts: AsyncIterator[Text | End], form: Form) -> dict[str, Any]:
    text: list[str] = []
    async for part in parts:
        if isinstance(part, End):
            return form.whole("".join(text), part)
        text.append(part.text)
    raise AssertionError("an answer without an end")


async def _gone(request: Request) -> None:
    """Waits until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _counted(request: ApiRequest) -> bool:
    return request.stream_options is not None and request.stream_options.include_usage


def _problem(error: Exception) -> RequestError:
    """What a client is told of a job's failure."""
    if isinstance(error, BusyError):
        return RequestError("too many requests wait", status=429, code="busy", kind="rate_limit_error")
    if isinstance(error, StoppedError):
        return RequestError("the server ends", status=503)
    message = error.message if isinstance(error, EliteError) else "internal error"
    return RequestError(message, status=500)
