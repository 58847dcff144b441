"""The trace of a request is known while it is served, at both doors, and not after it."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any

from mesh_middleware import Mesh, MeshAuthz, MeshAuthzWSGI
from mesh_middleware.trace import current_trace, remember_trace

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_an_asgi_application_finds_the_trace_of_its_request() -> None:
    """What came as traceparent and tracestate is there; a request without them ends the last."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_trace())

    async def nothing(*_: Any) -> Any:
        raise AssertionError("nothing is received or sent")

    door = MeshAuthz(app, mesh=Mesh("tax", plugins=()), exempt=["/open"])
    pairs = [(b"traceparent", PARENT), (b"tracestate", b"a=1")]

    async def serve() -> None:
        for headers in ([(b"host", b"tax"), *pairs], [(b"host", b"tax")]):
            await door(
                {
                    "type": "http",
                    "method": "GET",
                    "path": "/open",
                    "raw_path": b"/open",
                    "query_string": b"",
                    "http_version": "1.1",
                    "scheme": "http",
                    "headers": headers,
                },
                nothing,
                nothing,
            )

    asyncio.run(serve())
    assert seen == [tuple(pairs), ()]


def test_a_wsgi_application_finds_the_trace_of_its_request() -> None:
    """As in ASGI."""
    seen: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(current_trace())
        return []

    door = MeshAuthzWSGI(app, mesh=Mesh("tax", plugins=()), exempt=["/open"])
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/open",
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "tax",
    }

    def serve() -> None:
        door({**environ, "HTTP_TRACEPARENT": PARENT.decode()}, lambda *_: None)
        door(dict(environ), lambda *_: None)

    copy_context().run(serve)
    assert seen == [((b"traceparent", PARENT),), ()]


def test_a_trace_ends_with_its_context() -> None:
    """What one context remembers is nobody else's."""
    copy_context().run(remember_trace, [(b"traceparent", PARENT)])
    assert current_trace() == ()
