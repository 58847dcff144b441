"""
What is on its way to an HTTP/2 connection that calls share.

Owns the bytes from the moment that a call hands them over, and the task that writes them. Knows
nothing of frames.

Theory. A part of a frame, or of a record of TLS, cannot be taken back: the connection, and every
other call on it, would be lost with the one that was given up in the middle of a write. A shield
does not keep that away: ``Task.cancel`` of asyncio goes through those of anyio. So no call writes.
It hands over, and waits as long as it likes; what it has handed over is written in any case.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING or __package__ != "mesh_middleware.httpx2":
    import httpcore
else:
    import httpcore2 as httpcore


class Writing:
    """
    Writes to one connection, in a task of its own while there is something to write.

    Args:
        stream: the connection; nobody else writes to it.
        trio: whether the loop is trio's.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, *, trio: bool) -> None:
        self._stream, self._trio = stream, trio
        self._left = b""
        self._error: Exception | None = None
        self._ended: anyio.Event | None = None
        self._task: Any = None

    async def write(self, data: bytes, seconds: float | None) -> None:
        """
        Hand over *data*, which is written whatever becomes of the caller, and wait until it is.

        Raises:
            httpcore.WriteTimeout: not within *seconds*.
            httpcore.WriteError: the connection has ended.
        """
        self._left += data
        if self._ended is None:
            self._ended = anyio.Event()
            self._begin()
        with anyio.move_on_after(seconds):
            await self._ended.wait()
            if self._error is not None:
                raise self._error
            return
        raise httpcore.WriteTimeout()

    def _begin(self) -> None:
        if self._trio:
            sys.modules["trio"].lowlevel.spawn_system_task(self._write_all)
        else:
            self._task = asyncio.get_running_loop().create_task(self._write_all())

    async def _write_all(self) -> None:
        ended = self._ended
        try:
            while self._left and self._error is None:
                data, self._left = self._left, b""
                await self._stream.write(data, None)
        except Exception as error:
            self._error = error
        except BaseException:
            self._error = httpcore.WriteError("the event loop has ended")
            raise
        finally:
            self._ended = self._task = None
            if ended is not None:
                ended.set()
