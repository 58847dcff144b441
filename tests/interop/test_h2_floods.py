"""One HTTP/2 connection leaves the others their turns, and ends when it resets too much."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h2.events
import pytest
from hypercorn.asyncio.worker_context import WorkerContext
from hyperframe.frame import PriorityFrame, WindowUpdateFrame

from mesh_middleware.config import H2_MAX_RESETS
from mesh_middleware.servers._hypercorn.repairs.h2_floods import RESET_WINDOW, SLICE, ResetCount

from ..support.h2_connection import H2Inside, Turn, h2_inside
from ..support.servers import PATIENCE


async def short(scope: Any, receive: Any, send: Any) -> None:
    """Answers at once."""
    await send({"type": "http.response.start", "status": 403, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


class Holding:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.go.wait()
        await short(scope, receive, send)


def run(work: Any) -> None:
    """Run a test's coroutine, with a limit."""
    asyncio.run(asyncio.wait_for(work, PATIENCE))


class Moments:
    """Seconds that the test moves, as the clock of a worker."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize("step", [0.0, 0.01, 0.99 * RESET_WINDOW / H2_MAX_RESETS])
def test_resets_within_the_window_are_counted(step: float) -> None:
    """As many as are allowed are taken; one more is too many."""
    moments = Moments()
    count = ResetCount(H2_MAX_RESETS, moments)
    for _ in range(H2_MAX_RESETS):
        assert not count.add()
        moments.seconds += step
    assert count.add()


def test_resets_that_are_spread_are_none_too_many() -> None:
    """A caller that gives up now and then, for days."""
    moments = Moments()
    count = ResetCount(H2_MAX_RESETS, moments)
    for _ in range(10 * H2_MAX_RESETS):
        moments.seconds += 1.01 * RESET_WINDOW / H2_MAX_RESETS
        assert not count.add()


def flood(ends: H2Inside, kind: str) -> bytes:
    """Bytes of a flood of one kind, as one or several reads bring them."""
    if kind == "requests":
        for _ in range(90):
            ends.request("/" + "x" * 30)
    elif kind == "resets":
        for _ in range(90):
            ends.peer.reset_stream(ends.request())
    elif kind == "priorities":
        frames = [PriorityFrame(2 * n + 1, stream_weight=n % 200) for n in range(1100)]
        return b"".join(frame.serialize() for frame in frames)
    elif kind == "pings":
        for _ in range(500):
            ends.peer.ping(b"12345678")
    data: bytes = ends.peer.data_to_send()
    return data


@pytest.mark.parametrize("kind", ["requests", "resets", "priorities", "pings"])
def test_a_flood_leaves_others_their_turns(kind: str) -> None:
    """Between any two slices of what was read, the event loop turns."""
    turns: list[int] = [0]

    async def scenario() -> None:
        async def others() -> None:
            while True:
                await Turn()
                turns[0] += 1

        async with h2_inside(short) as ends:
            data = flood(ends, kind)
            other = asyncio.create_task(others())
            await Turn()
            before = turns[0]
            from hypercorn.events import RawData

            await ends.protocol.handle(RawData(data))
            assert turns[0] - before >= len(data) // SLICE
            other.cancel()

    run(scenario())


def test_priorities_of_streams_that_do_not_exist_cost_nothing() -> None:
    """A thousand and more: the tree of priorities stays empty, and the connection serves."""

    async def scenario() -> None:
        async with h2_inside(short) as ends:
            from hypercorn.events import RawData

            await ends.protocol.handle(RawData(flood(ends, "priorities")))
            assert len(ends.protocol.priority._streams) <= 1
            ends.request()
            await ends.flush()
            for _ in range(20):
                await Turn()
            assert len(ends.of(h2.events.ResponseReceived)) == 1
            assert not ends.closed

    run(scenario())


@pytest.mark.parametrize("depends_on", [1, 3, 99])
def test_priorities_of_streams_that_exist_are_kept(depends_on: int) -> None:
    """On themselves, on each other, on none: no error, and both are answered."""
    app = Holding()

    async def scenario() -> None:
        async with h2_inside(app) as ends:
            ends.request(), ends.request()
            await ends.flush()
            from hypercorn.events import RawData

            for stream, on in ((1, 3), (3, depends_on)):
                if stream != on:
                    frame = PriorityFrame(stream, depends_on=on, stream_weight=9)
                    await ends.protocol.handle(RawData(frame.serialize()))
            app.go.set()
            for _ in range(50):
                await Turn()
            assert len(ends.of(h2.events.StreamEnded)) == 2

    run(scenario())


def test_too_many_resets_end_the_connection_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """GOAWAY with its reason; what was begun is answered; what comes later is refused; one line."""
    app, context, moments = Holding(), WorkerContext(None), Moments()
    context.time = moments  # type: ignore[method-assign,assignment]

    async def scenario() -> None:
        async with h2_inside(app, context=context) as ends:
            begun = ends.request()
            for _ in range(H2_MAX_RESETS):
                ends.peer.reset_stream(ends.request())
                await ends.flush()
            assert not ends.of(h2.events.ConnectionTerminated)
            ends.peer.reset_stream(ends.request())
            await ends.flush()
            (end,) = ends.of(h2.events.ConnectionTerminated)
            assert end.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
            assert end.last_stream_id >= begun and not ends.closed
            app.go.set()
            for _ in range(50):
                await Turn()
            assert b"no" in ends.frames

    with caplog.at_level(logging.WARNING, "mesh_middleware.server"):
        run(scenario())
    told = [record for record in caplog.records if record.name == "mesh_middleware.server"]
    assert len(told) == 1 and "reset too many streams" in told[0].getMessage()


@pytest.mark.parametrize("kind", ["resets", "errors"])
def test_a_peer_that_goes_on_is_cut(kind: str) -> None:
    """Its own resets, or errors for which h2 resets its streams (MadeYouReset)."""

    async def scenario() -> None:
        async with h2_inside(Holding()) as ends:
            from hypercorn.events import RawData

            sent, peer, ends.reads = 0, ends.peer, False
            while not ends.closed and sent < 3 * H2_MAX_RESETS:
                sent += 1
                stream = 2 * sent - 1
                block = peer.encoder.encode(
                    [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "a")]
                )
                head = len(block).to_bytes(3, "big") + b"\x01\x05" + stream.to_bytes(4, "big")
                data = head + block
                if kind == "resets":
                    data += b"\x00\x00\x04\x03\x00" + stream.to_bytes(4, "big") + b"\0\0\0\x08"
                else:
                    # A window beyond all bounds is an error of that stream alone.
                    for _ in range(2):
                        frame = WindowUpdateFrame(stream, window_increment=2**31 - 1)
                        data += frame.serialize()
                await ends.protocol.handle(RawData(data))
            assert ends.closed and sent <= 2 * H2_MAX_RESETS + 3

    run(scenario())


def test_resets_of_our_own_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    """A caller whose streams we end, for a change of policy, has done nothing."""

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})

    async def scenario() -> None:
        async with h2_inside(failing, keep_alive_max_requests=10**6) as ends:
            for _ in range(H2_MAX_RESETS + 10):
                ends.request()
                await ends.flush()
                for _ in range(10):
                    await Turn()
            assert len(ends.of(h2.events.StreamReset)) > H2_MAX_RESETS
            assert not ends.of(h2.events.ConnectionTerminated) and not ends.closed

    run(scenario())


def begin(ends: H2Inside, stream: int, flags: int = 0x04) -> bytes:
    """HEADERS of one request by hand; without more flags, its body follows."""
    block: bytes = ends.peer.encoder.encode(
        [(":method", "POST"), (":path", "/"), (":scheme", "https"), (":authority", "a")]
    )
    head = len(block).to_bytes(3, "big") + bytes((1, flags)) + stream.to_bytes(4, "big")
    return head + block


def piece(stream: int) -> bytes:
    """DATA, one byte of a body."""
    return b"\0\0\x01\0\0" + stream.to_bytes(4, "big") + b"x"


async def failing_early(scope: Any, receive: Any, send: Any) -> None:
    """Ends within its response: the server resets the stream."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"a", "more_body": True})


