"""
The same calls to one WSGI application on Gunicorn and on Hypercorn in the mesh.

What differs by its nature is left out: Date, Server, hop-by-hop headers, headers with underscores,
the optional length of a 304, and what names the server, the connection or the protocol.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh_middleware.dev import DevAgent

from ..support.servers import Process, clean_environment
from .callers import HOST, Identity, outsider_context
from .conftest import Serve

pytestmark = pytest.mark.process

APP = """
import os

from flask import Flask, Response, redirect, request, send_file
from io import BytesIO

app = Flask(__name__)
if "MESH_AGENT" in os.environ:
    from mesh_middleware import MeshNative

    MeshNative(app)

TELLING = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "RAW_URI",
           "CONTENT_TYPE", "CONTENT_LENGTH", "wsgi.input_terminated", "wsgi.run_once")


@app.route("/echo", methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
@app.route("/echo/<path:rest>", methods=["GET", "POST"])
def echo(rest=""):
    told = {key: request.environ.get(key) for key in TELLING}
    told.update({k: v for k, v in request.environ.items() if k.startswith("HTTP_X_")})
    told["cookies"] = request.cookies
    told["args"] = request.args.to_dict(flat=False)
    return {"told": told, "body": request.get_data().decode("latin-1")}


@app.post("/form")
def form():
    return {"form": request.form, "files": {k: f.read().decode() for k, f in request.files.items()}}


@app.post("/lines")
def lines():
    return repr(list(request.environ["wsgi.input"]))


@app.post("/unread")
def unread():
    return "unread"


@app.get("/text")
def text():
    return "text"


@app.get("/large")
def large():
    return b"x" * 1_000_000


@app.get("/generated")
def generated():
    return Response(str(number) for number in range(1000))


@app.get("/empty")
def empty():
    return Response(iter(()))


@app.get("/nothing")
def nothing():
    return ""


@app.route("/204", methods=["GET", "POST"])
def no_content():
    return "", 204


@app.get("/304")
def not_modified():
    return Response(status=304, headers={"ETag": '"x"'})


@app.get("/etag")
def etag():
    response = Response("etag")
    response.set_etag("x")
    return response.make_conditional(request)


@app.get("/file")
def file():
    return send_file(BytesIO(b"0123456789" * 1000), "text/plain", conditional=True)


@app.get("/redirect")
def to():
    return redirect("/text")


@app.get("/cookies")
def cookies():
    response = Response("cookies")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@app.get("/raises")
def raises():
    raise LookupError


@app.get("/teapot")
def teapot():
    return "short and stout", 418


def answer(start, *pieces, status="200 OK", headers=()):
    start(status, [("Content-Type", "text/plain"), *headers])
    return list(pieces)


def write(environ, start):
    write = start("200 OK", [("Content-Type", "text/plain")])
    write(b"a")
    write(b"b")
    return [b"c"]


def cut(environ, start):
    start("200 OK", [("Content-Type", "text/plain")])
    yield b"before"
    raise LookupError


RAW = {
    "/raw/list": lambda e, s: answer(s, b"a", b"", b"b"),
    "/raw/none": lambda e, s: answer(s),
    "/raw/length": lambda e, s: answer(s, b"abc", headers=[("Content-Length", "3")]),
    "/raw/long": lambda e, s: answer(s, b"abcdef", headers=[("Content-Length", "3")]),
    "/raw/short": lambda e, s: answer(s, b"abc", headers=[("Content-Length", "9")]),
    "/raw/304": lambda e, s: answer(s, b"abc", status="304 No", headers=[("Content-Length", "3")]),
    "/raw/204": lambda e, s: answer(s, b"abc", status="204 No", headers=[("Content-Length", "3")]),
    "/raw/hop": lambda e, s: answer(s, b"a", headers=[("Connection", "close"), ("TE", "x")]),
    "/raw/split": lambda e, s: answer(s, b"a", headers=[("X", "a\\r\\nY: b")]),
    "/raw/spaces": lambda e, s: answer(s, b"a", headers=[("X-Spaces", "  a b ")]),
    "/raw/latin": lambda e, s: answer(s, b"a", headers=[("X-Latin", "\\xe4")]),
    "/raw/phrase": lambda e, s: answer(s, b"a", status="299 An Odd Phrase"),
    "/raw/write": write,
    "/raw/cut": cut,
}
inner = app.wsgi_app


def outer(environ, start):
    return RAW.get(environ["PATH_INFO"], inner)(environ, start)


app.wsgi_app = outer
"""


@dataclass(frozen=True)
class Request:
    """One call: as httpx takes it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None
    pieces: tuple[bytes, ...] | None = None


def parts(pieces: tuple[bytes, ...]) -> Iterator[bytes]:
    """A body without a known length."""
    yield from pieces


FORM = (("Content-Type", "application/x-www-form-urlencoded"),)
MULTIPART = (("Content-Type", "multipart/form-data; boundary=x"),)
UPLOAD = (
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="n"\r\n\r\n'
    + b"line\r\n" * 10_000
    + b"\r\n--x--\r\n"
)
GETS = (
    "/echo", "/echo?a=1&a=2&b=%C3%A4", "/echo/a%20b", "/echo/%C3%A4", "/echo/a%252Fb",
    "/echo/a%2Fb", "/echo/a+b", "/missing", "/text", "/large", "/generated", "/empty", "/nothing",
    "/204", "/304", "/etag", "/file", "/redirect", "/cookies", "/raises", "/teapot", "/raw/list",
    "/raw/none", "/raw/length", "/raw/long", "/raw/short", "/raw/304", "/raw/204", "/raw/hop",
    "/raw/split", "/raw/spaces", "/raw/latin", "/raw/phrase", "/raw/write", "/raw/cut",
)  # fmt: skip
CALLS = (
    *(Request("GET", target) for target in GETS),
    Request("GET", "/echo", (("X-Role", "a"), ("X-Role", "b"), ("Cookie", "a=1; b=2"))),
    Request("GET", "/etag", (("If-None-Match", '"x"'),)),
    Request("GET", "/file", (("Range", "bytes=5-9"),)),
    Request("HEAD", "/text"),
    Request("HEAD", "/large"),
    Request("HEAD", "/generated"),
    Request("HEAD", "/raw/length"),
    Request("HEAD", "/raw/list"),
    Request("HEAD", "/204"),
    Request("OPTIONS", "/text"),
    Request("OPTIONS", "/echo"),
    Request("DELETE", "/text"),
    Request("DELETE", "/echo"),
    Request("POST", "/204", content=b"x"),
    Request("POST", "/echo", content=b""),
    Request("POST", "/echo", content=b"\x00\xff"),
    Request("PUT", "/echo", content=b"x" * 200_000),
    Request("POST", "/echo", pieces=(b"a", b"b" * 100_000, b"c")),
    Request("PATCH", "/echo", pieces=()),
    Request("POST", "/form", FORM, content=b"a=1&b=2"),
    Request("POST", "/form", FORM, pieces=(b"a=1&", b"b=2")),
    Request("POST", "/form", MULTIPART, content=UPLOAD),
    Request("POST", "/form", MULTIPART, pieces=(UPLOAD[:100], UPLOAD[100:])),
    Request("POST", "/lines", content=b"a\nb\n\nc"),
    Request("POST", "/lines", pieces=(b"a\nb", b"\n\nc")),
    Request("POST", "/unread", content=b"x" * 10_000),
)
SEED = {"PYTHONHASHSEED": "0"}
"""Flask joins the methods of an ``Allow`` header in the order of a set."""
NOT_COMPARED = {"date", "server", "connection", "keep-alive", "transfer-encoding", "te"}


def result(client: httpx.Client, base: str, call: Request) -> Any:
    """What one call gives: status, headers and body, or that the response had no proper end."""
    content = call.content if call.pieces is None else parts(call.pieces)
    try:
        response = client.request(
            call.method, base + call.target, headers=list(call.headers), content=content
        )
    except httpx.RemoteProtocolError:
        return "incomplete"
    if response.status_code == 500:
        return 500
    hidden = NOT_COMPARED | ({"content-length"} if response.status_code == 304 else set())
    found = sorted((k, v) for k, v in response.headers.multi_items() if k not in hidden)
    return response.status_code, found, response.content


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[str]:
    """The application on Gunicorn, without the mesh."""
    folder = tmp_path / "gunicorn"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    program = str(Path(sys.executable).with_name("gunicorn"))
    command = [program, "--bind", f"{HOST}:0", "-k", "gthread", "--no-control-socket", "app:app"]
    with Process(command, folder, clean_environment(**SEED)) as process:
        yield process.wait_output(r"Listening at: (http://\S+)")[0][1]


@pytest.mark.parametrize("worker", ["asyncio", "uvloop"])
def test_as_on_gunicorn(agent: DevAgent, serve: Serve, gunicorn: str, worker: str) -> None:
    """Over HTTP/1.1 and HTTP/2."""
    pem = Identity.of(*agent.issue("invoice")).pem
    base = f"https://{HOST}:{serve(APP, worker_class=worker, environment=SEED).port()}"
    with httpx.Client() as plain:
        expected = {call: result(plain, gunicorn, call) for call in CALLS}
    assert sum(isinstance(found, tuple) for found in expected.values()) > 50
    for http2 in (False, True):
        context = outsider_context(pem)
        with httpx.Client(verify=context, http2=http2, http1=not http2) as client:
            found = {call: result(client, base, call) for call in CALLS}
        differing = {
            (call.method, call.target, http2): (found[call], expected[call])
            for call in CALLS
            if found[call] != expected[call]
        }
        assert differing == {}
