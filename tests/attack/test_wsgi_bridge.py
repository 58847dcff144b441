"""Clients of a WSGI application that do not read, do not send, or leave in the middle."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mesh_middleware import Client, Mesh
from mesh_middleware.dev import DevAgent

from ..interop.callers import Identity, knock
from ..interop.conftest import Serve
from ..support.servers import PATIENCE, Hypercorn
from .raw import BASE, Frames, dial

pytestmark = pytest.mark.process

APP = """
import itertools
import threading

from flask import Flask, Response, request

from mesh_middleware import MeshNative
from mesh_middleware.flask import mesh_peer

app = Flask(__name__)
MeshNative(app)


@app.get("/who")
def who():
    return mesh_peer.id.name


@app.get("/large")
def large():
    return b"x" * (8 << 20)


@app.get("/endless")
def endless():
    def pieces():
        try:
            yield from itertools.repeat(b"x" * 65536)
        finally:
            print("an endless response was closed", flush=True)

    return Response(pieces())


@app.post("/length")
def length():
    return str(len(request.get_data()))


@app.post("/cut")
def cut():
    stream = request.environ["wsgi.input"]
    print("reading", flush=True)
    try:
        print("read", len(stream.read()), flush=True)
    except OSError as error:
        print("cut by", type(error).__name__, flush=True)
        raise
    return "complete"


@app.get("/cookies")
def cookies():
    return request.environ["HTTP_COOKIE"]
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest, serve: Serve) -> Hypercorn:
    """The application in the mesh."""
    return serve(APP, worker_class=request.param)


@pytest.mark.parametrize("path", ["/endless", "/large"])
def test_clients_that_do_not_read_block_nobody(
    server: Hypercorn, invoice: Identity, path: str
) -> None:
    """Sixty of them: more than there are threads; each has its response begun."""
    with ExitStack() as stack:
        for _ in range(60):
            connection = stack.enter_context(dial(server.port(), invoice.pem))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: tax\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 200"
        for _ in range(10):
            assert knock(server.port(), invoice.pem).endswith(b"\r\n\r\ninvoice")
    if path == "/endless":
        server.wait_output("an endless response was closed", count=60, timeout=PATIENCE)
    assert "Traceback" not in server.output


def test_clients_that_do_not_send_block_nobody(server: Hypercorn, invoice: Identity) -> None:
    """The same with uploads that stop; they are complete when the rest comes."""
    with ExitStack() as stack:
        uploads = [stack.enter_context(dial(server.port(), invoice.pem)) for _ in range(60)]
        for upload in uploads:
            upload.sendall(b"POST /length HTTP/1.1\r\nHost: tax\r\nContent-Length: 6\r\n\r\nabc")
        for _ in range(10):
            assert knock(server.port(), invoice.pem).endswith(b"\r\n\r\ninvoice")
        for upload in uploads:
            upload.sendall(b"def")
            assert upload.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("head", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_a_cut_upload_is_not_complete(server: Hypercorn, invoice: Identity, head: bytes) -> None:
    """The application is told, whichever way the body was framed."""
    with dial(server.port(), invoice.pem) as connection:
        connection.sendall(
            b"POST /cut HTTP/1.1\r\nHost: tax\r\n" + head + b"\r\n\r\n5\r\nabcde\r\n"
        )
        server.wait_output("reading")
    server.wait_output("cut by ConnectionResetError")
    assert not re.search(r"^read \d", server.output, re.MULTILINE)


@pytest.mark.parametrize("reset", [True, False], ids=["stream reset", "connection lost"])
def test_a_cut_upload_over_http2_is_not_complete(
    server: Hypercorn, invoice: Identity, reset: bool
) -> None:
    """By the stream or the connection; the connection's other streams go on."""
    with Frames(server.port(), invoice.pem) as frames:
        stream = frames.get(b"/cut", b"POST", end=False)
        frames.h2.send_data(stream, b"abcde")
        frames.flush()
        server.wait_output("reading")
        if reset:
            frames.h2.reset_stream(stream)
            other = frames.get(b"/who")
            frames.until(other)
            assert frames.bodies[other] == b"invoice"
    server.wait_output("cut by ConnectionResetError")


def test_cookies_that_http2_splits_are_one(server: Hypercorn, invoice: Identity) -> None:
    """RFC 9113, 8.2.3."""
    cookies = [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
    with Frames(server.port(), invoice.pem) as frames:
        head = [(b":method", b"GET"), (b":path", b"/cookies"), *BASE, *cookies]
        stream = frames.ask(head)
        frames.until(stream)
        assert frames.bodies[stream] == b"a=1; b=2"


def test_an_upload_of_our_client_without_a_length_arrives(agent: DevAgent, serve: Serve) -> None:
    """From a generator, over the mesh."""
    serve(APP)

    def body() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    with (
        Mesh("invoice", agent=agent.url, register=False, plugins=()) as mesh,
        Client(mesh=mesh) as client,
    ):
        mesh.upstream("tax").wait(PATIENCE)
        assert client.post("https://tax/length", content=body()).text == "1000000"
