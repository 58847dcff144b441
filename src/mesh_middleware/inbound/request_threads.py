"""
Threads for requests of a synchronous application, so that slow peers cannot take all of them.

Owns the threads, their number, and the line of requests that wait for one. Knows nothing of WSGI
or of event loops.

Theory. A thread that runs application code is *running*; one that waits for its peer (to read a
piece of the response, or to send a piece of the body) is *stalled*. Only running threads count
against ``threads``, so peers that do not read or send never keep a request from its thread. Stalled
threads have a bound of their own; beyond it the request that has waited longest since its peer's
last progress is aborted. Requests beyond ``threads`` wait in line, and connections take turns.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

_log = logging.getLogger("mesh_middleware.inbound")

Work = Callable[[], object]
"""What a thread does for one request; it must not raise."""


class Abortable(Protocol):
    """A request that can be aborted while its thread waits for the peer."""

    def evict(self) -> None:
        """Abort it; called from any thread."""


def is_logged(count: int) -> bool:
    """Whether the *count*-th of something that peers can cause is logged: the powers of two are."""
    return count & (count - 1) == 0


class TooManyRequestsError(Exception):
    """All threads run and the line is full."""


class RequestThreads:
    """
    A bounded pool of threads.

    Args:
        threads: how many may run application code at once.
        stalled: how many more may wait for their peers.
        backlog: how many requests may wait for a thread.
        name: prefix of the names of the threads.
    """

    def __init__(self, *, threads: int, stalled: int, backlog: int, name: str = "wsgi") -> None:
        if threads < 1 or stalled < 1 or backlog < 0:
            raise ValueError("threads and stalled must be at least 1, backlog at least 0")
        self._threads, self._max_stalled, self._backlog = threads, stalled, backlog
        self._executor = ThreadPoolExecutor(threads + stalled, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._running, self._closed = 0, False
        self._stalled: dict[object, Abortable] = {}
        self._evictions = 0
        self._line = _Line()

    def submit(self, connection: Hashable, work: Work) -> None:
        """
        Run *work* in a thread, now or in its turn.

        Args:
            connection: requests that wait take turns by this key.
            work: what to run.

        Raises:
            TooManyRequestsError: the line is full.
            RuntimeError: the pool is closed, the interpreter ends, or there is no thread to be had.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            if self._running >= self._threads:
                if len(self._line) >= self._backlog:
                    raise TooManyRequestsError("too many requests wait for a thread")
                self._line.append(connection, work)
                return
            self._running += 1
        self._start(work)

    def withdraw(self, connection: Hashable, work: Work) -> None:
        """Remove *work* from the line, if it still waits there."""
        with self._lock:
            self._line.remove(connection, work)

    @contextmanager
    def waiting_for_peer(self, request: Abortable) -> Iterator[None]:
        """Mark the calling thread as stalled; another request may run instead."""
        token = object()
        with self._lock:
            self._running -= 1
            self._stalled[token] = request
            evicted = self._pop_longest() if len(self._stalled) > self._max_stalled else None
            # Of a closed pool, the threads that still run take what waits in line.
            waiting = None if self._closed else self._pop_waiting()
        if evicted is not None:
            self._evict(evicted)
        if waiting is not None:
            self._start_waiting(*waiting)
        try:
            yield
        finally:
            with self._lock:
                self._stalled.pop(token, None)
                self._running += 1

    def close(self) -> None:
        """Take nothing more; threads end with what they run, and what waits in line."""
        with self._lock:
            self._closed = True
        self._executor.shutdown(wait=False)

    def _evict(self, request: Abortable) -> None:
        self._evictions += 1
        if is_logged(self._evictions):
            _log.warning(
                "aborted %s, which waited longest for its client: more than %d do (%d aborted)",
                request,
                self._max_stalled,
                self._evictions,
            )
        request.evict()

    def _start(self, work: Work) -> None:
        ticket = [work]
        try:
            self._executor.submit(self._run, ticket)
        except RuntimeError:
            # The system gives no further thread. It is in the executor's queue all the same, and
            # one of the others may have taken it.
            if _take(ticket) is None:
                return
            with self._lock:
                self._running -= 1
            raise

    def _start_waiting(self, connection: Hashable, work: Work) -> None:
        try:
            self._start(work)
        except RuntimeError:
            with self._lock:
                self._line.append(connection, work)  # for a thread that becomes free

    def _run(self, ticket: list[Work]) -> None:
        work = _take(ticket)
        while work is not None:
            try:
                work()
            except BaseException:
                _log.exception("bug: the work of a request raised; please report")
            with self._lock:
                self._running -= 1
                waiting = self._pop_waiting()
            work = None if waiting is None else waiting[1]

    def _pop_waiting(self) -> tuple[Hashable, Work] | None:
        if self._running >= self._threads or not self._line:
            return None
        self._running += 1
        return self._line.pop()

    def _pop_longest(self) -> Abortable:
        return self._stalled.pop(next(iter(self._stalled)))


def _take(ticket: list[Work]) -> Work | None:
    """The work of a ticket, for the first who asks."""
    try:
        return ticket.pop()
    except IndexError:
        return None


class _Line:
    """Requests that wait for a thread; connections take turns."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[Work]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, connection: Hashable, work: Work) -> None:
        self._queues.setdefault(connection, deque()).append(work)
        self._length += 1

    def pop(self) -> tuple[Hashable, Work]:
        connection = next(iter(self._queues))
        queue = self._queues.pop(connection)
        work = queue.popleft()
        if queue:
            self._queues[connection] = queue  # behind every other connection
        self._length -= 1
        return connection, work

    def remove(self, connection: Hashable, work: Work) -> None:
        queue = self._queues.get(connection)
        if queue is None or work not in queue:
            return
        queue.remove(work)
        self._length -= 1
        if not queue:
            del self._queues[connection]
