"""How an HTTP/2 connection ends, and that no request is lost, or sent twice, by it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import anyio
import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from hyperframe.frame import GoAwayFrame

from mesh_middleware.httpx import UpstreamBusyError, stock_lanes
from mesh_middleware.httpx.goaway import Frames
from mesh_middleware.routing import Limits, Manners

from ..support.servers import until
from .driver import Driver
from .support import PATIENCE, Authority, ScriptServer, StaticMesh, Wire, serving

NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM = 0x0, 0x2, 0x7


class Talk:
    """One connection of a server that ends it as the test says."""

    def __init__(self, wire: Wire, number: int, seen: list[tuple[int, bytes]]) -> None:
        config = h2.config.H2Configuration(client_side=False)
        self.wire, self.number, self._seen = wire, number, seen
        self.frames = h2.connection.H2Connection(config)
        self.frames.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.wire.send(self.frames.data_to_send())

    def events(self) -> Iterator[Any]:
        """What comes."""
        while data := self.wire._recv():
            yield from self.frames.receive_data(data)
            self.flush()

    def requests(self) -> Iterator[int]:
        """The streams whose requests are complete; their bodies are noted."""
        bodies: dict[int, bytes] = {}
        for event in self.events():
            if isinstance(event, h2.events.RequestReceived):
                bodies[event.stream_id] = b""
            elif isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] += event.data
            elif isinstance(event, h2.events.StreamEnded):
                self._seen.append((self.number, bodies[event.stream_id]))
                yield event.stream_id

    def answer(self, stream: int, body: bytes = b"ok") -> None:
        self.frames.send_headers(stream, [(":status", "200")])
        self.frames.send_data(stream, body, end_stream=True)
        self.flush()

    def go_away(self, last: int) -> None:
        """Say it, and go on with what was begun; h2 itself could not."""
        self.wire.send(GoAwayFrame(0, last_stream_id=last).serialize())

    def reset(self, stream: int, code: int) -> None:
        self.frames.reset_stream(stream, code)
        self.flush()


Script = Callable[[Talk], None]
End = Callable[[Talk, int], str | None]


class Server:
    """Serves HTTP/2 by one script a connection."""

    def __init__(self, script: Script) -> None:
        self.seen: list[tuple[int, bytes]] = []
        """Number of the connection, and body, of every request that came whole."""
        self._script, self._numbers = script, iter(range(1, 1000))
        self._lock = threading.Lock()

    def __call__(self, wire: Wire) -> None:
        with self._lock:
            number = next(self._numbers)
        self._script(Talk(wire, number, self.seen))


Start = Callable[[Script], tuple[Server, ScriptServer]]


@pytest.fixture
def serve(authority: Authority, mesh: StaticMesh) -> Iterator[Start]:
    """Starts the one instance of tax."""
    with ExitStack() as stack:

        def start(script: Script) -> tuple[Server, ScriptServer]:
            server = Server(script)
            running = stack.enter_context(serving(authority, server, alpn=("h2",)))
            mesh.tell("tax", running.endpoint("tax"))
            return server, running

        yield start


def answering(talk: Talk) -> None:
    """Answer all."""
    for stream in talk.requests():
        talk.answer(stream)


def ending_first(end: End) -> Script:
    """Answer all, but *end* the first connection at its first request."""

    def script(talk: Talk) -> None:
        for stream in talk.requests():
            if talk.number > 1:
                talk.answer(stream)
            elif end(talk, stream) == "gone":
                return

    return script


def twice(talk: Talk, stream: int) -> None:
    talk.go_away(2**31 - 1)
    talk.go_away(0)


def away_and_gone(talk: Talk, stream: int) -> str:
    talk.go_away(stream)
    return "gone"


UNPROCESSED: dict[str, End] = {
    "goaway": lambda talk, stream: talk.go_away(0),
    "goaway twice": twice,
    "refused": lambda talk, stream: talk.reset(stream, REFUSED_STREAM),
}


@pytest.mark.parametrize("end", UNPROCESSED.values(), ids=UNPROCESSED)
def test_what_was_not_processed_is_sent_again(
    mesh: StaticMesh, driver: Driver, serve: Start, end: End
) -> None:
    """A POST on a stream above that of GOAWAY, or refused, goes over another connection, unseen."""
    server, _ = serve(ending_first(end))
    with driver.client(mesh, http2=True) as client:
        assert client.request("POST", "https://tax/", content=b"once").text == "ok"
    assert server.seen == [(1, b"once"), (2, b"once")]
    assert mesh.watch_upstream("tax").course.look(0.0).instances[0].failures == 0


def test_what_was_begun_is_answered_after_goaway(
    mesh: StaticMesh, driver: Driver, serve: Start
) -> None:
    """The answer that comes after GOAWAY counts; the next request takes another connection."""

    def end(talk: Talk, stream: int) -> None:
        talk.go_away(stream)
        talk.answer(stream, b"late")

    server, _ = serve(ending_first(end))
    with driver.client(mesh, http2=True) as client:
        assert client.request("POST", "https://tax/", content=b"a").text == "late"
        assert client.request("POST", "https://tax/", content=b"b").text == "ok"
    assert server.seen == [(1, b"a"), (2, b"b")]


PROCESSED: dict[str, End] = {
    "goaway and gone": away_and_gone,
    "gone": lambda talk, stream: "gone",
    "reset": lambda talk, stream: talk.reset(stream, INTERNAL_ERROR),
}


@pytest.mark.parametrize("end", PROCESSED.values(), ids=PROCESSED)
def test_what_may_have_been_processed_is_not_sent_again(
    mesh: StaticMesh, driver: Driver, serve: Start, end: End
) -> None:
    """A POST on a stream up to that of GOAWAY, or cut without a word, fails instead."""
    server, _ = serve(ending_first(end))
    with driver.client(mesh, http2=True) as client, pytest.raises(httpx.TransportError):
        client.request("POST", "https://tax/", content=b"once")
    assert server.seen == [(1, b"once")]


def drawn(driver: Driver) -> Any:
    """A body in parts, to be had once."""

    async def parts() -> AsyncIterator[bytes]:
        for part in (b"on", b"ce"):
            yield part

    return parts() if driver.is_async else iter([b"on", b"ce"])


def test_a_body_that_was_drawn_is_not_sent_again(
    mesh: StaticMesh, driver: Driver, serve: Start
) -> None:
    """Nobody has it any more: the error says that the stream was refused."""
    server, _ = serve(ending_first(UNPROCESSED["refused"]))
    with driver.client(mesh, http2=True) as client, pytest.raises(httpx.RemoteProtocolError):
        client.request("POST", "https://tax/", content=drawn(driver))
    assert server.seen == [(1, b"once")]


def test_a_server_that_always_goes_away_is_left(
    mesh: StaticMesh, driver: Driver, serve: Start
) -> None:
    """Nothing is processed, so nothing is lost; but nobody tries for ever."""

    def script(talk: Talk) -> None:
        for _ in talk.requests():
            talk.go_away(0)

    server, running = serve(script)
    with driver.client(mesh, http2=True) as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("https://tax/")
    assert running.connections == len(server.seen) == stock_lanes.MOST_SENDINGS


def test_a_connection_that_was_closed_while_idle_is_not_used(
    mesh: StaticMesh, driver: Driver, serve: Start
) -> None:
    """Not even for a request that could not be repeated."""

    def script(talk: Talk) -> None:
        for stream in talk.requests():
            talk.answer(stream)
            if talk.number == 1:
                return

    server, running = serve(script)
    with driver.client(mesh, http2=True) as client:
        assert client.request("POST", "https://tax/", content=b"a").text == "ok"
        until(lambda: not running._open, "the end of the connection")
        running._threads[0].join(PATIENCE)
        assert client.request("POST", "https://tax/", content=b"b").text == "ok"
    assert server.seen == [(1, b"a"), (2, b"b")]


def test_a_connection_is_left_before_servers_end_it(
    mesh: StaticMesh, driver: Driver, serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many calls it gets no new one."""
    monkeypatch.setattr(stock_lanes, "MOST_REQUESTS", 3)
    server, _ = serve(answering)
    with driver.client(mesh, http2=True) as client:
        for _ in range(7):
            assert client.get("https://tax/").text == "ok"
    assert [number for number, _ in server.seen] == [1, 1, 1, 2, 2, 2, 3]


