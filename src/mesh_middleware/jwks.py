"""
Reads the keys of jwt-providers: over HTTP, or from a file of this machine.

Owns one question and the bounds on its answer; when it is asked is `entries`' business. No request
ever waits for it. Follows no redirect, uses no proxy.

Source: RFC 7517; reference 8.
"""

from __future__ import annotations

import asyncio
import ssl

import httpx

from .consul.providers import KeySource
from .exceptions import MeshError
from .intentions.jwt import KeySet, read_keys
from .regular_file import read_regular_file
from .urls import redacted

MAX_JWKS_BYTES = 1024 * 1024
"""Largest answer that is read: some thousand keys."""


# A few compressed bytes may become gigabytes before anybody can count them.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}


class KeysError(MeshError):
    """The keys of a provider cannot be read; the message says why."""


async def fetch_keys(
    source: KeySource, transport: httpx.AsyncBaseTransport | None = None
) -> KeySet:
    """
    Read the keys once.

    Args:
        source: where they are.
        transport: carries the question; a network transport unless given.

    Raises:
        KeysError: no answer in time, another status than 200, too large, or no JWKS.
    """
    try:
        async with asyncio.timeout(source.timeout):
            content = await _read(source, transport)
        found = read_keys(content.decode())
    except TimeoutError:
        raise KeysError(f"{redacted(source.uri)}: no answer within {source.timeout:g} s") from None
    except httpx.InvalidURL:
        raise KeysError(f"{redacted(source.uri)}: a URL that cannot be read") from None
    except (httpx.HTTPError, OSError) as error:
        raise KeysError(f"{redacted(source.uri)}: {error or type(error).__name__}") from None
    except (ValueError, RecursionError) as error:
        raise KeysError(f"{redacted(source.uri)}: no JWKS: {error}") from None
    if not found.keys:
        raise KeysError(f"{redacted(source.uri)}: a JWKS without a key that can verify signatures")
    return found


async def _read(source: KeySource, transport: httpx.AsyncBaseTransport | None) -> bytes:
    if source.uri.startswith("file://"):
        return _bounded(await asyncio.to_thread(_file, source), source)
    async with (
        httpx.AsyncClient(
            verify=_context(source),
            transport=transport,
            trust_env=False,
            follow_redirects=False,
            timeout=source.timeout,
        ) as client,
        client.stream("GET", source.uri, headers=_HEADERS) as response,
    ):
        if response.status_code != 200:
            raise KeysError(f"{redacted(source.uri)}: status {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise KeysError(f"{redacted(source.uri)}: a compressed answer, which was not asked for")
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            _bounded(content, source)
    return bytes(content)


def _file(source: KeySource) -> bytes:
    return read_regular_file(source.uri.removeprefix("file://"), MAX_JWKS_BYTES)


def _bounded(content: bytes | bytearray, source: KeySource) -> bytes:
    if len(content) > MAX_JWKS_BYTES:
        raise KeysError(f"{redacted(source.uri)}: over {MAX_JWKS_BYTES} bytes")
    return bytes(content)


def _context(source: KeySource) -> ssl.SSLContext | bool:
    if not source.uri.startswith("https://"):
        return False
    return ssl.create_default_context(cafile=source.ca_file or None, cadata=source.ca_pem or None)
