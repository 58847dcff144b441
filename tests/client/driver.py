"""One way to drive the sync and the async client, so that a test says its claim once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
from anyio import to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from mesh_middleware.httpx import AsyncClient, AsyncMeshTransport, Client, MeshTransport

KINDS = ("sync", "asyncio", "uvloop", "trio")
OWN = ("sync", "asyncio", "uvloop")
"""Those whose connections of HTTP/1.1 are our own."""


class Driver:
    """
    Makes clients of one kind.

    Args:
        kind: ``sync``, or the event loop the async client runs on.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.portal: BlockingPortal | None = None

    @property
    def is_async(self) -> bool:
        """Whether clients are `AsyncClient`."""
        return self.kind != "sync"

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Run the event loop, if there is one, in a thread."""
        if not self.is_async:
            yield self
            return
        backend = "trio" if self.kind == "trio" else "asyncio"
        options = {"use_uvloop": self.kind == "uvloop"} if backend == "asyncio" else {}
        with start_blocking_portal(backend, options) as portal:
            self.portal = portal
            yield self

    def client(self, *args: Any, **options: Any) -> Session:
        """Open a mesh client."""
        return Session(self, AsyncClient if self.is_async else Client, args, options)

    def plain(self, *args: Any, **options: Any) -> Session:
        """Open a client of httpx itself."""
        return Session(self, httpx.AsyncClient if self.is_async else httpx.Client, args, options)

    def transport(self, *args: Any, **options: Any) -> Any:
        """Make a mesh transport."""
        return (AsyncMeshTransport if self.is_async else MeshTransport)(*args, **options)

    def mock(self, handler: Callable[[httpx.Request], httpx.Response]) -> Any:
        """Make httpx's own double of an ordinary transport."""
        return httpx.MockTransport(handler)

    def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call a function, awaiting it where clients are async."""
        if self.portal is None:
            return call(*args)
        return self.portal.call(call, *args)


class Session:
    """An open client; its methods block, whatever its kind."""

    def __init__(
        self, driver: Driver, kind: type[Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self.driver = driver
        self._make = lambda: kind(*args, **options)
        self.client: Any = None

    def __enter__(self) -> Self:
        self.client = self._make()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.driver.run(self.client.aclose if self.driver.is_async else self.client.close)

    def get(self, url: str, **options: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", url, **options)

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Send a request and read the response."""
        found: httpx.Response = self.driver.run(lambda: self.client.request(method, url, **options))
        return found

    def parts(self, method: str, url: str, **options: Any) -> tuple[httpx.Response, list[bytes]]:
        """Send a request and iterate over the raw parts of the response."""
        if not self.driver.is_async:
            with self.client.stream(method, url, **options) as response:
                return response, list(response.iter_raw())

        async def run() -> tuple[httpx.Response, list[bytes]]:
            async with self.client.stream(method, url, **options) as response:
                return response, [part async for part in response.aiter_raw()]

        found: tuple[httpx.Response, list[bytes]] = self.driver.run(run)
        return found

    def leave(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Send a request and close the response without reading it."""
        if not self.driver.is_async:
            with self.client.stream(method, url, **options) as response:
                return response  # type: ignore[no-any-return]

        async def run() -> httpx.Response:
            async with self.client.stream(method, url, **options) as response:
                return response  # type: ignore[no-any-return]

        found: httpx.Response = self.driver.run(run)
        return found

    def each(self, url: str, take: Callable[[bytes], None]) -> list[bytes]:
        """Hand every part of an answer to *take*, in a thread where clients are async."""
        if not self.driver.is_async:
            found = []
            with self.client.stream("GET", url) as response:
                for part in response.iter_raw():
                    found.append(part)
                    take(part)
            return found

        async def run() -> list[bytes]:
            found = []
            async with self.client.stream("GET", url) as response:
                async for part in response.aiter_raw():
                    found.append(part)
                    await to_thread.run_sync(take, part)
            return found

        parts: list[bytes] = self.driver.run(run)
        return parts

    def upgrade(self, method: str, url: str, data: bytes) -> tuple[bytes, bytes]:
        """Ask for an upgrade, write *data*, and read twice."""
        headers = {"Connection": "upgrade", "Upgrade": "echo"} if method == "GET" else {}
        if not self.driver.is_async:
            with self.client.stream(method, url, headers=headers) as response:
                stream = response.extensions["network_stream"]
                first = stream.read(5, timeout=5)
                stream.write(data, timeout=5)
                return first, stream.read(100, timeout=5)

        async def run() -> tuple[bytes, bytes]:
            async with self.client.stream(method, url, headers=headers) as response:
                stream = response.extensions["network_stream"]
                first = await stream.read(5, timeout=5)
                await stream.write(data, timeout=5)
                return first, await stream.read(100, timeout=5)

        found: tuple[bytes, bytes] = self.driver.run(run)
        return found


def drivers(kinds: tuple[str, ...]) -> Any:
    """Make the fixture ``driver`` of these kinds."""

    @pytest.fixture(params=kinds)
    def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
        with Driver(request.param).running() as driver:
            yield driver

    return driver