@pytest.mark.parametrize("pieces", [1, 4, 300])
@pytest.mark.parametrize("kind", ["failed", "refused"])
def test_data_in_flight_for_streams_that_the_server_reset_is_not_counted(
    kind: str, pieces: int
) -> None:
    """The peer cannot know yet: each DATA frame makes h2 send another RST_STREAM."""
    failed = kind == "failed"
    uploads = H2_MAX_RESETS // pieces + 10
    limit = 10**6 if failed else 1

    async def scenario() -> None:
        app = failing_early if failed else Holding()
        options = {"keep_alive_max_requests": 10**6, "h2_max_concurrent_streams": limit}
        async with h2_inside(app, **options) as ends:
            from hypercorn.events import RawData

            ends.reads = False
            for stream in range(1, 2 * uploads, 2):
                await ends.protocol.handle(RawData(begin(ends, stream)))
                for _ in range(15):
                    await Turn()
                ends.frames = b""
                await ends.protocol.handle(RawData(piece(stream) * pieces))
                if failed or stream > 1:
                    assert ends.frames.count(b"\0\0\x04\x03\0") >= pieces  # each is answered
            assert not ends.protocol.mesh_resets.warned and not ends.closed

    run(scenario())


@pytest.mark.parametrize("reads", [1, 2])
def test_a_stream_that_the_peer_breaks_counts_once(reads: int) -> None:
    """In the read that began it or a later one; not again for what follows on that stream."""
    limit = H2_MAX_RESETS

    async def scenario() -> None:
        async with h2_inside(Holding(), keep_alive_max_requests=10**6) as ends:
            from hypercorn.events import RawData

            ends.reads = False
            for count in range(1, limit + 2):
                assert not ends.protocol.mesh_resets.warned
                stream = 2 * count - 1
                error = WindowUpdateFrame(stream, window_increment=2**31 - 1).serialize()
                parts = [begin(ends, stream), error + piece(stream) * 3]
                for data in parts if reads == 2 else [b"".join(parts)]:
                    await ends.protocol.handle(RawData(data))
            assert ends.protocol.mesh_resets.warned

    run(scenario())
