"""R11: handshakes that never end, garbage, old TLS, no certificate; good callers go on."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from mesh_middleware.dev import DevAgent
from mesh_middleware.servers.hypercorn_tls import HANDSHAKE_SECONDS

from ..interop.callers import HOST, Caller, connect, outsider_context
from ..interop.conftest import Serve
from ..interop.test_hypercorn import caller
from ..support.servers import PATIENCE
from .apps import STREAMS
from .conftest import LONG

SILENT = 200
NOISY = 200
ASKED = 50
NOISY_EVERY = 0.05
"""Seconds between bad handshakes that go on and on."""
MEASURED = 10_000 if LONG else 200
"""Requests of a good caller, before and during those."""
SLOWER = 2.0
"""How many times as long the slowest hundredth of them may take."""
GONE = 60
LOOKS = 200
"""Times that the server is asked what it still has of callers that have gone."""

COUNTS = """
import gc
import sys

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from mesh_middleware import MeshAuthz


async def who(request):
    return JSONResponse(request.state.mesh.peer.id.uri)


async def kept(request):
    gc.collect()
    kinds = [sys.modules.get(f"hypercorn.{name}.tcp_server") for name in ("asyncio", "trio")]
    servers = tuple(kind.TCPServer for kind in kinds if kind is not None)
    return JSONResponse(sum(isinstance(each, servers) for each in gc.get_objects()))


app = Starlette(routes=[Route("/who", who), Route("/kept", kept)])
app.add_middleware(MeshAuthz)
"""


async def silent(port: int) -> float:
    """Connect, say the first bytes of a handshake, and wait; how long the server has patience."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"\x16\x03\x01\x02\x00")
    try:
        with suppress(OSError):
            await reader.read()
    finally:
        writer.transport.abort()
    return time.monotonic() - began


def old_hello() -> bytes:
    """The first message of a client that knows nothing newer than TLS 1.0."""
    suites = b"\x00\x2f\x00\x35\x00\x0a"
    said = b"\x03\x01" + bytes(32) + b"\x00" + len(suites).to_bytes(2, "big") + suites + b"\x01\x00"
    message = b"\x01" + len(said).to_bytes(3, "big") + said
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def huge_chain(agent: DevAgent) -> ssl.SSLContext:
    """Shows a certificate that would be let in, and a hundred kilobytes of others behind it."""
    chain, key = agent.issue("invoice")
    return outsider_context(chain + 200 * agent.roots_pem + key)


KINDS: dict[str, Callable[[DevAgent], bytes | ssl.SSLContext]] = {
    "garbage": lambda agent: bytes(512),
    "TLS 1.0": lambda agent: old_hello(),
    "nobody": lambda agent: outsider_context(None),
    "a foreign CA": lambda agent: outsider_context("".join(agent.issue("mallory", foreign=True))),
    "no name": lambda agent: outsider_context("".join(agent.issue("mallory", uris=()))),
    "a huge chain": huge_chain,
}
"""Bad connections: what each sends instead of a handshake, or with what context it tries one."""


async def noisy(port: int, made: bytes | ssl.SSLContext) -> bytes:
    """One bad connection; what the server's application said to it, alerts of TLS left out."""
    tls = made if isinstance(made, ssl.SSLContext) else None
    with suppress(OSError, EOFError):
        reader, writer = await asyncio.open_connection(HOST, port, ssl=tls)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" if tls else made)  # type: ignore[arg-type]
        try:
            said = await reader.read()
        finally:
            writer.transport.abort()
        return b"" if said[:1] == b"\x15" else said
    return b""


async def flood(agent: DevAgent, port: int) -> tuple[int, float]:
    """All at once; how often a good caller was answered, and the longest a silent one was held."""
    async with connect("h1", port, outsider_context(caller(agent).pem)) as good:
        waiting = [asyncio.ensure_future(silent(port)) for _ in range(SILENT)]
        contexts = [make(agent) for make in KINDS.values()]
        noise = [
            asyncio.ensure_future(noisy(port, contexts[number % len(contexts)]))
            for number in range(NOISY)
        ]
        answered = 0
        for _ in range(ASKED):
            answered += (await good.ask("/who"))[0].status == 200
        async with connect("h1", port, outsider_context(caller(agent).pem)) as fresh:
            answered += (await fresh.ask("/who"))[0].status == 200
        heard = await asyncio.wait_for(asyncio.gather(*noise), PATIENCE)
        assert set(heard) == {b""}, "not one byte of the application's"
        held = await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
        return answered, max(held)


