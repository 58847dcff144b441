"""A response over HTTP/2 waits for its reader: what is held back meanwhile is bounded."""

from __future__ import annotations

import asyncio
from typing import Any

import h2.events
import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes

from mesh_middleware.servers._hypercorn.repairs.h2_flow_control import HIGH_WATER, SLICE
from mesh_middleware.servers.hypercorn_mend import FAILED_RESPONSE_TIMEOUT

from ..reliability import virtual
from ..support.h2_connection import H2Inside, Turn, h2_inside
from ..support.servers import PATIENCE

MEGABYTE = 1 << 20


class Writer:
    """An application that answers in pieces, and counts what was taken of it."""

    def __init__(self, size: int, pieces: int) -> None:
        self.size, self.pieces, self.sent = size, pieces, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(self.pieces):
            message = {"type": "http.response.body", "body": b"x" * self.size, "more_body": True}
            await send(message)
            self.sent += self.size
        await send({"type": "http.response.body", "body": b""})


async def rest(turns: int = 300) -> None:
    """Let everything run that can."""
    for _ in range(turns):
        await Turn()


@pytest.mark.parametrize("window", [0, 1000, 65535])
@pytest.mark.parametrize("size", [1, 10_000, 65_536, 3 * MEGABYTE])
def test_what_waits_for_a_closed_window_is_bounded(size: int, window: int) -> None:
    """Whatever the size of a message: it enters the buffer in slices, and its writer waits."""
    writer = Writer(size, 10**6 if size > 1 else 500_000)

    async def scenario() -> None:
        async with h2_inside(writer, window=window) as ends:
            stream = ends.request()
            await ends.flush()
            most = 0
            for _ in range(2000):
                await Turn()
                most = max(most, ends.waiting(stream))
            assert most <= HIGH_WATER + SLICE
            assert writer.sent <= window + HIGH_WATER + SLICE + size

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


async def read_all(ends: H2Inside, stream: int, most: list[int]) -> bytes:
    """Read a response slowly: the window opens only for what has come."""
    body = b""
    while not any(event.stream_id == stream for event in ends.of(h2.events.StreamEnded)):
        await Turn()
        most.append(ends.waiting(stream))
        for event in ends.of(h2.events.DataReceived):
            body += event.data
            ends.peer.acknowledge_received_data(event.flow_controlled_length, stream)
        ends.events = [e for e in ends.events if not isinstance(e, h2.events.DataReceived)]
        if ends.peer._data_to_send:
            await ends.flush()
    return body


@pytest.mark.parametrize(
    ("size", "pieces"), [(8 * MEGABYTE, 1), (100_000, 80), (1000, 3000), (SLICE, 9), (SLICE + 1, 9)]
)
def test_a_slow_reader_gets_all_of_it(size: int, pieces: int) -> None:
    """In order, complete, and without holding more than the bound."""
    most: list[int] = []

    async def scenario() -> None:
        async with h2_inside(Writer(size, pieces)) as ends:
            stream = ends.request()
            await ends.flush()
            body = await read_all(ends, stream, most)
            body += b"".join(event.data for event in ends.of(h2.events.DataReceived))
            assert body == b"x" * size * pieces

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))
    assert max(most) <= HIGH_WATER + SLICE


def test_a_stream_that_is_reset_lets_its_writer_go() -> None:
    """It waits for nobody, and the rest of its message is not copied."""
    writer = Writer(3 * MEGABYTE, 2)

    async def scenario() -> None:
        async with h2_inside(writer, window=0) as ends:
            stream = ends.request()
            await ends.flush()
            await rest()
            assert writer.sent == 0
            ends.peer.reset_stream(stream)
            await ends.flush()
            await rest()
            assert ends.waiting(stream) == 0
            assert not ends.protocol.streams.get(stream)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


async def fails_within(scope: Any, receive: Any, send: Any) -> None:
    """It has sent more than the window takes when it fails."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})


def on_asyncio(work: Any) -> None:
    """In virtual time."""
    virtual.run(work())


def on_trio(work: Any) -> None:
    """In virtual time."""
    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("window", [0, 1, 999, 1000])
@pytest.mark.parametrize("worker", ["asyncio", "trio"])
def test_a_failed_response_that_is_not_read_is_reset(worker: str, window: int) -> None:
    """Its stream, its buffer and the task of its application end; the peer sees no complete end."""

    async def scenario() -> None:
        async with h2_inside(fails_within, window=window, worker=worker) as ends:
            stream = ends.request()
            await ends.flush()
            await ends.protocol.context.sleep(2 * FAILED_RESPONSE_TIMEOUT)
            (reset,) = ends.of(h2.events.StreamReset)
            assert (reset.stream_id, reset.error_code) == (stream, ErrorCodes.INTERNAL_ERROR)
            assert not ends.of(h2.events.StreamEnded)
            assert sum(len(event.data) for event in ends.of(h2.events.DataReceived)) == window
            assert not ends.protocol.streams and not ends.protocol.stream_buffers

    (on_trio if worker == "trio" else on_asyncio)(scenario)


@pytest.mark.parametrize("worker", ["asyncio", "trio"])
def test_a_failed_response_that_is_read_late_arrives_first(worker: str) -> None:
    """Within the limit the peer gets all that the application sent, then the reset."""

    async def scenario() -> None:
        async with h2_inside(fails_within, window=0, worker=worker) as ends:
            stream = ends.request()
            await ends.flush()
            await ends.protocol.context.sleep(FAILED_RESPONSE_TIMEOUT / 2)
            assert not ends.of(h2.events.StreamReset)
            ends.peer.increment_flow_control_window(1000, stream)
            await ends.flush()
            await ends.protocol.context.sleep(FAILED_RESPONSE_TIMEOUT / 4)
            assert sum(len(event.data) for event in ends.of(h2.events.DataReceived)) == 1000
            assert len(ends.of(h2.events.StreamReset)) == 1

    (on_trio if worker == "trio" else on_asyncio)(scenario)