def test_threads_do_not_share_a_connection(mesh: StaticMesh, serve: Start) -> None:
    """httpcore's HTTP/2 connection numbers streams without a lock: two could get the same one."""
    both = threading.Barrier(2)

    def script(talk: Talk) -> None:
        for stream in talk.requests():
            both.wait(PATIENCE)
            talk.answer(stream)

    server, _ = serve(script)
    driver = Driver("sync")
    with driver.client(mesh, http2=True) as client, ThreadPoolExecutor(2) as threads:
        found = [threads.submit(client.get, "https://tax/") for _ in range(2)]
        assert [call.result(PATIENCE).text for call in found] == ["ok", "ok"]
    assert sorted(number for number, _ in server.seen) == [1, 2]


@contextmanager
def another_call(mesh: StaticMesh, serve: Start, **options: Any) -> Iterator[Any]:
    """A thread's call that is not answered before this ends; and then both go on."""
    open_, came = threading.Event(), threading.Event()

    def script(talk: Talk) -> None:
        for stream in talk.requests():
            came.set()
            assert open_.wait(PATIENCE)
            talk.answer(stream)

    _, running = serve(script)
    client = Driver("sync").client(mesh, http2=True, **options)
    with client, ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.get, "https://tax/")
        assert came.wait(PATIENCE)
        try:
            yield client
        finally:
            open_.set()
        assert first.result(PATIENCE).text == "ok"
        assert client.get("https://tax/").text == "ok"
        assert running.connections == 1


