"""The rest of a request that was answered early, whatever one read of the server finds of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh_middleware.config import MAX_UNREAD_BODY
from mesh_middleware.servers._hypercorn.repairs.h11_framing import FramingH11Protocol

from ..support.servers import PATIENCE
from ..support.steps import yield_times
from .in_process import InProcess, connected

HEAD = b"POST / HTTP/1.1\r\nHost: tax\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET / HTTP/1.1\r\nHost: tax\r\n\r\n"
PIECE = 1 << 16

REQUESTS = {
    "chunked": CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
    "trailer": CHUNKED + b"2\r\nab\r\n0\r\nA: b\r\n\r\n",
    "no body": CHUNKED + b"0\r\n\r\n",
    "length": HEAD + b"Content-Length: 3\r\n\r\nabc",
}


async def early(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads no body."""
    head = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 403, "headers": head})
    await send({"type": "http.response.body", "body": b""})


async def ask_in_reads(*reads: bytes) -> list[int]:
    """Let these come one after the other, each when what was asked before has its response."""
    async with connected(FramingH11Protocol, early) as both, asyncio.timeout(PATIENCE):
        seen: list[int] = []
        sent = b""
        for data in reads:
            await both.come(data)
            sent += data
            if not seen and b"\r\n\r\n" in sent:
                seen.append(await both.answer())
        seen.append(await both.answer())
        return seen


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_no_request_is_lost_wherever_a_read_ends(name: str) -> None:
    """Every event of h11 is handled once: the end of a body that comes alone was dropped."""
    whole = REQUESTS[name] + NEXT
    cuts = range(1, len(whole))
    seen = {cut: asyncio.run(ask_in_reads(whole[:cut], whole[cut:])) for cut in cuts}
    assert seen == dict.fromkeys(cuts, [403, 403])


def test_no_request_is_lost_in_reads_of_one_byte() -> None:
    """The same, byte by byte."""
    each = [bytes([byte]) for byte in REQUESTS["trailer"] + NEXT]
    assert asyncio.run(ask_in_reads(*each)) == [403, 403]


def framed(size: int, *, chunked: bool) -> bytes:
    return b"%x\r\n" % size + bytes(size) + b"\r\n" if chunked else bytes(size)


async def begin(both: InProcess, *, chunked: bool, length: int) -> None:
    await both.come(CHUNKED if chunked else HEAD + b"Content-Length: %d\r\n\r\n" % length)
    assert await both.answer() == 403


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_the_bound_is_exact(chunked: bool) -> None:
    """As many bytes are read; then the connection serves the next request."""

    async def ask() -> int:
        async with connected(FramingH11Protocol, early) as both, asyncio.timeout(PATIENCE):
            await begin(both, chunked=chunked, length=MAX_UNREAD_BODY)
            for _ in range(MAX_UNREAD_BODY // PIECE):
                await both.come(framed(PIECE, chunked=chunked))
            await both.come(b"0\r\n\r\n" * chunked + NEXT)
            return await both.answer()

    assert asyncio.run(ask()) == 403


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "length"])
def test_beyond_the_bound_nothing_is_read(chunked: bool) -> None:
    """One read more, and the connection ends; until it has, nothing is taken from the socket."""

    async def ask() -> tuple[int, bool, int]:
        async with connected(FramingH11Protocol, early) as both, asyncio.timeout(PATIENCE):
            await begin(both, chunked=chunked, length=10**12)
            taken = 0
            while not both.protocol.closing:
                await both.come(framed(PIECE, chunked=chunked))
                taken += PIECE
            last = asyncio.create_task(both.come(bytes(PIECE)))
            await yield_times(10)
            waits = not last.done()
            end = await both.answer()
            await last  # the socket is closed; the reader finds that out
            return taken, waits, end

    assert asyncio.run(ask()) == (MAX_UNREAD_BODY + PIECE, True, 0)


def test_small_chunks_give_others_their_turns() -> None:
    """One read may hold ten thousand; the loop goes on between them, and the bound comes sooner."""

    async def ask() -> tuple[int, int]:
        async with connected(FramingH11Protocol, early) as both, asyncio.timeout(PATIENCE):
            await begin(both, chunked=True, length=0)
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await yield_times(1)
                    turns += 1

            counting = asyncio.create_task(count())
            reads = 0
            while not both.protocol.closing:
                await both.come(b"1\r\nx\r\n" * 5000)
                reads += 1
            counting.cancel()
            return reads, turns

    reads, turns = asyncio.run(ask())
    assert reads == 4  # 64 bytes are counted for each
    assert turns > 100
