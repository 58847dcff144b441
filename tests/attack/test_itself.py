"""An application that calls itself, in the task of the request it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware import MeshAuthz

from ..support.doors import Exchange, Inside


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    """A service whose default is allow."""
    with Inside() as inside:
        yield inside


class Batch:
    """Answers ``/outer`` by asking itself for ``/inner``; what *after* says comes then."""

    def __init__(self, stay: str) -> None:
        self.app: Any = None
        self.stay, self.here, self.cancelled = stay, asyncio.Event(), 0
        self.inner = Exchange("/inner")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/outer":
            await self.inner.through(self.app)
        if scope["path"] == self.stay:
            self.here.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})


def test_a_request_within_a_request_is_no_error(inside: Inside) -> None:
    """Both are judged, both are answered."""
    batch, outer = Batch(""), Exchange("/outer")
    batch.app = MeshAuthz(batch, mesh=inside.mesh)
    inside.run(lambda: outer.through(batch.app))
    assert (batch.inner.status, outer.status) == (200, 200)


@pytest.mark.parametrize("stay", ["/inner", "/outer"])
def test_a_request_within_a_request_ends_with_it(stay: str, inside: Inside) -> None:
    """Wherever the work is when its caller is denied: the one inside hides no outer one."""
    batch, outer = Batch(stay), Exchange("/outer")
    batch.app = MeshAuthz(batch, mesh=inside.mesh)

    async def work() -> None:
        task = asyncio.create_task(outer.through(batch.app))
        await batch.here.wait()
        inside.agent.deny("vat", "tax")
        await task

    inside.run(work, "vat")
    inside.agent.delete("vat", "tax")
    assert batch.cancelled == 1
    assert outer.sent == []
    assert not any(batch.app._live._live) and not batch.app._live._ended