def test_the_limit_of_connections_holds_for_threads(mesh: StaticMesh, serve: Start) -> None:
    """One at a time where one is allowed; who waits too long is told so."""
    with another_call(mesh, serve, limits=httpx.Limits(max_connections=1)) as client:
        with pytest.raises(httpx.PoolTimeout):
            client.get("https://tax/", timeout=httpx.Timeout(PATIENCE, pool=0.01))


def test_the_limits_of_our_own_service_hold_for_threads(mesh: StaticMesh, serve: Start) -> None:
    """``MaxConnections`` 1, ``MaxPendingRequests`` 0: the second is refused at once, by name."""
    manners = Manners(limits=Limits(1, 0))
    mesh.watch_upstream("tax").course.learn_manners(manners, 0.0)
    with another_call(mesh, serve) as client:
        with pytest.raises(UpstreamBusyError, match="as many calls wait as may"):
            client.get("https://tax/")


def test_the_callers_trace_is_told(mesh: StaticMesh, driver: Driver, serve: Start) -> None:
    """httpcore's ``trace`` extension is the caller's, too."""
    told: list[str] = []

    def note(event: str, info: object) -> None:
        told.append(event)

    async def note_async(event: str, info: object) -> None:
        told.append(event)

    serve(answering)
    with driver.client(mesh, http2=True) as client:
        client.get("https://tax/", extensions={"trace": note_async if driver.is_async else note})
    assert "http2.send_request_headers.complete" in told


def test_an_answer_before_the_end_of_the_request_counts(
    mesh: StaticMesh, driver: Driver, serve: Start
) -> None:
    """The server asks for no more of it, without an error (RFC 9113, 8.1): as Envoy does."""

    def script(talk: Talk) -> None:
        for event in talk.events():
            if isinstance(event, h2.events.RequestReceived):
                talk.answer(event.stream_id, b"enough")
                if event.stream_ended is None:
                    talk.reset(event.stream_id, NO_ERROR)

    serve(script)
    with driver.client(mesh, http2=True) as client:
        answer = client.request("POST", "https://tax/", content=b"x" * 300_000)
        assert answer.text == "enough"
        assert client.get("https://tax/").text == "enough"


# -- frames ----------------------------------------------------------------------------------------


