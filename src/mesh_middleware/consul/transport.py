"""
An httpx transport as the way to an agent: one in the same process, or one of somebody's own.

Owns the translation. Loaded only where such a transport is given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from ..exceptions import AgentAnswerError
from .connections import Exchange, Head, Request


class TransportWay:
    """
    The way to an agent by an httpx transport.

    Args:
        transport: carries the requests.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    @asynccontextmanager
    async def exchange(self, request: Request, most: int) -> AsyncIterator[Exchange]:
        """Send *request*; as `Way` says."""
        asked = httpx.Request(
            request.method,
            f"http://agent{request.target}",
            headers=request.headers,
            content=request.body,
        )
        try:
            response = await self._transport.handle_async_request(asked)
        except httpx.HTTPError as error:
            raise _as_os_error(error) from error
        try:
            yield _Answering(response, most)
        finally:
            await response.aclose()

    async def close(self) -> None:
        """End all connections."""
        await self._transport.aclose()


class _Answering:
    def __init__(self, response: httpx.Response, most: int) -> None:
        self._response, self._most = response, most

    async def head(self) -> Head:
        headers = {name.lower(): value for name, value in self._response.headers.items()}
        return Head(self._response.status_code, headers)

    async def body(self) -> bytes:
        content = bytearray()
        try:
            async for part in self._response.aiter_raw():
                content += part
                if len(content) > self._most:
                    raise AgentAnswerError(f"answer over {self._most} bytes (max_answer_bytes)")
        except httpx.HTTPError as error:
            raise _as_os_error(error) from error
        return bytes(content)


def _as_os_error(error: httpx.HTTPError) -> OSError:
    return ConnectionError(str(error) or type(error).__name__)
