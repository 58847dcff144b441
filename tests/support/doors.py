"""
A service of the mesh inside the test's own process, and requests that come to its doors.

Owns an agent, the service's mesh, and connections made in memory: a door hears of a peer in the one
way it does in a server, from the TLS object, asked in the connection's own task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Self, TypeVar
from urllib.parse import unquote

from mesh_middleware import Mesh, Peer
from mesh_middleware.dev import DevAgent

from .handshakes import Ends
from .servers import PATIENCE

Message = MutableMapping[str, Any]
Got = TypeVar("Got")


class Inside:
    """
    A service and its callers; use it in ``with``.

    Args:
        name: the service.
        agent: arguments of the dev agent.
        options: of its mesh.
    """

    def __init__(self, name: str = "tax", agent: dict[str, Any] | None = None, **options: Any):
        self.agent = DevAgent(**(agent or {}))
        self._name, self._options = name, options

    def __enter__(self) -> Self:
        self.agent.start()
        self.mesh = Mesh(self._name, agent=self.agent.url, **self._options).start()
        self.callers: dict[str, Mesh] = {}
        assert self.mesh.ready(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        for mesh in (self.mesh, *self.callers.values()):
            mesh.close()
        self.agent.close()

    def connect(self, source: str = "invoice") -> Ends:
        """A connection of *source*, its handshake done."""
        if source not in self.callers:
            self.callers[source] = Mesh(source, agent=self.agent.url, register=False).start()
            assert self.callers[source].ready(PATIENCE)
        leaf = self.mesh.snapshot.leaf
        assert leaf is not None
        context = self.callers[source].client_context(leaf.id)
        ends = Ends(context, self.mesh.server_context()).shake()
        assert ends.well, (ends.client_error, ends.server_error)
        return ends

    def peer(self, source: str = "invoice") -> Peer:
        """Who *source* is, as its connection tells."""
        peer: Peer = self.connect(source).server.mesh_peer  # type: ignore[attr-defined]
        return peer

    def run(self, work: Callable[[], Awaitable[Got]], source: str | None = "invoice") -> Got:
        """Do *work* in the task of a connection of *source*; of nobody's when ``None``."""
        ends = self.connect(source) if source else None

        async def main() -> Got:
            if ends is not None:
                ends.server.selected_alpn_protocol()
            return await asyncio.wait_for(work(), PATIENCE)

        return asyncio.run(main())


class Exchange:
    """
    One ASGI request: what the server would give and what it gets.

    Args:
        path: as a client writes it, percent-encoded.
        kind: ``http`` or ``websocket``.
        scope: what else the scope holds, or holds differently.
    """

    def __init__(self, path: str = "/who", kind: str = "http", **scope: Any) -> None:
        target, _, query = path.partition("?")
        self.scope: dict[str, Any] = {
            "type": kind,
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "https" if kind == "http" else "wss",
            "path": unquote(target),
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"tax")],
            **scope,
        }
        first = "http.request" if kind == "http" else "websocket.connect"
        self.waiting: list[Message] = [{"type": first, "body": b"", "more_body": False}]
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        """What the client sends; then nothing more."""
        if self.waiting:
            return self.waiting.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(self, message: Message) -> None:
        """What the application answers."""
        self.sent.append(message)

    async def through(self, app: Any) -> Self:
        """Let *app* answer."""
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        """Status of the answer."""
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Headers of the answer."""
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        """Body of the answer."""
        return b"".join(message.get("body", b"") for message in self.sent[1:])


class App:
    """An ASGI application that notes what it is asked, and answers 200."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"well"})


def secrets_of(pem: str) -> list[str]:
    """The lines of a private key, each a secret."""
    return [line for line in pem.splitlines() if line and not line.startswith("-----")]
