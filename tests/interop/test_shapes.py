"""No application shape lets a request pass that nobody judged: with Hypercorn and real callers."""

from __future__ import annotations

import pytest

from mesh_middleware.dev import DevAgent

from .callers import Identity, knock
from .conftest import Serve
from .shapes import SHAPES

pytestmark = pytest.mark.process


@pytest.mark.parametrize("name", SHAPES)
def test_every_request_is_judged(name: str, agent: DevAgent, serve: Serve) -> None:
    """A denied and a plaintext caller get 403 before and after an allowed one got its 200."""
    agent.deny("bad", "tax")
    bad = Identity.of(*agent.issue("bad"))
    good = Identity.of(*agent.issue("good"))
    shape = SHAPES[name]
    server = serve(shape.text, insecure_bind="127.0.0.1:0", listeners=2)
    paths = (*shape.paths, "/nowhere", "/../admin")

    def refused() -> None:
        for path in paths:
            answer = knock(server.port(), bad.pem, path=path)
            assert answer.startswith(b"HTTP/1.1 403 "), (path, answer)
            answer = knock(server.port("http"), None, path=path, tls=False)
            assert answer.startswith(b"HTTP/1.1 403 "), (path, answer)

    refused()
    for path in shape.paths:
        answer = knock(server.port(), good.pem, path=path)
        assert answer.startswith(b"HTTP/1.1 200 "), (path, answer)
        refused()
