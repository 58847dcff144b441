"""What Hypercorn knows of the answers that it sends, read from its objects for streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper

from ...inbound.judgement import SERVER_SEND

_COMPLETE = frozenset({"CLOSED", "HTTPCLOSED"})
"""Names of the states of ``HTTPStream`` and ``WSStream`` in which nothing more is sent."""


class HypercornStreams:
    """
    Tells which answers are complete.

    Hypercorn gives applications a bound method of its object for the stream, which knows.
    """

    def is_complete(self, send: object) -> bool:
        """
        Whether the last byte was handed to the network, or cannot be any more.

        Args:
            send: what Hypercorn gave to the application.
        """
        stream = getattr(send, "__self__", None)
        if stream is None:
            return False
        return bool(stream.closed) or stream.state.name in _COMPLETE


class HostedApplication(ASGIWrapper):
    """Hypercorn's wrapper around an ASGI application; leaves the stream's own ``send`` in scope."""

    async def __call__(
        self,
        scope: Any,
        receive: Any,
        send: Any,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        """Call the application."""
        scope[SERVER_SEND] = send
        await self.app(scope, receive, send)
