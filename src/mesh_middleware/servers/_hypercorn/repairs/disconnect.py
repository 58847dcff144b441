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
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import ASGISendEvent

from ..application_run import ClientDisconnected, run_on_asyncio, run_on_trio
from .websocket_message_size import BoundedWSStream

SENDS_AFTER_DISCONNECT = 100
"""Messages that an application may send after it was told that its caller is gone."""
LEFT_ALONE = 5.0
"""Seconds for an application within a response to notice that its caller is gone."""
SENDS_IN_A_TURN = 4
"""Messages after which other connections have their turn."""

_ONCE = frozenset({"http.response.start", "http.response.body"})
_GONE = "the caller has disconnected"


class DisconnectHTTPStream(HTTPStream):
    """
    A request over HTTP/1.1 or HTTP/2 whose application is told that its caller is gone.

    Attributes:
        run: of its application.
    """

    app_put: Any = None  # Hypercorn reads it also where no application was started
    run: Any = None
    _sends = _sends_to_nobody = 0

    def before_close(self) -> None:
        """The connection closes the stream: its request is complete, or its caller is gone."""
        if self.state is ASGIHTTPState.RESPONSE:
            self.run.cancel_after(LEFT_ALONE, self._was_received)

    def app_send(self, message: Any) -> Coroutine[Any, Any, None]:
        """Send a message of the application's."""
        # Most responses are a start and one body: nothing is added to those.
        if message is None or (
            not self.closed and message["type"] in _ONCE and not message.get("more_body")
        ):
            return HTTPStream.app_send(self, message)
        return self._send(message)

    async def _send(self, message: Any) -> None:
        self._sends += 1
        if not self._sends % SENDS_IN_A_TURN:
            await self.context.sleep(0)
        if self.closed:
            self.run.keep()
            if self.state is ASGIHTTPState.CLOSED or _is_gone(self):
                await self._send_to_nobody(message)
                return
        await HTTPStream.app_send(self, message)

    async def _send_to_nobody(self, message: Any) -> None:
        await self.context.sleep(0)
        kind = message["type"]
        if self.state is ASGIHTTPState.CLOSED:  # a mistake of the application's
            self._count()
            await HTTPStream.app_send(self, message)
        elif kind == "http.response.start":
            await HTTPStream.app_send(self, message)
            self.run.cancel_after(LEFT_ALONE, self._was_received)
        elif kind == "http.response.body" and not message.get("more_body", False):
            await HTTPStream.app_send(self, message)
        else:
            self._count()
            raise ClientDisconnected(_GONE)

    def _count(self) -> None:
        self._sends_to_nobody += 1
        if not self._sends_to_nobody % SENDS_AFTER_DISCONNECT:
            self.run.cancel()

    def _was_received(self) -> bool:
        """Whether the application has received all that was put into its queue (of asyncio)."""
        return self.app_put is None or bool(self.app_put.__self__.empty())


class DisconnectWSStream(BoundedWSStream):
    """
    A WebSocket whose application is told that its caller is gone.

    Attributes:
        run: of its application.
    """

    run: Any = None
    _sends = _sends_to_nobody = 0

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Send a message of the application's."""
        self._sends += 1
        if not self._sends % SENDS_IN_A_TURN:
            await self.context.sleep(0)
        if message is None or not self.closed:
            await super().app_send(message)
        else:
            await self._send_to_nobody(message)

    async def _send_to_nobody(self, message: ASGISendEvent) -> None:
        await self.context.sleep(0)
        if message["type"] == "websocket.close" and not self._sends_to_nobody:
            return
        self._sends_to_nobody += 1
        if not self._sends_to_nobody % SENDS_AFTER_DISCONNECT:
            self.run.cancel()
        raise ClientDisconnected(_GONE)


def _is_gone(stream: HTTPStream) -> bool:
    """Whether nothing reaches the caller; one of HTTP/1.1 may only have ended its own sending."""
    protocol = stream.send.__self__  # type: ignore[attr-defined]
    return bool(getattr(protocol, "is_gone", True))


def install() -> None:
    """Bind them where Hypercorn looks them up."""
    for module in (hypercorn.protocol.h11, hypercorn.protocol.h2):
        module.HTTPStream = DisconnectHTTPStream  # type: ignore[attr-defined]
        module.WSStream = DisconnectWSStream  # type: ignore[attr-defined]
    for name, run in (("asyncio", run_on_asyncio), ("trio", run_on_trio)):
        loaded: Any = sys.modules.get(f"hypercorn.{name}.task_group")
        if loaded is not None:
            loaded._handle = run
