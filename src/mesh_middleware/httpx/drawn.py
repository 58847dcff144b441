"""
The body of a request that is drawn from its caller, part by part.

Owns the difference between what the caller's code raises there and what the connection does. Who
passes on what another upstream sends gives errors of httpx's own kinds: taken for those of this
connection, they would be swallowed, blamed on an instance that is well, and count as its failures.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from .library import httpx


class BodyError(Exception):
    """
    The caller's body raised; on its way to the caller, past all who handle errors of connections.

    Args:
        error: what it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Drawn(httpx.SyncByteStream, httpx.AsyncByteStream):
    """
    A body for threads or for tasks, or, as one of files is, for both.

    Args:
        stream: the caller's.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return _Parts(self._stream)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _AsyncParts(self._stream)


class _Parts:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._parts: Any = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            if self._parts is None:
                self._parts = iter(self._stream)
            part: bytes = next(self._parts)
            return part
        except StopIteration:
            raise
        except Exception as error:
            raise BodyError(error) from error


class _AsyncParts:
    """No generator: what is left of one in the middle would be the loop's to close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._parts: Any = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            if self._parts is None:
                self._parts = aiter(self._stream)
            return await anext(self._parts)
        except StopAsyncIteration:
            raise
        except Exception as error:
            raise BodyError(error) from error

    async def aclose(self) -> None:
        """Close the caller's generator, if it is one."""
        if hasattr(self._parts, "aclose"):
            await self._parts.aclose()
