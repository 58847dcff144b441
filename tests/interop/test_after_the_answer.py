"""What an application does after its answer is its own: with Hypercorn, on each worker."""

from __future__ import annotations

import pytest

from mesh_middleware.dev import DevAgent

from ..attack.raw import dial
from .callers import Identity, knock
from .conftest import Serve

pytestmark = pytest.mark.process

APP = """
import anyio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from mesh_middleware import MeshAuthz

waiting = []


async def after():
    go = anyio.Event()
    waiting.append(go)
    try:
        await go.wait()
        print("the work went on", flush=True)
    except BaseException:
        print("the work was cancelled", flush=True)
        raise


async def begin(request):
    return PlainTextResponse("begun", background=BackgroundTask(after))


async def go(request):
    for event in waiting:
        event.set()
    return PlainTextResponse("gone")


async def forever():
    yield "a"
    await anyio.Event().wait()


app = Starlette(
    routes=[
        Route("/begin", begin),
        Route("/go", go),
        Route("/stream", lambda request: StreamingResponse(forever())),
    ]
)
app.add_middleware(MeshAuthz)
"""


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept open", "closed"])
def test_work_after_the_answer_outlives_a_denial(
    kept: bool, worker: str, agent: DevAgent, serve: Serve
) -> None:
    """The sweep that ends a stream of the same caller leaves it alone."""
    vat, other = (Identity.of(*agent.issue(name)) for name in ("vat", "other"))
    server = serve(APP, worker_class=worker)
    port = server.port()
    with (
        dial(port, vat.pem, alpn="http/1.1") as begun,
        dial(port, vat.pem, alpn="http/1.1") as live,
    ):
        end = b"" if kept else b"Connection: close\r\n"
        begun.sendall(b"GET /begin HTTP/1.1\r\nHost: tax\r\n" + end + b"\r\n")
        answer = b""
        while b"begun" not in answer:
            answer += begun.recv(65536)
        live.sendall(b"GET /stream HTTP/1.1\r\nHost: tax\r\n\r\n")
        assert live.recv(65536).startswith(b"HTTP/1.1 200")
        agent.deny("vat", "tax")
        while live.recv(65536):
            pass
        assert knock(port, vat.pem, path="/go").startswith(b"HTTP/1.1 403 ")
        assert knock(port, other.pem, path="/go").startswith(b"HTTP/1.1 200 ")
        server.wait_output("the work went on")
    assert "cancelled" not in server.output


FLASK = """
import threading

from flask import Flask, Response

from mesh_middleware import MeshNative

app = Flask(__name__)
{native}
going = threading.Event()


class Answer:
    def __init__(self):
        self.parts = iter([b"begun"])

    def __iter__(self):
        return self.parts

    def close(self):
        going.wait()
        print("the work went on", flush=True)


@app.get("/begin")
def begin():
    return Response(Answer(), content_type="text/plain")


@app.get("/go")
def go():
    going.set()
    return "gone"


@app.get("/stream")
def stream():
    return Response(iter(lambda: going.wait(0.02) or "a", None))
"""


@pytest.mark.parametrize("worker", ["asyncio", "uvloop"])
@pytest.mark.parametrize("native", ["MeshNative(app)", ""], ids=["native", "server"])
def test_the_close_of_a_wsgi_answer_outlives_a_denial(
    native: str, worker: str, agent: DevAgent, serve: Serve
) -> None:
    """The caller has the end of its answer before, and the thread is left alone."""
    vat, other = (Identity.of(*agent.issue(name)) for name in ("vat", "other"))
    server = serve(FLASK.format(native=native), worker_class=worker)
    port = server.port()
    with (
        dial(port, vat.pem, alpn="http/1.1") as begun,
        dial(port, vat.pem, alpn="http/1.1") as live,
    ):
        begun.sendall(b"GET /begin HTTP/1.1\r\nHost: tax\r\n\r\n")
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += begun.recv(65536)
        live.sendall(b"GET /stream HTTP/1.1\r\nHost: tax\r\n\r\n")
        assert live.recv(65536).startswith(b"HTTP/1.1 200")
        agent.deny("vat", "tax")
        while live.recv(65536):
            pass
        assert knock(port, other.pem, path="/go").startswith(b"HTTP/1.1 200 ")
        server.wait_output("the work went on")
    assert "Traceback" not in server.output
