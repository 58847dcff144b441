"""
Hypercorn 0.18: a stream over HTTP/2 buffers without bound what its peer does not read.

Symptom: an endless response to a peer whose window is closed fills the memory (2.6 GB in 3 s), and
an honest slow reader of a large file costs as much memory as the file.

Cause: ``StreamBuffer.pop`` compares the length of what it took with the low-water mark, not what is
left; with a closed window it takes nothing, which wakes the writer. And ``push`` waits for an event
that an earlier ``pop`` may have left set.

Fix: the writer waits until what is left has fallen below the mark, and a message of the application
is given to the buffer in slices.

Source: RFC 9113, 5.2.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from h2.events import StreamReset
from hypercorn.protocol import h2
from hypercorn.protocol.events import Body, Data

HIGH_WATER = 64 * 1024
"""Bytes in the buffer of one stream from which on its writer waits."""
LOW_WATER = HIGH_WATER // 2
"""Bytes in the buffer below which it goes on."""
SLICE = 64 * 1024
"""Bytes of a message that enter the buffer at once: never more than `HIGH_WATER` and this."""


class BoundedStreamBuffer(h2.StreamBuffer):
    """In place of Hypercorn's: never more than `HIGH_WATER` and one slice."""

    async def push(self, data: bytes) -> None:
        """
        Add one slice, and wait until there is room for another.

        Raises:
            BufferCompleteError: the stream has ended.
        """
        if self._complete:
            raise h2.BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= HIGH_WATER:
            # Cleared before, not after: an earlier `pop` may have left it set.
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        """Take what the peer has room for."""
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < LOW_WATER:
            await self._paused.set()
        if len(self.buffer) == 0:
            await self._is_empty.set()
        return data


def install() -> None:
    """Bind the buffer, and have messages enter it in slices."""
    h2.StreamBuffer = BoundedStreamBuffer  # type: ignore[misc]
    protocol: Any = h2.H2Protocol
    protocol.stream_send = _in_slices(protocol.stream_send)
    protocol._handle_events = _releasing(protocol._handle_events)


def _releasing(
    original: Callable[[Any, list[Any]], Awaitable[None]],
) -> Callable[[Any, list[Any]], Awaitable[None]]:
    """Let the writer of a stream go that its peer has reset: nothing is taken from it any more."""

    @wraps(original)
    async def _handle_events(self: Any, events: list[Any]) -> None:
        await original(self, events)
        for event in events:
            if isinstance(event, StreamReset):
                buffer = self.stream_buffers.get(event.stream_id)
                if buffer is not None:
                    await buffer.close()
                    self.priority.unblock(event.stream_id)
                    await self.has_data.set()

    return _handle_events


def _in_slices(
    original: Callable[[Any, Any], Awaitable[None]],
) -> Callable[[Any, Any], Awaitable[None]]:
    @wraps(original)
    async def stream_send(self: Any, event: Any) -> None:
        if not isinstance(event, Body | Data) or len(event.data) <= SLICE:
            await original(self, event)
            return
        data = memoryview(event.data)
        for start in range(0, len(data), SLICE):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is None or buffer._complete:
                return  # the stream has ended; what is left would be copied for nothing
            part = bytes(data[start : start + SLICE])
            await original(self, type(event)(stream_id=event.stream_id, data=part))

    return stream_send
