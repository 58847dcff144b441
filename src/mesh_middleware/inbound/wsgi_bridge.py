"""
Runs a WSGI application on an ASGI server.

Owns the life of one request between the two: its thread, its body, its response, and the ways in
which it ends before its time. Knows nothing of policies, of a server or of a framework: what is to
be decided about a request is decided before it comes here.

Theory. The application runs in a thread, in a copy of the context of the request's task. The task
does not read the body before the application does, and sends what the thread queues. Whatever ends
the task (cancellation, the client, a timeout) aborts the request: the thread's next read of
``wsgi.input`` or next piece of the response raises, the application's iterable is closed, and the
response has no proper end, so that nobody takes it for complete. Once the last byte is sent, the
task ends; what the application does then is its own matter, and nothing disturbs it.

Source: PEP 3333; the ASGI specification, "HTTP & WebSocket ASGI Message Format".
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from .request_threads import RequestThreads, TooManyRequestsError, is_logged
from .response_queue import ResponseQueue
from .wsgi_body import RequestBody
from .wsgi_environ import Environ, RequestRefusedError, build_environ, content_length
from .wsgi_response import Response, ShortResponseError

_log = logging.getLogger("mesh_middleware.inbound")

App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

THREADS = 40
STALLED = 200
BACKLOG = 1000
MAX_BODY = 16 << 20
BUFFER = 1 << 16
TIMEOUT = 30.0

_ANSWERS = {
    400: b"Bad Request",
    404: b"Not Found",
    408: b"Request Timeout",
    413: b"Content Too Large",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


class WsgiBridge:
    """
    An ASGI application that runs a WSGI application in threads.

    A bridge belongs to one event loop (asyncio or uvloop).

    Args:
        app: the WSGI application.
        threads: how many requests may run application code at once.
        stalled: how many more may wait for a client that does not read or send; beyond it, the one
            that has waited longest is aborted.
        backlog: how many requests may wait for a thread; further ones are answered 503.
        max_body: bytes of the largest request body; larger ones are answered 413.
        body_buffer: bytes of one request body that may wait to be read, besides one ASGI message.
        response_buffer: bytes of one response that may wait to be sent, besides as many that are
            being sent, and the application's latest piece, or its list.
        read_timeout: seconds in which the next piece of a body that is read must arrive.
        send_timeout: seconds in which the client must take the next 64 KiB of a response.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        app: App,
        *,
        threads: int = THREADS,
        stalled: int = STALLED,
        backlog: int = BACKLOG,
        max_body: int = MAX_BODY,
        body_buffer: int = BUFFER,
        response_buffer: int = BUFFER,
        read_timeout: float = TIMEOUT,
        send_timeout: float = TIMEOUT,
    ) -> None:
        if min(max_body, body_buffer, response_buffer) < 1 or min(read_timeout, send_timeout) <= 0:
            raise ValueError("sizes must be at least 1, and timeouts greater than 0")
        self.app = app
        self._threads = RequestThreads(threads=threads, stalled=stalled, backlog=backlog)
        self._refused = 0
        self._max_body, self._send_timeout = max_body, send_timeout
        self._make_body = partial(
            RequestBody, limit=max_body, buffer=body_buffer, timeout=read_timeout
        )
        self._make_queue = partial(ResponseQueue, size=response_buffer, timeout=send_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request; reject a WebSocket; answer the lifespan."""
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        elif kind == "lifespan":
            await self._live(receive, send)
        else:
            raise ValueError(f"the WSGI bridge serves http, not {kind!r}")

    def close(self) -> None:
        """Take no further request; threads end with what they run."""
        self._threads.close()

    async def _answer(self, send: Send, status: int) -> None:
        body = _ANSWERS[status] + b"\n"
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
        ]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        # A client that does not read even this has no more time than for a response.
        with suppress(OSError):
            async with asyncio.timeout(self._send_timeout):
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            environ = build_environ(scope)
            length = content_length(environ)
            if length is not None and length > self._max_body:
                raise RequestRefusedError(413)
        except RequestRefusedError as error:
            await self._answer(send, error.status)
            return
        request = _Request(self.app, environ, self._threads)
        request.body = environ["wsgi.input"] = self._make_body(request, receive, length=length)
        request.queue = self._make_queue(request)
        client = scope.get("client")
        connection = tuple(client) if client else None
        work = partial(copy_context().run, request.run)
        try:
            self._threads.submit(connection, work)
        except (TooManyRequestsError, RuntimeError) as error:
            self._refused += 1
            if is_logged(self._refused):
                _log.warning("answered %s with 503: %s (%d so far)", request, error, self._refused)
            await self._answer(send, 503)
            return
        whole = False
        try:
            whole = await request.queue.send_all(send, request.body.watch)
        finally:
            request.end()
            if not whole:
                self._threads.withdraw(connection, work)
        if not whole and not request.queue.begun and request.status:
            await self._answer(send, request.status)


class _Request:
    """
    One request: what its thread does, and how it is aborted.

    Args:
        app: the application.
        environ: of the request.
        threads: the pool that runs it.
    """

    body: RequestBody
    queue: ResponseQueue

    def __init__(self, app: App, environ: Environ, threads: RequestThreads) -> None:
        self._app, self._environ, self._threads = app, environ, threads
        # Noted before the application can change them.
        self._method: str = environ["REQUEST_METHOD"]
        self._path: str = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
        self.loop = asyncio.get_running_loop()
        self.status = 0
        """Of the answer to a request that was aborted before its response began; 0 for none."""

    # In the thread.

    def run(self) -> None:
        """Have the application answer; never raises."""
        if self.queue.aborted:
            return
        response = Response(self.queue, self._method)
        answer: Any = None
        try:
            answer = self._app(self._environ, response.start)
            response.send_all(answer)
        except BaseException as error:  # of foreign code, and the thread is the pool's
            self._fail(error, response)
        try:
            if (close := getattr(answer, "close", None)) is not None:
                close()
        except BaseException:
            _log.exception("close() of the response of %s failed", self)

    def _fail(self, error: BaseException, response: Response) -> None:
        if response.complete:
            _log.error(
                "error in the WSGI application after the response of %s", self, exc_info=error
            )
        elif self.queue.aborted:
            _log.debug("%s ended: %r", self, error)
        elif isinstance(error, asyncio.CancelledError) and response.begun:
            self._abort(0)  # the response was cut on purpose
        else:
            if isinstance(error, ShortResponseError):
                _log.error("error in the WSGI application at %s: %s", self, error)
            else:
                _log.error("error in the WSGI application at %s", self, exc_info=error)
            self.status = 500
            self.queue.fail()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for the client."""
        with self._threads.waiting_for_peer(self):
            return event.wait(seconds)

    # From any thread.

    def evict(self) -> None:
        """Too many others wait for their clients."""
        self._abort(503)

    def response_timed_out(self) -> None:
        """The client does not read."""
        _log.info("aborted %s: the client does not read the response", self)
        self._abort(0)

    def body_timed_out(self) -> None:
        """The client does not send."""
        _log.info("aborted %s: the client does not send the body", self)
        self._abort(408)

    def body_too_large(self) -> None:
        """The client has sent more than is allowed."""
        self._abort(413)

    def disconnected(self) -> None:
        """The client has gone."""
        self._abort(0)

    def end(self) -> None:
        """The task ends; called in the event loop."""
        self.queue.end()
        self.body.end()

    def _abort(self, status: int) -> None:
        self.status = status
        self.queue.abort()
        self.body.fail(ConnectionAbortedError("the request was aborted"))

    def __str__(self) -> str:
        return f"{self._method} {self._path[:200]!r}"
