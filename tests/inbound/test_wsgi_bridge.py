"""The WSGI bridge: bodies, bounds, contexts, and what is not HTTP."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import pytest

from mesh_middleware.inbound.wsgi_bridge import WsgiBridge

from ..support.asgi import GONE, Exchange, Gate, Message, met, opened, piece, run
from .wsgi_apps import KIB, Pieces, endless, ok, reads


def test_no_body_is_received_before_the_application_reads(loop: str) -> None:
    """Nor at all, where it does not read."""
    messages = [piece(b"x" * KIB), piece(b"", more=False)]

    def app(environ: Any, start: Any) -> list[bytes]:
        ok(start)
        return [b"unread"]

    async def work() -> None:
        exchange = await Exchange(messages=messages, method="POST", http_version="2").through(
            WsgiBridge(app)
        )
        assert (exchange.status, exchange.body, exchange.receives) == (200, b"unread", 0)

    run(work, loop)


def test_the_body_is_received_as_it_is_read(loop: str) -> None:
    """No more waits than the buffer and one message, whatever the client sends."""
    begun, gate = Gate(), Gate()

    def app(environ: Any, start: Any) -> list[bytes]:
        begun.wait()
        body = environ["wsgi.input"]
        first = body.read(1)
        gate.wait()
        rest = body.read()
        ok(start)
        return [b"%d" % len(first + rest)]

    async def work() -> None:
        messages = [piece(b"x" * 10 * KIB)] * 100
        exchange = Exchange(messages=[*messages, piece(b"", more=False)], http_version="2")
        task = exchange.begin(WsgiBridge(app, body_buffer=64 * KIB))
        await met(lambda: begun.came, "the application runs")
        assert exchange.receives == 0
        begun.open()
        await met(lambda: gate.came, "one byte is read")
        await met(lambda: exchange.receives == 7, "the buffer is full")
        for _ in range(20):
            await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=0)
        assert exchange.receives == 7
        gate.open()
        await task
        assert exchange.body == b"1024000"

    with opened(begun, gate):
        run(work, loop)


READS: dict[str, Callable[[Any], Any]] = {
    "all": lambda body: body.read(),
    "some": lambda body: body.read(100),
    "one": lambda body: [body.read1(2), body.read1(), body.read1()],
    "line": lambda body: body.readline(),
    "line of some": lambda body: body.readline(100),
    "lines": lambda body: body.readlines(),
    "iteration": lambda body: list(body),
    "into": lambda body: body.readinto(bytearray(100)),
}


@pytest.mark.parametrize("way", READS)
@pytest.mark.parametrize(
    ("known", "end"),
    [(True, GONE), (False, GONE), (True, piece(b"", more=False))],
    ids=["gone", "gone, no length", "ended"],
)
def test_a_cut_body_raises(way: str, known: bool, end: Message) -> None:
    """However it is read; it never looks like a complete one."""
    seen: list[object] = []

    def app(environ: Any, start: Any) -> list[bytes]:
        try:
            seen.append(READS[way](environ["wsgi.input"]))
        except OSError as error:
            seen.append(error)
        ok(start)
        return [b"seen"]

    async def work() -> None:
        headers = [(b"content-length", b"100") if known else (b"transfer-encoding", b"chunked")]
        exchange = Exchange(messages=[piece(b"cut"), end], method="POST", headers=headers)
        await exchange.through(WsgiBridge(app))
        await met(lambda: seen, "the application was told")

    run(work)
    assert isinstance(seen[0], ConnectionError)


def test_a_body_that_is_known_to_be_empty_is_not_received() -> None:
    """A GET over HTTP/1.1 has none; RFC 9112, 6.3."""

    async def work() -> None:
        exchange = await Exchange(messages=[]).through(WsgiBridge(reads))
        assert (exchange.body, exchange.receives) == (b"0", 0)

    run(work)


@pytest.mark.parametrize("known", [True, False], ids=["length", "no length"])
def test_a_body_beyond_the_limit_is_413(known: bool) -> None:
    """Known before, the application does not run; found out later, its answer is replaced."""
    ran: list[object] = []

    def app(environ: Any, start: Any) -> list[bytes]:
        ran.append(environ)
        try:
            return reads(environ, start)
        except OSError:
            ok(start)
            return [b"hidden"]

    async def work() -> None:
        headers = [(b"content-length", b"11") if known else (b"transfer-encoding", b"chunked")]
        messages = [piece(b"123456"), piece(b"12345"), piece(b"", more=False)]
        exchange = Exchange(messages=messages, method="POST", headers=headers)
        await exchange.through(WsgiBridge(app, max_body=10))
        assert (exchange.status, exchange.whole, b"hidden" in exchange.body) == (413, True, False)

    run(work)
    assert bool(ran) is not known


def test_a_refusal_that_is_not_read_ends() -> None:
    """It has no more time than a response."""

    async def work() -> None:
        exchange = Exchange(headers=[(b"content-length", b"11")], messages=[], reads=False)
        await exchange.through(WsgiBridge(reads, max_body=10, send_timeout=0.05))
        assert exchange.status == 413

    run(work)


def test_a_body_of_the_limit_is_read() -> None:
    """The bound is the last that passes."""

    async def work() -> None:
        headers = [(b"content-length", b"10")]
        messages = [piece(b"1234567890", more=False)]
        exchange = Exchange(messages=messages, method="POST", headers=headers)
        await exchange.through(WsgiBridge(reads, max_body=10))
        assert (exchange.status, exchange.body) == (200, b"10")

    run(work)


def test_a_body_that_stops_is_408(loop: str) -> None:
    """The thread is not left waiting."""
    ended: list[object] = []

    def app(environ: Any, start: Any) -> list[bytes]:
        try:
            return reads(environ, start)
        except OSError as error:
            ended.append(error)
            raise

    async def work() -> None:
        headers = [(b"content-length", b"10")]
        exchange = Exchange(messages=[piece(b"12")], method="POST", headers=headers)
        await exchange.through(WsgiBridge(app, read_timeout=0.05))
        assert (exchange.status, exchange.whole) == (408, True)
        await met(lambda: ended, "the application was told")

    run(work, loop)
    assert isinstance(ended[0], TimeoutError)


def test_beyond_the_backlog_is_503(loop: str) -> None:
    """At once, with a time to come again; what waits is answered in its turn."""
    gate = Gate()

    def app(environ: Any, start: Any) -> list[bytes]:
        gate.wait()
        ok(start)
        return [b"served"]

    async def work() -> None:
        bridge = WsgiBridge(app, threads=1, backlog=2)
        exchanges = [Exchange() for _ in range(3)]
        tasks = [exchange.begin(bridge) for exchange in exchanges]
        await met(lambda: gate.came, "one runs")
        refused = await Exchange().through(bridge)
        assert (refused.status, refused.headers["retry-after"], refused.whole) == (503, "1", True)
        gate.open()
        await asyncio.gather(*tasks)
        assert [exchange.body for exchange in exchanges] == [b"served"] * 3

    with opened(gate):
        run(work, loop)
    assert gate.came == 3


@pytest.mark.parametrize("size", [1, KIB, 200 * KIB])
def test_what_waits_to_be_sent_is_bounded(size: int) -> None:
    """For a client that takes nothing: the buffer twice, the latest piece twice, 256 pieces."""
    answers: list[Pieces] = []

    async def work() -> None:
        exchange = Exchange(reads=False)
        task = exchange.begin(WsgiBridge(endless(answers, size), response_buffer=64 * KIB))
        await met(lambda: len(exchange.sent) == 1, "the response begins")
        others = [await Exchange("/short").through(WsgiBridge(endless([]))) for _ in range(10)]
        assert all(other.body == b"short" for other in others)
        made = answers[0].made
        assert made <= 2 * (64 * KIB + size) and made <= 513 * size
        task.cancel()
        await met(lambda: answers[0].closed, "the iterable is closed")

    run(work)


def test_a_client_that_does_not_read_is_cut(loop: str) -> None:
    """After the bound of one send: without a proper end, and its thread is free."""
    answers: list[Pieces] = []

    async def work() -> None:
        bridge = WsgiBridge(endless(answers), send_timeout=0.05)
        exchange = await Exchange(reads=False).through(bridge)
        assert not exchange.whole
        await met(lambda: answers[0].closed, "the iterable is closed")

    run(work, loop)


def test_clients_that_do_not_read_block_nobody(loop: str) -> None:
    """More of them than there are threads, and every other request is served."""
    answers: list[Pieces] = []

    async def work() -> None:
        bridge = WsgiBridge(endless(answers), threads=2, stalled=10)
        tasks = [Exchange(reads=False).begin(bridge) for _ in range(8)]
        for number in range(8):
            other = await Exchange("/short", client=("127.0.0.1", number)).through(bridge)
            assert other.body == b"short"
        for task in tasks:
            task.cancel()
        await met(lambda: len(answers) == 8 and all(a.closed for a in answers), "all are closed")

    run(work, loop)


def test_clients_that_do_not_send_block_nobody(loop: str) -> None:
    """The same for bodies."""

    async def work() -> None:
        bridge = WsgiBridge(reads, threads=2, stalled=10)
        slow = [Exchange(messages=[piece(b"x")], http_version="2") for _ in range(8)]
        tasks = [exchange.begin(bridge) for exchange in slow]
        for _ in range(8):
            assert (await Exchange().through(bridge)).body == b"0"
        for exchange in slow:
            exchange.arrive(piece(b"", more=False))
        await asyncio.gather(*tasks)
        assert [exchange.body for exchange in slow] == [b"1"] * 8

    run(work, loop)


def test_a_large_answer_frees_its_thread() -> None:
    """What the application has in memory is sent without it, in slices."""
    ended: list[object] = []

    class Answer(list[bytes]):
        def close(self) -> None:
            ended.append(self)

    def app(environ: Any, start: Any) -> Answer:
        ok(start)
        return Answer([b"x" * 300 * KIB, b"y" * 300 * KIB])

    async def work() -> None:
        exchange = Exchange(reads=False)
        task = exchange.begin(WsgiBridge(app))
        await met(lambda: ended, "the application is done")
        exchange.read()
        await task
        assert exchange.whole and len(exchange.body) == 600 * KIB
        assert max(len(message["body"]) for message in exchange.sent[1:]) == 64 * KIB

    run(work)


def test_the_thread_runs_in_the_context_of_the_request(loop: str) -> None:
    """That of its own connection, under many at once; and leaves nothing in it."""
    caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")

    def app(environ: Any, start: Any) -> list[bytes]:
        found = caller.get().encode()
        caller.set("changed")
        ok(start)
        return [found]

    async def work() -> None:
        bridge = WsgiBridge(app, threads=3)

        async def ask(name: str) -> bytes:
            caller.set(name)
            exchange = await Exchange().through(bridge)
            assert caller.get() == name
            return exchange.body

        names = [f"caller {number}" for number in range(200)]
        assert await asyncio.gather(*map(ask, names)) == [name.encode() for name in names]
        assert (await Exchange().through(bridge)).body == b"nobody"

    run(work, loop)


async def _live(bridge: WsgiBridge, scope: Any, *messages: Any) -> list[Any]:
    exchange = Exchange(messages=messages)
    exchange.scope = scope
    return (await exchange.through(bridge)).sent


@pytest.mark.parametrize(
    ("kind", "messages", "sent"),
    [
        ("websocket", ["websocket.connect"], ["websocket.close"]),
        (
            "lifespan",
            ["lifespan.startup", "lifespan.shutdown"],
            ["lifespan.startup.complete", "lifespan.shutdown.complete"],
        ),
    ],
)
def test_what_is_not_http(kind: str, messages: list[str], sent: list[str]) -> None:
    """A WebSocket is rejected before its handshake; the lifespan is answered."""

    async def work() -> list[Any]:
        told = [{"type": name} for name in messages]
        return await _live(WsgiBridge(reads), {"type": kind}, *told)

    assert [message["type"] for message in run(work)] == sent


def test_an_unknown_kind_is_an_error() -> None:
    """As ASGI asks."""

    async def work() -> None:
        with pytest.raises(ValueError, match="'push'"):
            await _live(WsgiBridge(reads), {"type": "push"})

    run(work)


@pytest.mark.parametrize(
    "option",
    [
        {"threads": 0},
        {"stalled": 0},
        {"backlog": -1},
        {"max_body": 0},
        {"body_buffer": 0},
        {"response_buffer": 0},
        {"read_timeout": 0},
        {"send_timeout": -1},
    ],
    ids=str,
)
def test_options_are_checked(option: dict[str, Any]) -> None:
    """An option that could not work is refused at once."""
    with pytest.raises(ValueError):
        WsgiBridge(reads, **option)
