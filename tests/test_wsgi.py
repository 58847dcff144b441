"""The WSGI door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

from mesh_middleware import MeshAuthzWSGI
from mesh_middleware.exceptions import ConfigError
from mesh_middleware.intentions import Reason
from mesh_middleware.wsgi import KEY

from .support.doors import Inside
from .support.servers import PATIENCE
from .support.wsgi import Call, environ


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    """tax, which denies order; the default is allow."""
    with Inside() as inside:
        inside.agent.deny("order", "tax")
        assert inside.mesh.wait_for(lambda seen: bool(seen.intentions), PATIENCE)
        yield inside


class App:
    """A WSGI application that notes what it is asked."""

    def __init__(self) -> None:
        self.environs: list[dict[str, Any]] = []

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.environs.append(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"well"]


def ask(inside: Inside, app: Any, call: dict[str, Any], source: str | None = "invoice") -> Call:
    """Let *source* send one request."""

    async def work() -> Call:
        return Call(app, call)

    return inside.run(work, source)


def test_an_allowed_request_reaches_the_application_with_its_peer(inside: Inside) -> None:
    """Under a key of the environ that no client can write."""
    app = App()
    call = ask(inside, MeshAuthzWSGI(app, mesh=inside.mesh), environ("/who"))
    assert (call.status, call.body) == (200, b"well")
    assert app.environs[0][KEY].peer == inside.peer("invoice")
    assert app.environs[0][KEY].decision.allowed


def test_a_denied_request_is_answered_by_the_door(inside: Inside) -> None:
    """403 as a problem, by the rules of WSGI; the application is not asked."""
    app = App()
    door = validator(MeshAuthzWSGI(app, mesh=inside.mesh))
    call = ask(inside, door, environ("/who"), "order")
    assert call.status_line == "403 Forbidden" and app.environs == []
    assert call.headers["content-type"] == "application/problem+json"
    problem = {"type": "urn:mesh-middleware:denied", "title": "Forbidden", "status": 403}
    assert json.loads(call.body) == problem


def test_plaintext_is_refused_whatever_a_variable_says(inside: Inside) -> None:
    """Without the hop-by-hop header, which is the server's."""
    app = App()
    call = ask(inside, MeshAuthzWSGI(app, mesh=inside.mesh), environ("/who", scheme="http"))
    assert call.status == 403 and app.environs == []
    assert "connection" not in call.headers


def test_a_forged_caller_is_forgotten(inside: Inside) -> None:
    """A key that an outer layer left behind does not survive the door, denied or exempt."""
    app = App()
    door = MeshAuthzWSGI(app, mesh=inside.mesh, exempt=["/open"])
    forged = environ("/open", scheme="http") | {KEY: "forged"}
    assert ask(inside, door, forged, None).status == 200
    assert app.environs[0][KEY].peer is None
    assert app.environs[0][KEY].decision.reason is Reason.EXEMPT
    forged = environ("/who", scheme="http") | {KEY: "forged"}
    assert ask(inside, door, forged, None).status == 403
    assert KEY not in forged


def test_no_mesh_is_503_and_its_names_are_kept(inside: Inside) -> None:
    """A leaf without policy, here: an identity without a mesh."""
    call = ask(inside, MeshAuthzWSGI(App()), environ("/who"))
    assert call.status_line == "503 Service Unavailable"
    assert call.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/open/", "//open", "/open;x", "/OPEN", "/x/../open"])
def test_exempt_is_exact(path: str, inside: Inside) -> None:
    """The one spelling alone."""
    door = MeshAuthzWSGI(App(), mesh=inside.mesh, exempt=["/open"])
    assert ask(inside, door, environ(path, scheme="http"), None).status == 403


@pytest.mark.parametrize("raw", ["RAW_URI", "REQUEST_URI"])
def test_a_raw_target_that_differs_is_not_exempt(raw: str, inside: Inside) -> None:
    """Where the server tells what the client wrote, that counts too."""
    door = MeshAuthzWSGI(App(), mesh=inside.mesh, exempt=["/open"])
    for target, status in (("/open", 200), ("/open?x=1", 200), ("/%6fpen", 403)):
        call = environ("/open", scheme="http") | {raw: target}
        assert ask(inside, door, call, None).status == status


def test_shadow_lets_pass(inside: Inside) -> None:
    """The application sees the denial in the decision."""
    app = App()
    door = MeshAuthzWSGI(app, mesh=inside.mesh, mode="shadow")
    assert ask(inside, door, environ("/who"), "order").status == 200
    assert app.environs[0][KEY].decision.reason is Reason.INTENTION_DENY


def test_what_cannot_be_meant_is_refused_at_once() -> None:
    """As in the ASGI door."""
    with pytest.raises(ConfigError):
        MeshAuthzWSGI(App(), exempt=["open"])
