"""A WSGI application is asked what was judged, and answers no longer than its caller may listen."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest

from mesh_middleware.dev import DevAgent

from ..interop.callers import Identity, knock
from ..interop.conftest import Serve
from ..support.servers import PATIENCE
from .raw import Frames, dial, read_all

pytestmark = pytest.mark.process

FLASK = """
import itertools
import threading

from flask import Flask, Response

from mesh_middleware import MeshNative

app = Flask(__name__)
MeshNative(app)


@app.get("/admin")
def admin():
    return "the keys of the house"


@app.get("/ticks")
def ticks():
    pause = threading.Event()

    def tick():
        try:
            for number in itertools.count():
                pause.wait(0.02)
                yield f"{number}\\n"
        finally:
            print("the ticks ended", flush=True)

    return Response(tick())
"""


WAYS = {"/api/admin": 403, "/apiadmin": 404, "/api%61dmin": 404, "/api": 404, "/admin": 404}


def test_a_root_path_opens_no_second_way(agent: DevAgent, invoice: Identity, serve: Serve) -> None:
    """Only whole segments are cut off: ``/apiadmin`` is not below ``/api``."""
    agent.set_protocol("tax", "http")
    rule = {"Action": "deny", "HTTP": {"PathPrefix": "/api/admin"}}
    agent.permissions("invoice", "tax", [rule])
    server = serve(FLASK, root_path="/api")
    answers = {path: knock(server.port(), invoice.pem, path=path) for path in WAYS}
    assert {path: int(answer[9:12]) for path, answer in answers.items()} == WAYS
    assert not any(b"keys" in answer for answer in answers.values())


FIXED = """
from werkzeug.middleware.proxy_fix import ProxyFix

app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)
"""


def test_no_header_moves_the_path_away_from_its_rule(
    agent: DevAgent, invoice: Identity, serve: Serve
) -> None:
    """ProxyFix as Flask's manual has it, before the door: the path that was sent is judged, too."""
    agent.set_protocol("tax", "http")
    rule = {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}}
    agent.permissions("invoice", "tax", [rule])
    port = serve(FLASK + FIXED).port()
    request = b"GET %b HTTP/1.1\r\nHost: tax\r\nConnection: close\r\n%b\r\n\r\n"
    found = {}
    for path in (b"/admin", b"/other"):
        for prefix in (b"A: b", b"X-Forwarded-Prefix: /x", b"X-Forwarded-Prefix: /admin"):
            with dial(port, invoice.pem) as connection:
                connection.sendall(request % (path, prefix))
                found[path, prefix[20:]] = int(read_all(connection)[9:12])
    assert [found[b"/admin", prefix] for prefix in (b"", b"/x", b"/admin")] == [403] * 3
    assert [found[b"/other", prefix] for prefix in (b"", b"/x", b"/admin")] == [404, 404, 403]


@pytest.fixture
def ticking(agent: DevAgent, invoice: Identity, serve: Serve) -> Iterator[ssl.SSLSocket]:
    """A connection of invoice on which an answer without an end has begun."""
    with dial(serve(FLASK).port(), invoice.pem, alpn="http/1.1") as connection:
        connection.sendall(b"GET /ticks HTTP/1.1\r\nHost: tax\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        yield connection


def test_a_stream_of_flask_ends_when_its_caller_is_denied(
    agent: DevAgent, ticking: ssl.SSLSocket
) -> None:
    """Over HTTP/1.1 it is cut: without the last chunk nobody takes it for complete."""
    agent.deny("invoice", "tax")
    found = b""
    while part := ticking.recv(65536):
        found += part
    assert b"\r\n0\r\n" not in found


def test_a_stream_of_flask_over_http2_ends_for_the_client(
    agent: DevAgent, invoice: Identity, serve: Serve
) -> None:
    """Its stream is reset, so that nobody takes it for complete, and its connection goes on; the
    application's generator is closed, without a traceback."""
    server = serve(FLASK)
    with Frames(server.port(), invoice.pem) as frames:
        stream = frames.get(b"/ticks")
        while stream not in frames.bodies:
            frames.read()
        agent.deny("invoice", "tax")
        frames.until(stream)
        assert frames.lost and not frames.ended
        frames.lost = False
        again = frames.get(b"/ticks")
        frames.until(again)
        assert (frames.statuses[again], frames.ended) == (403, {again})
    server.wait_output("the ticks ended", timeout=PATIENCE)
    assert "Traceback" not in server.output


def test_a_stream_goes_on_while_other_callers_are_denied(
    agent: DevAgent, ticking: ssl.SSLSocket
) -> None:
    """Only the denied are cut."""
    agent.deny("stranger", "tax")
    found = b""
    while found.count(b"\n") < 200:  # two seconds or more: it is judged again meanwhile
        part = ticking.recv(65536)
        assert part
        found += part