def frame(kind: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes((kind, 0)) + stream.to_bytes(4) + body


DATA = frame(0x0, 1, b"d" * 300)
AWAY = frame(0x7, 0, (1).to_bytes(4) + bytes(4) + b"why")
RESETS = b"".join(frame(0x3, stream, REFUSED_STREAM.to_bytes(4)) for stream in (3, 5))


@pytest.mark.parametrize("size", [1, 2, 7, 11, 300, 10_000])
def test_goaway_is_kept_from_the_library_however_it_comes(size: int) -> None:
    """Every other byte passes in order; the resets come between two frames."""
    frames, seen = Frames(), b""
    for stream in (1, 3, 5):
        frames.opened(stream)
    data = DATA + AWAY + DATA
    for at in range(0, len(data), size):
        seen += frames.take(data[at : at + size]) + frames.resets()
    assert seen in (DATA + RESETS + DATA, DATA + DATA + RESETS)
    assert frames.last == 1
    assert [frames.processed(stream) for stream in (1, 3, 5, 7)] == [True, False, False, False]
    assert frames.resets() == b""
    frames.opened(7)
    assert frames.resets() == frame(0x3, 7, REFUSED_STREAM.to_bytes(4))


def test_resets_do_not_come_between_headers_and_their_continuation() -> None:
    """Nothing may stand there. Source: RFC 9113, 6.10."""
    frames = Frames()
    for stream in (1, 3, 5):
        frames.opened(stream)
    begun, ended = frame(0x1, 1, b"h"), frame(0x9, 1, b"h")
    ended = ended[:4] + b"\x04" + ended[5:]
    assert frames.take(AWAY + begun) == begun
    assert frames.resets() == b""
    assert frames.take(ended) == ended
    assert frames.resets() == RESETS


def test_a_stream_that_is_not_processed_is_not_cancelled() -> None:
    """The server has forgotten it; the others it hears of once."""
    frames = Frames()
    for stream in (1, 3, 5):
        frames.opened(stream)
    frames.take(AWAY + frame(0x3, 3, REFUSED_STREAM.to_bytes(4)))
    for stream in (1, 3, 5):
        frames.cancel(stream)
    assert (frames.cancelled(), frames.cancelled()) == (frame(0x3, 1, (8).to_bytes(4)), b"")
    assert frames.resets() == frame(0x3, 1, (8).to_bytes(4)) + RESETS


def test_frames_that_are_none_are_the_librarys_business() -> None:
    """A GOAWAY too short or too long to be one passes, for h2 to complain about."""
    frames = Frames()
    for odd in (frame(0x7, 0, b"1234"), frame(0x7, 0, b"x" * 20_000)):
        assert b"".join(frames.take(odd[at : at + 4096]) for at in range(0, len(odd), 4096)) == odd
    assert frames.last is None


def test_a_reset_without_error_after_the_answer_lets_the_rest_go() -> None:
    """The library gets room for it instead; a reset that comes with no answer passes."""
    frames, away = Frames(), frame(0x3, 1, NO_ERROR.to_bytes(4))
    frames.opened(1)
    assert frames.take(away) == away
    answer = frame(0x0, 1, b"d")[:4] + b"\x01" + frame(0x0, 1, b"d")[5:]
    assert frames.take(answer + away)[len(answer) :][3] == 0x8
    frames.sent(1)
    assert frames.take(away) == away


def test_a_call_that_is_given_up_is_told_and_disturbs_no_other(
    mesh: StaticMesh, driver: Driver, serve: Start
) -> None:
    """The server hears that nobody waits (CANCEL), with the next request if not before."""
    if not driver.is_async:
        return  # threads do not share: the connection is closed
    told: list[tuple[int, int]] = []
    came = threading.Event()

    def script(talk: Talk) -> None:
        for event in talk.events():
            if isinstance(event, h2.events.StreamReset):
                told.append((event.stream_id, int(event.error_code or 0)))
            elif isinstance(event, h2.events.StreamEnded):
                if event.stream_id > 1:
                    talk.answer(event.stream_id)
                else:
                    talk.frames.ping(b"all read")  # else the connection is not idle afterwards
            elif isinstance(event, h2.events.PingAckReceived):
                came.set()

    _, running = serve(script)
    with driver.client(mesh, http2=True) as client:

        async def give_up() -> None:
            async with anyio.create_task_group() as calls:
                calls.start_soon(partial(client.client.post, "https://tax/", content=b"x"))
                assert await anyio.to_thread.run_sync(came.wait, PATIENCE)
                calls.cancel_scope.cancel()

        driver.run(give_up)
        for _ in range(3):
            assert client.request("POST", "https://tax/", content=b"y").text == "ok"
        assert (told, running.connections) == ([(1, 8)], 1)
