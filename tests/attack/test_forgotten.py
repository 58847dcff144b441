"""A server that speaks mesh, and an application in which the door was forgotten, or comes late."""

from __future__ import annotations

import pytest

from mesh_middleware.dev import DevAgent

from ..interop.callers import Identity, knock
from ..interop.conftest import Serve

pytestmark = pytest.mark.process

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import mesh_middleware

app = Starlette(routes=[Route("/who", lambda request: PlainTextResponse("inside"))])
"""

FLASK = """
from flask import Flask

import mesh_middleware

app = Flask(__name__)


@app.get("/who")
def who():
    return "inside"
"""


@pytest.mark.parametrize(
    ("app", "worker"),
    [(STARLETTE, "asyncio"), (STARLETTE, "trio"), (FLASK, "uvloop")],
    ids=["starlette-asyncio", "starlette-trio", "flask-uvloop"],
)
def test_a_forgotten_door_is_no_open_one(
    app: str, worker: str, agent: DevAgent, invoice: Identity, serve: Serve
) -> None:
    """The server judges in its place, and says so once."""
    agent.deny("stranger", "tax")
    stranger = Identity.of(*agent.issue("stranger"))
    server = serve(app, insecure_bind="127.0.0.1:0", worker_class=worker, listeners=2)
    assert knock(server.port(), invoice.pem).endswith(b"inside")
    assert knock(server.port(), stranger.pem).startswith(b"HTTP/1.1 403 ")
    assert knock(server.port("http"), None, tls=False).startswith(b"HTTP/1.1 403 ")
    assert server.output.count("MeshNative: the server judges its requests") == 1
