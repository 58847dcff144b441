"""R11: handshakes that never end, garbage, old TLS, no certificate; good callers go on."""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import suppress

import pytest

from mesh_middleware.dev import DevAgent
from mesh_middleware.servers.hypercorn_tls import HANDSHAKE_SECONDS

from ..interop.callers import HOST, connect, outsider_context
from ..interop.conftest import Serve
from ..interop.test_hypercorn import caller
from ..support.servers import PATIENCE
from .apps import STREAMS

SILENT = 200
NOISY = 200
ASKED = 50


async def silent(port: int) -> float:
    """Connect, say the first bytes of a handshake, and wait; how long the server has patience."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"\x16\x03\x01\x02\x00")
    with suppress(OSError):
        await reader.read()
    writer.transport.abort()
    return time.monotonic() - began


async def noisy(port: int, kind: int, agent: DevAgent) -> None:
    """One bad connection after the other: garbage, TLS 1.1, nobody, a certificate of nobody's."""
    tls: ssl.SSLContext | None = None
    if kind == 1:
        tls = outsider_context(None)
    elif kind == 2:
        tls = outsider_context("".join(agent.issue("mallory", foreign=True)))
    elif kind == 3:
        tls = outsider_context("".join(agent.issue("mallory", uris=())))
    with suppress(OSError, EOFError):
        reader, writer = await asyncio.open_connection(HOST, port, ssl=tls)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" if kind else b"\x00" * 512)
        assert await reader.read() == b""
        writer.transport.abort()


async def flood(agent: DevAgent, port: int) -> tuple[int, float]:
    """All at once; how often a good caller was answered, and the longest a silent one was held."""
    async with connect("h1", port, outsider_context(caller(agent).pem)) as good:
        waiting = [asyncio.ensure_future(silent(port)) for _ in range(SILENT)]
        noise = [asyncio.ensure_future(noisy(port, n % 4, agent)) for n in range(NOISY)]
        answered = 0
        for _ in range(ASKED):
            answered += (await good.ask("/who"))[0].status == 200
        async with connect("h1", port, outsider_context(caller(agent).pem)) as fresh:
            answered += (await fresh.ask("/who"))[0].status == 200
        await asyncio.wait_for(asyncio.gather(*noise), PATIENCE)
        held = await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
        return answered, max(held)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("worker", ["asyncio", "trio"])
def test_r11_good_callers_go_on_during_a_flood(worker: str, agent: DevAgent, serve: Serve) -> None:
    """
    Two hundred handshakes that never end and two hundred bad ones: every good request is answered.

    The silent ones are let go after ten seconds, instead of Hypercorn's sixty.
    """
    server = serve(STREAMS, worker_class=worker, backlog=1024)
    answered, held = asyncio.run(flood(agent, server.port()))
    assert answered == ASKED + 1
    assert held < HANDSHAKE_SECONDS + 5.0
    assert "Traceback" not in server.output, server.output