async def times(good: Caller) -> list[float]:
    """What each of some requests took in milliseconds, sorted."""
    took = []
    for _ in range(MEASURED):
        began = time.perf_counter()
        (answer,) = await good.ask("/who")
        took.append((time.perf_counter() - began) * 1000)
        assert answer.status == 200
    return sorted(took)


async def steady(agent: DevAgent, port: int, over: asyncio.Event) -> int:
    """Silent connections, and bad ones without end; how many, until it is *over*."""
    waiting = [asyncio.ensure_future(silent(port)) for _ in range(SILENT)]
    contexts, noise = [make(agent) for make in KINDS.values()], set[asyncio.Task[bytes]]()
    count = 0
    while not over.is_set():
        task = asyncio.create_task(noisy(port, contexts[count % len(contexts)]))
        noise.add(task)
        task.add_done_callback(noise.discard)
        count += 1
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), NOISY_EVERY)
    for each in (*noise, *waiting):
        each.cancel()
    await asyncio.gather(*noise, *waiting, return_exceptions=True)
    return count


async def before_and_during(agent: DevAgent, port: int) -> tuple[list[float], list[float], int]:
    """What requests take in quiet, what they take in a flood, and its bad handshakes."""
    over = asyncio.Event()
    async with connect("h1", port, outsider_context(caller(agent).pem)) as good:
        await times(good)  # warm
        quiet = await times(good)
        flooding = asyncio.create_task(steady(agent, port, over))
        try:
            return quiet, await times(good), await stop(flooding, over)
        finally:
            over.set()


async def stop(flooding: asyncio.Task[int], over: asyncio.Event) -> int:
    """End a flood; how many bad handshakes there were."""
    over.set()
    return await asyncio.wait_for(flooding, PATIENCE)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_r11_good_callers_wait_no_longer_in_a_flood(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """
    Two hundred silent connections and twenty bad handshakes a second: p99 stays below the double.

    Asserted in the long form, for which the machine has nothing else to do. The flood's own work,
    done in the same process as the good caller's, is in the figure.
    """
    server = serve(STREAMS, worker_class=worker, backlog=1024, keep_alive_max_requests=1_000_000)
    quiet, flooded, bad = asyncio.run(before_and_during(agent, server.port()))
    middle, place = MEASURED // 2, int(0.99 * MEASURED)
    print(
        f"p50 and p99 of {MEASURED}: {quiet[middle]:.2f} and {quiet[place]:.2f} ms in quiet,"
        f" {flooded[middle]:.2f} and {flooded[place]:.2f} ms among {bad} bad handshakes"
    )
    assert bad > 0
    assert flooded[place] < SLOWER * quiet[place] or not LONG


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


async def leave(agent: DevAgent, port: int) -> tuple[int, int]:
    """Callers that say goodbye and callers that only go; connections kept at most, and at last."""
    tls = outsider_context(caller(agent).pem, alpn="http/1.1")
    async with connect("h1", port, tls) as good:
        for _ in range(GONE):
            reader, writer = await asyncio.open_connection(HOST, port, ssl=tls)
            writer.write(b"GET /who HTTP/1.1\r\nHost: tax\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 \r\n"
            writer.transport.abort()
            async with connect("h1", port, tls) as polite:
                await polite.ask("/who")
        most = kept = int((await good.ask("/kept"))[0].body)
        for _ in range(LOOKS):
            if kept == 1:
                break
            kept = int((await good.ask("/kept"))[0].body)
        return most, kept


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_r11_nothing_is_kept_of_callers_that_have_gone(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """Hypercorn alone keeps what was closed, buffers and all, for the idle time it allows."""
    server = serve(
        COUNTS, worker_class=worker, keep_alive_timeout=600, keep_alive_max_requests=9999
    )
    most, kept = asyncio.run(asyncio.wait_for(leave(agent, server.port()), PATIENCE))
    assert most < GONE / 10 and kept == 1
