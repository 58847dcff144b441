"""Many requests that end in every way, at any moment: no thread, place or iterable is lost."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware.inbound.wsgi_bridge import WsgiBridge

from ..support.asgi import GONE, Exchange, Gate, met, opened, piece, run

THREADS, BACKLOG = 4, 30


class Application:
    """Reads and answers by the dice; counts the iterables that are open."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._lock = threading.Lock()
        self.opened = self.closed = 0
        self.gate = Gate()

    def __call__(self, environ: Any, start: Any) -> Any:
        start("200 OK", [])
        if environ["PATH_INFO"] == "/gate":
            self.gate.wait()
            return [b"through"]
        with self._lock:
            self.opened += 1
        return Answer(self, self._pieces(environ["wsgi.input"]))

    def _pieces(self, body: Any) -> Iterator[bytes]:
        dice = self._dice
        for _ in range(dice.choice([0, 1, 5, 50])):
            if dice.random() < 0.2:
                body.read(dice.choice([1, 100, 5000]))
            if dice.random() < 0.01:
                raise LookupError
            yield b"x" * dice.choice([0, 1, 1000, 70_000])

    def close(self) -> None:
        """One iterable is closed."""
        with self._lock:
            self.closed += 1


class Answer:
    """One iterable."""

    def __init__(self, application: Application, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.close = application.close

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


async def turns(count: int) -> None:
    """Let the event loop turn."""
    for _ in range(count):
        done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        await done


async def one(bridge: WsgiBridge, dice: random.Random, number: int) -> None:
    """One request, which ends somehow."""
    client = ("127.0.0.1", number % 7)
    reads = dice.random() < 0.7
    exchange = Exchange("/", [], http_version="2", reads=reads, client=client)
    task = exchange.begin(bridge)
    for _ in range(dice.randrange(5)):
        exchange.arrive(piece(b"y" * dice.choice([0, 10, 30_000])))
        await turns(dice.choice([0, 1, 10, 100]))
    end = dice.choice(["ended", "gone", "cancelled", "stalled"])
    if end == "ended":
        exchange.arrive(piece(b"", more=False))
    elif end == "gone":
        exchange.arrive(GONE)
    elif end == "cancelled":
        await turns(dice.choice([0, 1, 10, 100]))
        task.cancel()
    if dice.random() < 0.5:
        exchange.read()
    await asyncio.wait([task])
    assert task.cancelled() or task.exception() is None


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost(seed: int, loop: str) -> None:
    """Afterwards everything that was opened is closed, and as much can be served as before."""
    dice = random.Random(seed)
    application = Application(dice)

    async def work() -> None:
        bridge = WsgiBridge(
            application,
            threads=THREADS,
            stalled=6,
            backlog=BACKLOG,
            send_timeout=0.1,
            read_timeout=0.1,
        )
        for _ in range(8):
            await asyncio.gather(*(one(bridge, dice, number) for number in range(50)))
        await met(lambda: application.opened == application.closed, "every iterable is closed")
        exchanges = [Exchange("/gate") for _ in range(THREADS + BACKLOG)]
        tasks = [exchange.begin(bridge) for exchange in exchanges]
        await met(lambda: application.gate.came == THREADS, "every thread can be had")
        beyond = Exchange("/gate")
        await beyond.begin(bridge)
        application.gate.open()
        await asyncio.gather(*tasks)
        assert beyond.status == 503
        assert [exchange.body for exchange in exchanges] == [b"through"] * len(exchanges)

    with opened(application.gate):
        run(work, loop)
