"""
Turns at being held: many watches, few questions that the agent holds at once.

Owns how many questions of one kind are out at the same time, and for how long each may be held.
Asks nothing itself.

Theory. A held question keeps a connection for itself, and an agent grants 200 to one address
(``http_max_conns_per_client``), which on one machine all processes share. So there are `HELD`
places for all upstreams of a process. While each watch has one nothing is different; beyond that
they take turns, first come first served, each held so briefly that all have had theirs in `ROUND`
seconds, or as soon as `RATE` lets them. Plain questions, which are answered at once, have places of
their own, so that a new upstream waits for nobody.

Source: Consul agent configuration, ``limits``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .lookout import AgentReturnedError, cancellations
from .watch import Cursor

T = TypeVar("T")

HELD = 24
"""Questions held at once. Four workers of one service, with all else they ask, stay below 200."""
PLAIN = 8
"""Questions at once that are not to be held."""
ROUND = 5.0
"""Seconds until each watch had its turn: how late a change may be noticed, at the most."""
RATE = 50.0
"""Questions a second that taking turns may cost; beyond `RATE` * `ROUND` watches a round takes
longer."""


class Shift:
    """
    Watches that share places, for one event loop.

    Args:
        held: questions held at once.
        plain: other questions at once.
    """

    def __init__(self, held: int = HELD, plain: int = PLAIN) -> None:
        self._held = held
        self._places = asyncio.Semaphore(held)
        self._plain = asyncio.Semaphore(plain)
        self._members = 0
        self._holding: set[asyncio.Future[Any]] = set()
        self._recalled: set[asyncio.Future[Any]] = set()

    @contextmanager
    def member(self) -> Iterator[None]:
        """Be one of the watches, as long as the block lasts."""
        self._members += 1
        if self._members == self._held + 1:
            # From here on they take turns: those that sit for minutes get up.
            self._recalled |= self._holding
            for holding in list(self._holding):
                holding.cancel()
        try:
            yield
        finally:
            self._members -= 1

    def hold(self, wait: float) -> float:
        """Seconds that a question may be held; *wait* where everybody has a place."""
        if self._members <= self._held:
            return wait
        longest = self._held * max(ROUND / self._members, 1.0 / RATE)
        return min(wait, longest)

    async def ask(self, cursor: Cursor, send: Callable[[float], Awaitable[T]]) -> T:
        """
        Send a question when it is its turn.

        Args:
            cursor: where the watch stands.
            send: sends it, to be held for so many seconds.

        Raises:
            AgentReturnedError: others want a turn; ask anew.
        """
        if not cursor.asked:
            async with self._plain:
                return await send(cursor.wait)
        async with self._places:
            holding, wanted = asyncio.ensure_future(send(self.hold(cursor.wait))), cancellations()
            self._holding.add(holding)
            try:
                return await holding
            except asyncio.CancelledError:
                if holding in self._recalled and cancellations() == wanted:
                    raise AgentReturnedError("others want a turn") from None
                raise
            finally:
                self._holding.discard(holding)
                self._recalled.discard(holding)
