"""
Tells an application by its ``send`` that its caller is gone, and ends it where it goes on.

Owns what ``send`` does once nothing can reach the caller. Hypercorn drops the message and returns
without yielding: an application that streams and awaits nothing else holds the event loop for ever,
with every other connection and the signal that ends the worker. Here ``send`` yields and raises
`ClientDisconnected`, an ``OSError``, and the scope says so (``spec_version`` 2.4). An application
that catches it and sends on is cancelled after `SENDS_AFTER_DISCONNECT` messages.

Only messages that leave the response incomplete raise. The beginning of a response, and a message
that completes it, are dropped as before: what an application does after a short response (a
background task of Starlette's) is its own, whether its caller waited or not.

Told 2.4, Starlette relies on ``send`` alone, and no longer listens for the disconnect. A stream
that has nothing to send would be kept for ever, so an application that is within a response is
cancelled when, `LEFT_ALONE` seconds after its caller has gone, it has neither sent nor received.

An application that sends without awaiting anything else to a caller that reads as fast would hold
the event loop, too: every `SENDS_IN_A_TURN` messages others have their turn.

Source: ASGI 3.0, "Disconnected client - send exception".
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import Any

import hypercorn.protocol.h2
import hypercorn.protocol.h11
from hypercorn.protocol.events import Event, StreamClosed
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import ASGISendEvent

from ..application_task import application_task
from .websocket_message_size import BoundedWSStream

VERSION = "2.4"
"""Of the ASGI specification: the first in which ``send`` may raise."""
SENDS_AFTER_DISCONNECT = 100
"""Messages that an application may send after it was told that its caller is gone."""
LEFT_ALONE = 10.0
"""Seconds for an application within a response to notice that its caller is gone."""
SENDS_IN_A_TURN = 4
"""Messages after which other connections have their turn."""

_GONE = "the caller has disconnected"


class ClientDisconnected(OSError):
    """Raised by ``send``: the caller is gone, and nothing more can reach it."""


def is_disconnect(error: BaseException) -> bool:
    """
    Tell whether an application has ended by `ClientDisconnected` and nothing else.

    Args:
        error: by which it has ended; groups of it, and what Starlette makes of it, count as well.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_disconnect, error.exceptions))
    if isinstance(error, ClientDisconnected):
        return True
    names = (("requests", "ClientDisconnect"), ("websockets", "WebSocketDisconnect"))
    known = (getattr(sys.modules.get(f"starlette.{module}"), name, ()) for module, name in names)
    return isinstance(error, tuple(filter(None, known))) and _stems_from_send(error)


def _stems_from_send(error: BaseException) -> bool:
    return error.__context__ is not None and is_disconnect(error.__context__)


class DisconnectHTTPStream(HTTPStream):
    """A request over HTTP/1.1 or HTTP/2 whose application is told that its caller is gone."""

    app_put: Any = None  # Hypercorn reads it also where no application was started

    def __init__(self, app: Any, config: Any, context: Any, task_group: Any, *rest: Any) -> None:
        task = application_task(app, task_group, VERSION, is_disconnect)
        super().__init__(task, config, context, task_group, *rest)  # type: ignore[arg-type]
        self._task = task

    def handle(self, event: Event) -> Coroutine[Any, Any, None]:
        """Take an event of the connection."""
        if isinstance(event, StreamClosed) and self.state is ASGIHTTPState.RESPONSE:
            self._task.cancel_after(LEFT_ALONE, self._was_received)
        return super().handle(event)

    def app_send(self, message: ASGISendEvent | None) -> Coroutine[Any, Any, None]:
        """Send a message of the application's."""
        if message is not None:
            task = self._task
            task.sends += 1
            if self.closed:
                task.stop_timer()
                if self.state is ASGIHTTPState.CLOSED or _is_gone(self):
                    return self._send_to_nobody(message)
            if not task.sends % SENDS_IN_A_TURN:
                return self._send_after_others(message)
        return super().app_send(message)

    async def _send_after_others(self, message: ASGISendEvent) -> None:
        await self.context.sleep(0)
        await self.app_send(message)  # counted twice, which is once for this turn

    async def _send_to_nobody(self, message: Any) -> None:
        await self.context.sleep(0)
        kind = message["type"]
        if self.state is ASGIHTTPState.CLOSED:  # a mistake of the application's
            _count(self._task)
            await super().app_send(message)
        elif kind == "http.response.start":
            await super().app_send(message)
            self._task.cancel_after(LEFT_ALONE, self._was_received)
        elif kind == "http.response.body" and not message.get("more_body", False):
            await super().app_send(message)
        else:
            _count(self._task)
            raise ClientDisconnected(_GONE)

    def _was_received(self) -> bool:
        return _is_empty(self.app_put)


class DisconnectWSStream(BoundedWSStream):
    """A WebSocket whose application is told that its caller is gone."""

    def __init__(self, app: Any, config: Any, context: Any, task_group: Any, *rest: Any) -> None:
        task = application_task(app, task_group, VERSION, is_disconnect)
        super().__init__(task, config, context, task_group, *rest)
        self._task = task

    def app_send(self, message: ASGISendEvent | None) -> Coroutine[Any, Any, None]:
        """Send a message of the application's."""
        if message is not None:
            self._task.sends += 1
            if self.closed:
                return self._send_to_nobody(message)
            if not self._task.sends % SENDS_IN_A_TURN:
                return self._send_after_others(message)
        return super().app_send(message)

    async def _send_after_others(self, message: ASGISendEvent) -> None:
        await self.context.sleep(0)
        await self.app_send(message)

    async def _send_to_nobody(self, message: ASGISendEvent) -> None:
        await self.context.sleep(0)
        if message["type"] != "websocket.close" or self._task.sends_after_end:
            _count(self._task)
            raise ClientDisconnected(_GONE)


def _count(task: Any) -> None:
    """One message more that reaches nobody."""
    task.sends_after_end += 1
    if not task.sends_after_end % SENDS_AFTER_DISCONNECT:
        task.cancel()


def _is_gone(stream: HTTPStream) -> bool:
    """Whether nothing reaches the caller; one of HTTP/1.1 may only have ended its own sending."""
    protocol = stream.send.__self__  # type: ignore[attr-defined]
    return bool(getattr(protocol, "is_gone", True))


def _is_empty(put: Any) -> bool:
    """Whether the application has received all that was put into its queue (of asyncio)."""
    return put is None or bool(put.__self__.empty())


def install() -> None:
    """Bind them where Hypercorn looks the classes up."""
    for module in (hypercorn.protocol.h11, hypercorn.protocol.h2):
        module.HTTPStream = DisconnectHTTPStream  # type: ignore[attr-defined]
        module.WSStream = DisconnectWSStream  # type: ignore[attr-defined]
