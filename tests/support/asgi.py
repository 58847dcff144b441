"""
A server for one ASGI request, in the test's own process.

Owns what the client sends and what it takes: both can be held back for as long as a test likes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote

import pytest
import uvloop

from .servers import PATIENCE

Got = TypeVar("Got")
Message = dict[str, Any]
GONE: Message = {"type": "http.disconnect"}


def piece(data: bytes, *, more: bool = True) -> Message:
    """One message of a request's body."""
    return {"type": "http.request", "body": data, "more_body": more}


class Exchange:
    """
    One request, and what was answered. Belongs to the event loop in which it was made.

    Args:
        target: as a client writes it, percent-encoded.
        messages: what the client sends; by default a request without a body.
        headers: of the request.
        reads: whether the client takes what it is sent; `read` begins that later.
        scope: what else the scope holds, or holds differently.
    """

    def __init__(
        self,
        target: str = "/",
        messages: Sequence[Message] | None = None,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        reads: bool = True,
        **scope: Any,
    ) -> None:
        path, _, query = target.partition("?")
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.1"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "https",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"tax"), *headers],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8443),
            **scope,
        }
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self.arrive(*((piece(b"", more=False),) if messages is None else messages))
        self._reading = asyncio.Event()
        if reads:
            self.read()
        self.receives = 0
        self.sent: list[Message] = []

    def arrive(self, *messages: Message) -> None:
        """The client sends more."""
        for message in messages:
            self._messages.put_nowait(message)

    def read(self) -> None:
        """The client takes what it is sent."""
        self._reading.set()

    async def receive(self) -> Message:
        """What the client sends; then nothing more."""
        self.receives += 1
        return await self._messages.get()

    async def send(self, message: Message) -> None:
        """What the application answers."""
        self.sent.append(message)
        await self._reading.wait()

    def begin(self, app: Any) -> asyncio.Task[None]:
        """Let *app* answer, in a task of its own."""
        return asyncio.get_running_loop().create_task(app(self.scope, self.receive, self.send))

    async def through(self, app: Any) -> Exchange:
        """Let *app* answer."""
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int:
        """Status of the answer."""
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {k.decode(): v.decode("latin-1") for k, v in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        """Body of the answer, as far as it was sent."""
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def whole(self) -> bool:
        """Whether the answer had its end."""
        return bool(self.sent) and self.sent[-1].get("more_body") is False


async def met(condition: Callable[[], Any], what: str) -> None:
    """Wait in the event loop until *condition* holds."""

    async def look() -> None:
        loop = asyncio.get_running_loop()
        while not condition():
            later = loop.create_future()
            loop.call_later(0.002, later.set_result, None)
            await later

    try:
        await asyncio.wait_for(look(), PATIENCE)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE:g} s: {what}")


def run(work: Callable[[], Awaitable[Got]], loop: str = "asyncio") -> Got:
    """Do *work* in an event loop of its own, with a limit."""
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop

    async def main() -> Got:
        return await asyncio.wait_for(work(), PATIENCE)

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


class Gate:
    """Holds a thread until the test opens it, and tells how many have come."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.came = 0

    def open(self) -> None:
        """Let everyone through."""
        self._open.set()

    def wait(self) -> None:
        """Wait in the application's thread."""
        self.came += 1
        assert self._open.wait(PATIENCE)


@contextmanager
def opened(*gates: Gate) -> Iterator[None]:
    """Open the gates at the end, whatever happens: their threads would keep the process."""
    try:
        yield
    finally:
        for gate in gates:
            gate.open()
