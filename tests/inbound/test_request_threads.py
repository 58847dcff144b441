"""The threads of a synchronous application: how many run, who waits, who is evicted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mesh_middleware.inbound.request_threads import RequestThreads, TooManyRequestsError, is_logged

from ..support.asgi import Gate, opened
from ..support.servers import PATIENCE, until


class Request:
    """Waits for its peer until it is evicted, or the peer is there."""

    def __init__(self) -> None:
        self.evicted = 0
        self._there = threading.Event()

    def evict(self) -> None:
        """As the pool does."""
        self.evicted += 1
        self._there.set()

    arrive = evict

    def wait(self, pool: RequestThreads) -> None:
        """In the thread."""
        with pool.waiting_for_peer(self):
            assert self._there.wait(PATIENCE)


@contextmanager
def pool(threads: int = 2, stalled: int = 3, backlog: int = 100) -> Iterator[RequestThreads]:
    """A pool that is closed."""
    made = RequestThreads(threads=threads, stalled=stalled, backlog=backlog)
    try:
        yield made
    finally:
        made.close()


def test_no_more_than_the_threads_run() -> None:
    """The others wait, and are run."""
    gate, done = Gate(), []

    def work() -> None:
        gate.wait()
        done.append(threading.current_thread().name)

    with pool(threads=2) as threads, opened(gate):
        for number in range(10):
            threads.submit(number, work)
        until(lambda: gate.came == 2, "two run")
        gate.open()
        until(lambda: len(done) == 10, "all have run")
    assert all(name.startswith("wsgi") for name in done) and len(set(done)) <= 2


def test_a_full_line_refuses() -> None:
    """And only then."""
    gate = Gate()
    with pool(threads=1, backlog=1) as threads, opened(gate):
        threads.submit(1, gate.wait)
        until(lambda: gate.came, "one runs")
        threads.submit(2, gate.wait)
        with pytest.raises(TooManyRequestsError):
            threads.submit(3, gate.wait)


def test_connections_take_turns() -> None:
    """One with many requests does not keep another's from its turn."""
    gate, order = Gate(), []
    with pool(threads=1) as threads, opened(gate):
        threads.submit("busy", gate.wait)
        for number in range(5):
            threads.submit("busy", lambda number=number: order.append(f"busy {number}"))
        threads.submit("other", lambda: order.append("other"))
        gate.open()
        until(lambda: len(order) == 6, "all have run")
    assert order == ["busy 0", "other", "busy 1", "busy 2", "busy 3", "busy 4"]


def test_who_waits_for_its_peer_takes_no_place() -> None:
    """With every thread waiting, another request runs."""
    requests, gate = [Request() for _ in range(3)], Gate()
    gate.open()
    with pool(threads=1, stalled=3) as threads:
        for request in requests:
            threads.submit(1, lambda request=request: request.wait(threads))
        threads.submit(1, gate.wait)
        until(lambda: gate.came, "another request runs")
        for request in requests:
            request.arrive()


def test_the_longest_wait_is_evicted(caplog: pytest.LogCaptureFixture) -> None:
    """One for each beyond the bound; who made progress meanwhile waits less long."""
    first, second, third, fourth = requests = [Request() for _ in range(4)]
    began: list[Request] = []
    with pool(threads=1, stalled=2) as threads:

        def wait(request: Request) -> None:
            began.append(request)
            request.wait(threads)

        for request in requests:
            threads.submit(1, lambda request=request: wait(request))
            until(lambda request=request: request in began, "it waits")
        until(lambda: second.evicted, "the second is evicted")
        assert [record.args[-1] for record in caplog.records] == [1, 2]
        assert [request.evicted for request in requests] == [1, 1, 0, 0]
        for request in (third, fourth):
            request.arrive()
    assert first.evicted == 1


def test_a_flood_is_logged_in_few_lines() -> None:
    """A million of one kind are 20 lines."""
    assert [count for count in range(1, 20) if is_logged(count)] == [1, 2, 4, 8, 16]


def test_what_is_withdrawn_does_not_run() -> None:
    """And leaves its place in the line."""
    gate, ran = Gate(), []
    with pool(threads=1, backlog=1) as threads, opened(gate):
        threads.submit(1, gate.wait)

        def never() -> None:
            ran.append("withdrawn")

        threads.submit(2, never)
        threads.withdraw(2, never)
        threads.withdraw(2, never)
        threads.submit(2, lambda: ran.append("last"))
        gate.open()
        until(lambda: ran, "the last has run")
    assert ran == ["last"]


def test_a_system_without_threads_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused never runs; what waits in line runs in the thread there is."""
    first, ran = Request(), []

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    began, gate = Gate(), Gate()
    with pool(threads=1, backlog=5) as threads, opened(began, gate):

        def work() -> None:
            began.wait()
            first.wait(threads)
            gate.wait()

        threads.submit(1, work)
        until(lambda: began.came, "the first runs")
        threads.submit(2, lambda: ran.append("in line"))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            began.open()  # it waits for its peer now, and the line should be run
            until(lambda: threads._stalled and threads._running == 0, "it waits")
            until(lambda: len(threads._line) == 1, "the other is in line again")
            with pytest.raises(RuntimeError):
                threads.submit(3, lambda: ran.append("refused"))
        first.arrive()
        gate.open()
        until(lambda: ran, "the line is run")
        threads.submit(4, lambda: ran.append("later"))
        until(lambda: len(ran) == 2, "a later one is run")
    assert ran == ["in line", "later"]


def test_a_closed_pool_takes_nothing() -> None:
    """And forgets nothing that it counted."""
    with pool(threads=1) as threads:
        threads.close()
        for _ in range(2):
            with pytest.raises(RuntimeError):
                threads.submit(1, lambda: None)
