"""The WSGI bridge: how responses end, and requests that end before their time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mesh_middleware.inbound.wsgi_bridge import WsgiBridge

from ..support.asgi import GONE, Exchange, Gate, met, opened, piece, run
from .wsgi_apps import KIB, LOGGER, PLAIN, Pieces, ok

Waits = Callable[[Any, Any, Gate], Any]


def waits_in_read(environ: Any, start: Any, gate: Gate) -> Any:
    """The thread waits for the body."""
    gate.came += 1
    environ["wsgi.input"].read()
    raise AssertionError("the read returned")


def waits_in_iteration(environ: Any, start: Any, gate: Gate) -> Any:
    """The thread waits for room, between two pieces."""
    ok(start)
    gate.came += 1
    return iter(lambda: b"x" * KIB, None)


def waits_in_write(environ: Any, start: Any, gate: Gate) -> Any:
    """The thread waits for room, in write()."""
    write = start("200 OK", PLAIN)
    gate.came += 1
    while True:
        write(b"x" * KIB)


def computes(environ: Any, start: Any, gate: Gate) -> Any:
    """The thread runs application code, and asks for the body afterwards."""
    gate.wait()
    environ["wsgi.input"].read()
    raise AssertionError("the read returned")


ENDS = ("cancelled", "gone", "sending fails")


@pytest.mark.parametrize(
    ("at", "end"),
    [
        *((at, end) for at in (waits_in_read, waits_in_iteration, waits_in_write) for end in ENDS),
        (computes, "cancelled"),
    ],
)
def test_no_thread_is_left_waiting(
    at: Waits, end: str, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However a request ends, wherever its thread is: the thread ends, and no response does."""
    gate, ended = Gate(), Gate()

    def app(environ: Any, start: Any) -> Iterator[bytes]:
        try:
            yield from at(environ, start, gate)
        finally:
            ended.came += 1

    async def work() -> None:
        exchange = Exchange(messages=[piece(b"x")], reads=False, http_version="2")
        fails: Any = asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            exchange.sent.append(message)
            await fails

        task = asyncio.create_task(WsgiBridge(app)(exchange.scope, exchange.receive, send))
        await met(lambda: gate.came, "the application runs")
        if at not in (computes, waits_in_read):
            await met(lambda: exchange.sent, "the response begins")
        elif at is waits_in_read:
            await met(lambda: exchange.receives == 2, "the body is waited for")
        if end == "cancelled":
            task.cancel()
        elif end == "gone":
            exchange.arrive(GONE)
            fails.set_result(None)  # as servers do
        elif at is waits_in_read:
            exchange.arrive(GONE)
        else:
            fails.set_exception(ConnectionResetError())
        gate.open()
        await asyncio.wait([task])
        await met(lambda: ended.came, "the thread ends")
        assert task.cancelled() or task.exception() is None
        assert not exchange.whole

    with caplog.at_level(logging.INFO, LOGGER), opened(gate):
        run(work, loop)
    assert ended.came == 1 and caplog.records == []


def test_a_request_that_ends_in_line_never_runs() -> None:
    """Its place in the line is free."""
    gate, ran = Gate(), Gate()

    def app(environ: Any, start: Any) -> list[bytes]:
        (gate if environ["PATH_INFO"] == "/first" else ran).wait()
        ok(start)
        return [b"ran"]

    async def work() -> None:
        ran.open()
        bridge = WsgiBridge(app, threads=1, backlog=1)
        first = Exchange("/first").begin(bridge)
        await met(lambda: gate.came, "the first runs")
        second = Exchange("/second").begin(bridge)
        more = Exchange("/more")
        await more.begin(bridge)
        assert more.status == 503  # the second waits
        second.cancel()
        await asyncio.wait([second])
        third = Exchange("/third")
        task = third.begin(bridge)
        gate.open()
        await asyncio.gather(first, task)
        assert third.body == b"ran"

    with opened(gate, ran):
        run(work)
    assert ran.came == 1


