"""
A refusal by policy, told apart from an application's own 403.

Owns the two marks of such a refusal (our problem type, Envoy's body) and `MeshResponse`, whose
`raise_for_status` says so. Knows neither connections nor intentions: who denied and why stays with
the upstream, on purpose.

Source: design 3.2; Envoy, "HTTP RBAC filter", the body of its local reply.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..resolve import Endpoint
from .errors import UpstreamDeniedError, note_where
from .library import httpx

DENIED_TYPE = "urn:mesh-middleware:denied"
ENVOY_DENIED = b"RBAC: access denied"
_INFO = "mesh"
MAX_DENIAL_BYTES = 4096
"""A denial is short: a longer body is the application's."""


@dataclass(frozen=True, slots=True)
class MeshInfo:
    """
    Who answered: ``response.extensions["mesh"]``.

    Args:
        upstream: name that was called.
        instance: address and identity of the instance.
        attempts: instances tried, this one included.
        split: where the discovery chain sent the call: service, subset and datacenter; empty
            without a chain.
        denied: whether the upstream's policy refused the call.
    """

    upstream: str
    instance: Endpoint
    attempts: int = 1
    split: str = ""
    denied: bool = False

    @property
    def identity(self) -> str:
        """SPIFFE ID that the instance proved in the handshake."""
        return self.instance.expected.uri


class MeshResponse(httpx.Response):
    """An `httpx.Response` from the mesh; ``extensions["mesh"]`` holds its `MeshInfo`."""

    whole: bytes | None = None
    """The body, where all of it came with the head."""

    def read(self) -> bytes:
        """Read the body, as httpx does."""
        stream = self.stream
        if not isinstance(stream, httpx.SyncByteStream) or not self._is_plain():
            return super().read()
        try:
            content = b"".join(stream) if self.whole is None else self.whole
        except httpx.RequestError as error:
            self._name_request(error)
            raise
        self.is_closed = True
        stream.close()
        return self._keep(content)

    async def aread(self) -> bytes:
        """Read the body, as httpx does."""
        stream = self.stream
        if not isinstance(stream, httpx.AsyncByteStream) or not self._is_plain():
            return await super().aread()
        try:
            whole = self.whole
            content = b"".join([part async for part in stream]) if whole is None else whole
        except httpx.RequestError as error:
            self._name_request(error)
            raise
        self.is_closed = True
        await stream.aclose()
        return self._keep(content)

    def _is_plain(self) -> bool:
        # Nothing to decode and nobody read before: httpx's iterators, which would come to the
        # same, cost more than reading the answer from the wire did.
        if self.is_stream_consumed or self.is_closed or "content-encoding" in self.headers:
            return False
        self.is_stream_consumed = True
        return True

    def _name_request(self, error: httpx.RequestError) -> None:
        info: MeshInfo | None = self.extensions.get("mesh")
        if info is not None:
            note_where(error, info.upstream, info.instance, info.attempts)
        with suppress(RuntimeError):  # who asked a transport, not a client, sets none
            error.request = self.request

    def _keep(self, content: bytes) -> bytes:
        self.whole, self._content = None, content
        self._num_bytes_downloaded = len(content)
        if not hasattr(self.stream, "elapsed"):
            # httpx's stream knows the response, which knows it: together they would be garbage.
            # That of httpx2 knows the time it took instead.
            self.stream = httpx.ByteStream(content)
        return content

    def __getstate__(self) -> dict[str, Any]:
        # httpx drops all extensions when it pickles; without this one, a refusal by policy would
        # come back from a cache, or from another process, as an application's own 403.
        return {**super().__getstate__(), _INFO: self.extensions.get("mesh")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        info = state.pop(_INFO, None)
        super().__setstate__(state)
        if info is not None:
            self.extensions["mesh"] = info

    def raise_for_status(self) -> httpx.Response:
        """
        Raise for an error status, as httpx does.

        Raises:
            UpstreamDeniedError: the upstream's policy refused the call.
            httpx.HTTPStatusError: any other error status.
        """
        info: MeshInfo | None = self.extensions.get("mesh")
        if info is not None and info.denied:
            raise UpstreamDeniedError(info.upstream, request=self.request, response=self)
        return super().raise_for_status()


def may_be_denial(status: int, headers: httpx.Headers) -> bool:
    """
    Tell from the head of a response whether its body is worth reading for a denial.

    Returns:
        ``True`` for a 403 with a short or unannounced body of the two content types.
    """
    if status != 403:
        return False
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_DENIAL_BYTES:
        return False
    return _content_type(headers) in ("application/problem+json", "text/plain")


def is_denial(headers: httpx.Headers, body: bytes) -> bool:
    """
    Tell whether a 403 comes from policy.

    Args:
        headers: of the response.
        body: the whole body.
    """
    if body == ENVOY_DENIED:
        return True
    if _content_type(headers) != "application/problem+json" or len(body) > MAX_DENIAL_BYTES:
        return False
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(problem, dict) and problem.get("type") == DENIED_TYPE


def _content_type(headers: httpx.Headers) -> str:
    value: str = headers.get("content-type", "")
    return value.partition(";")[0].strip().lower()
