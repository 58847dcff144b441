"""Heads of HTTP/1.1 requests that come slowly, are too large, or come before they are wanted."""

from __future__ import annotations

import asyncio
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypercorn.config import Config

from mesh_middleware.dev import DevAgent
from mesh_middleware.servers._hypercorn.repairs.h11_framing import FramingH11Protocol

from ..attack.raw import dial, read_all
from ..support.servers import PATIENCE
from ..support.steps import yield_times
from .conftest import Serve
from .in_process import connected
from .test_framing import REFUSED
from .test_hypercorn import caller

NEXT = b"GET / HTTP/1.1\r\nHost: tax\r\n\r\n"
READ = 1 << 16
"""Bytes that one read of Hypercorn's takes at most."""


class Slow:
    """An application that answers when the test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        self.asked += 1
        await self.go.wait()
        head = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b""})


def test_what_comes_behind_a_request_that_is_not_answered_waits() -> None:
    """Not more than one read of it is held, and one application runs; then each is answered."""
    count = READ // len(NEXT)

    async def ask() -> tuple[bool, int, int, list[int]]:
        app = Slow()
        async with connected(FramingH11Protocol, app) as both, asyncio.timeout(PATIENCE):
            reading = asyncio.create_task(both.come(NEXT * count))
            await yield_times(100)
            waits, asked = not reading.done(), app.asked
            held = len(both.protocol.connection.trailing_data[0])
            app.go.set()
            return waits, asked, held, [await both.answer() for _ in range(100)]

    assert asyncio.run(ask()) == (True, 1, (count - 1) * len(NEXT), [200] * 100)


def test_a_head_in_pieces_is_bounded() -> None:
    """It is refused when it is too large, and the rest of it is not read."""

    async def ask() -> tuple[int, bool]:
        async with connected(FramingH11Protocol, Slow()) as both, asyncio.timeout(PATIENCE):
            await both.come(NEXT[:-2])
            sent = 0
            while not both.protocol.closing:
                await both.come(b"a: " + bytes(b"b" * 1000) + b"\r\n")
                sent += 1000
            return await both.answer(), sent <= Config().h11_max_incomplete_size + 1000

    assert asyncio.run(ask()) == (431, True)


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_a_head_that_drips_ends_its_connection(worker: str, agent: DevAgent, serve: Serve) -> None:
    """Each byte gives it no more time; nor does it where requests came before."""
    server = serve(worker_class=worker, keep_alive_timeout=0.5)
    port, pem, pause = server.port(), caller(agent).pem, threading.Event()

    def drip(before: bytes) -> int:
        with dial(port, pem, alpn="http/1.1") as connection:
            connection.sendall(before + NEXT[:-2] + b"a: ")
            for sent in range(round(PATIENCE / 0.05)):
                try:
                    connection.sendall(b"b")
                except (ConnectionError, ssl.SSLError):
                    return sent
                pause.wait(0.05)
        raise AssertionError("never closed")

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(drip, (b"", NEXT)))


@pytest.mark.parametrize("worker", ["asyncio", "trio"])
def test_bad_requests_leave_no_word_in_the_log(worker: str, agent: DevAgent, serve: Serve) -> None:
    """A caller cannot fill it: every one gets its status, and that is all."""
    server = serve(worker_class=worker)
    port, pem, before = server.port(), caller(agent).pem, server.lines

    def ask(case: tuple[int, bytes]) -> bool:
        with dial(port, pem, alpn="http/1.1") as connection:
            connection.sendall(case[1])
            return read_all(connection).startswith(b"HTTP/1.1 %d " % case[0])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, REFUSED.values()))
    assert server.lines == before