@pytest.mark.parametrize("length", [True, False], ids=["length", "no length"])
def test_the_response_ends_before_close_runs(length: bool, loop: str) -> None:
    """The client has all of it, and a cancellation now disturbs nothing of what still runs."""
    gate = Gate()
    done: list[str] = []

    class Answer:
        def __iter__(self) -> Iterator[bytes]:
            yield b"all"
            done.append("iterated")

        def close(self) -> None:
            gate.wait()
            done.append("closed")

    def app(environ: Any, start: Any) -> Answer:
        ok(start, *([("Content-Length", "3")] if length else []))
        return Answer()

    async def work() -> None:
        exchange = Exchange()
        task = exchange.begin(WsgiBridge(app))
        await met(lambda: gate.came, "close() runs")
        await met(lambda: exchange.whole, "the response ends")
        task.cancel()
        await asyncio.wait([task])
        assert done == ["iterated"]
        gate.open()
        await met(lambda: len(done) == 2, "close() goes on")

    with opened(gate):
        run(work, loop)


def test_a_complete_content_length_ends_the_response_before_the_iteration() -> None:
    """What the application does behind its last piece is its own."""
    gate = Gate()

    def app(environ: Any, start: Any) -> Iterator[bytes]:
        ok(start, ("Content-Length", "3"))
        yield b"a"
        yield b"ll"
        gate.wait()

    async def work() -> None:
        exchange = await Exchange().through(WsgiBridge(app))
        assert exchange.whole and exchange.body == b"all"

    with opened(gate):
        run(work)


def test_a_piece_is_sent_before_the_next_is_made() -> None:
    """PEP 3333: servers must not delay a piece."""
    gate = Gate()

    def app(environ: Any, start: Any) -> Iterator[bytes]:
        ok(start)
        yield b"first"
        gate.wait()
        yield b"second"

    async def work() -> None:
        exchange = Exchange()
        task = exchange.begin(WsgiBridge(app))
        await met(lambda: len(exchange.sent) == 2, "the first piece is sent")
        assert exchange.body == b"first" and not exchange.whole
        gate.open()
        await task
        assert exchange.body == b"firstsecond" and exchange.whole

    with opened(gate):
        run(work)


def test_small_pieces_share_messages() -> None:
    """While one message is sent, what was made meanwhile becomes the next."""

    answers: list[Pieces] = []

    def app(environ: Any, start: Any) -> Pieces:
        ok(start)
        answers.append(Pieces(iter([b"x"] * 200)))
        return answers[0]

    async def work() -> None:
        exchange = Exchange(reads=False)
        task = exchange.begin(WsgiBridge(app))
        await met(lambda: answers and answers[0].closed, "all pieces are made")
        exchange.read()
        await task
        assert exchange.body == b"x" * 200 and exchange.whole
        assert len(exchange.sent) <= 3

    run(work)


def test_a_usual_answer_is_two_messages(loop: str) -> None:
    """Its start, and all of its body with the end."""

    def app(environ: Any, start: Any) -> list[bytes]:
        ok(start)
        return [b"all"]

    async def work() -> None:
        exchange = await Exchange().through(WsgiBridge(app))
        assert exchange.sent == [
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/plain")],
            },
            {"type": "http.response.body", "body": b"all", "more_body": False},
        ]

    run(work, loop)


def test_a_cut_answer_has_no_end(caplog: pytest.LogCaptureFixture) -> None:
    """A middleware cuts by ``CancelledError``: what it may not have is dropped, without a word."""
    answers: list[Pieces] = []

    def pieces() -> Iterator[bytes]:
        yield b"before"
        raise asyncio.CancelledError

    def app(environ: Any, start: Any) -> Pieces:
        ok(start)
        answers.append(Pieces(pieces()))
        return answers[0]

    async def work() -> None:
        exchange = await Exchange().through(WsgiBridge(app))
        assert not exchange.whole
        await met(lambda: answers[0].closed, "the iterable is closed")

    with caplog.at_level(logging.INFO):
        run(work)
    assert len(answers[0].closed) == 1 and caplog.records == []
