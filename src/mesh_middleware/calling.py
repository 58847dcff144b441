"""
What a mesh offers to those who call raw, or look at an upstream.

Owns the names; the dialling is `raw`'s, which is loaded with the first connection: a service that
calls nobody does not pay for it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from .config import Settings
from .identity import ServiceId

if TYPE_CHECKING:
    from collections.abc import Callable

    from .resolve import Upstream
    from .routing.report import AttemptReport
    from .upstreams import UpstreamWatch
    from .watched import Watched

CONNECT_TIMEOUT = 10.0
"""Seconds for finding an instance, connecting and the handshake, together."""


class Calling(ABC):
    """What a mesh offers to those who call raw, or look at an upstream; `mesh_middleware.Mesh`."""

    settings: Settings
    _watched: Watched | None

    @abstractmethod
    def client_context(self, expected: ServiceId) -> ssl.SSLContext:
        """The context for connections to one identity."""

    @property
    @abstractmethod
    def attempt_told(self) -> Callable[[AttemptReport], None] | None:
        """Hears of each attempt; ``None`` when nobody does."""

    @abstractmethod
    def _watch(self) -> Watched:
        """Make the table of watches; raises `NotReadyError` where the mesh is not running."""

    def watch_upstream(self, upstream: Upstream | str) -> UpstreamWatch:
        """
        Keep informed of the instances of an upstream; the same watch for the same name, until
        nobody has called it for long.

        Args:
            upstream: who is called; a text is the name of a service. Without a datacenter the
                configured one, or the agent's, is meant; ``connect`` is another word for
                ``service``.

        Raises:
            NotReadyError: the mesh is not running.
            ResolveError: too many are watched already.
        """
        return (self._watched or self._watch()).find(upstream, time.monotonic())

    def upstream(self, name: str) -> UpstreamWatch:
        """
        Look at an upstream: ``mesh.upstream("tax").state`` tells its instances and who is ejected.

        Args:
            name: as in a URL: ``tax``, ``tax.service.dc2.consul``, ``near.query.consul``.

        Raises:
            ResolveError: *name* is no name in the mesh.
            NotReadyError: the mesh is not running.
        """
        from .resolve import parse_upstream

        return self.watch_upstream(parse_upstream(name, domain=self.settings.domain))

    async def connect(
        self,
        name: str,
        *,
        timeout: float = CONNECT_TIMEOUT,  # noqa: ASYNC109 - one word for both forms
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """
        Open a raw TCP connection to an upstream, for asyncio: ``await mesh.connect("db")``.

        Args:
            name: as in a URL.
            timeout: seconds, all attempts together.

        Raises:
            ResolveError: *name* is no name in the mesh; `NoHealthyInstanceError`: nobody is well;
                `BreakerOpenError`: all are ejected.
            PeerMismatchError: somebody else answers; nothing was sent.
            NotReadyError: the mesh is not running, or was told nothing about *name*.
            OSError: no instance could be reached; ``TimeoutError`` when time was over.
        """
        from .raw import open_stream

        upstream = self.upstream(name)
        return await open_stream(upstream, self.client_context, timeout, self.attempt_told)

    def connect_socket(self, name: str, *, timeout: float = CONNECT_TIMEOUT) -> ssl.SSLSocket:
        """
        Open a raw TCP connection to an upstream, as a blocking socket; as `connect`.

        Raises:
            ResolveError, PeerMismatchError, NotReadyError, OSError: as `connect`.
        """
        from .raw import open_socket

        return open_socket(self.upstream(name), self.client_context, timeout, self.attempt_told)
