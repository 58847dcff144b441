"""Shadow mode on real servers: the application answers, and the would-be denial is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh_middleware.dev import DevAgent

from .callers import Identity, knock
from .conftest import Serve

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from mesh_middleware import MeshAuthz


async def answer(request):
    caller = request.state.mesh
    return JSONResponse(
        {
            "peer": caller.peer.id.name,
            "allowed": caller.decision.allowed,
            "reason": caller.decision.reason,
            "shadowed": caller.mesh.status()["shadowed"],
            "metrics": caller.mesh.metrics(),
        }
    )


app = Starlette(routes=[Route("/{rest:path}", answer)])
app.add_middleware(MeshAuthz, OPTIONS)
"""

FLASK = """
from flask import Flask

from mesh_middleware import MeshNative, mesh_caller

app = Flask(__name__)
MeshNative(app, OPTIONS)


@app.get("/<path:rest>")
def answer(rest):
    return {
        "peer": mesh_caller.peer.id.name,
        "allowed": mesh_caller.decision.allowed,
        "reason": mesh_caller.decision.reason,
        "shadowed": mesh_caller.mesh.status()["shadowed"],
        "metrics": mesh_caller.mesh.metrics(),
    }
"""

APPS = {"starlette": STARLETTE, "flask": FLASK}
DENIED = b"HTTP/1.1 403 "


def app(framework: str, options: str = "") -> str:
    text = APPS[framework]
    return text.replace(", OPTIONS", f", {options}" if options else "")


def answered(answer: bytes) -> dict[str, Any]:
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def deny_all_but_open(agent: DevAgent) -> str:
    """Let invoice GET /open alone; its certificate."""
    agent.set_protocol("tax", "http")
    agent.permissions(
        "invoice",
        "tax",
        [
            {"Action": "allow", "HTTP": {"PathExact": "/open"}},
            {"Action": "deny", "HTTP": {"PathPrefix": "/"}},
        ],
    )
    return Identity.of(*agent.issue("invoice")).pem


@pytest.mark.parametrize("framework", sorted(APPS))
def test_in_shadow_mode_the_application_answers_and_the_denial_is_told(
    agent: DevAgent, serve: Serve, framework: str
) -> None:
    """Setting ``mode``: 200 for all, the decision denies, log and metric say so, once each."""
    pem = deny_all_but_open(agent)
    server = serve(app(framework), {"service": "tax", "mode": "shadow"})
    found = answered(knock(server.port(), pem, path="/closed"))
    assert (found["peer"], found["allowed"]) == ("invoice", False)
    assert found["reason"] == "permission_deny"
    assert found["shadowed"] == {"permission_deny": 1}
    assert 'mesh_shadowed_total{service="tax",reason="permission_deny"} 1' in found["metrics"]
    found = answered(knock(server.port(), pem, path="/open"))
    assert (found["allowed"], found["shadowed"]) == (True, {"permission_deny": 1})
    server.wait_output("would deny spiffe://.*/svc/invoice: permission_deny")
    assert "denied spiffe" not in server.output


@pytest.mark.parametrize("framework", sorted(APPS))
@pytest.mark.parametrize("where", ["argument", "path"])
def test_shadow_mode_of_the_middleware(
    agent: DevAgent, serve: Serve, framework: str, where: str
) -> None:
    """``mode="shadow"`` is for every path, ``shadow=["/new"]`` for that one and those below."""
    pem = deny_all_but_open(agent)
    options = 'mode="shadow"' if where == "argument" else 'shadow=["/new"]'
    server = serve(app(framework, options))
    for path in ("/new", "/new/x"):
        assert answered(knock(server.port(), pem, path=path))["allowed"] is False
    # A longer name is no path below, and a path with two readings is below nothing.
    # (In an environ %2f has become a slash, and cannot be told from one.)
    doubtful = ["/new%2fx"] if framework == "starlette" else []
    for path in ("/newer", "/closed", "/new/../closed", "/new;x", "//new", *doubtful):
        answer = knock(server.port(), pem, path=path)
        assert answer.startswith(DENIED) is (where == "path"), (path, answer[:60])
    if where == "path":
        server.wait_output("denied spiffe://.*/svc/invoice: permission_deny")
    server.wait_output("would deny spiffe://.*/svc/invoice: permission_deny")


@pytest.mark.parametrize("framework", sorted(APPS))
def test_shadow_mode_lets_no_unsound_request_and_no_stranger_in(
    agent: DevAgent, serve: Serve, framework: str
) -> None:
    """A 400 stays a 400, and the handshake still wants a certificate of the mesh."""
    pem = deny_all_but_open(agent)
    server = serve(app(framework), {"service": "tax", "mode": "shadow"})
    unsound = "/closed#x" if framework == "starlette" else "/closed%00"
    assert knock(server.port(), pem, path=unsound).startswith(b"HTTP/1.1 400 ")
    assert knock(server.port(), None, path="/closed") == b""
