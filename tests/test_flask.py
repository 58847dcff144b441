"""The Flask extension."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flask
import pytest

from mesh_middleware import MeshNative
from mesh_middleware.exceptions import ConfigError
from mesh_middleware.flask import EXTENSION, mesh_peer
from mesh_middleware.mesh import set_default_mesh

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


def make(name: str = "tax", **config: Any) -> flask.Flask:
    """An application that says who calls, at any path."""
    app = flask.Flask(name)
    app.config.update(config)

    @app.get("/<path:path>")
    def who(path: str) -> str:
        return f"{name}: {mesh_peer.id.name}"

    return app


def ask(inside: Inside, app: Any, source: str | None = "invoice", path: str = "/who") -> Call:
    """Let *source* send one request, over TLS when it is somebody."""

    async def work() -> Call:
        return Call(app, environ(path, scheme="https" if source else "http"))

    return inside.run(work, source)


def test_every_request_is_judged_and_knows_its_peer(inside: Inside) -> None:
    """``MeshNative(app)`` wraps the application."""
    app = make()
    MeshNative(app, mesh=inside.mesh)
    assert ask(inside, app).body == b"tax: invoice"
    assert ask(inside, app, "order").status == 403
    assert ask(inside, app, None).status == 403


def test_one_extension_serves_several_applications(inside: Inside) -> None:
    """``init_app`` in a factory, for each; none knows of the other."""
    native = MeshNative(mesh=inside.mesh)
    first, second = make("first"), make("second", MESH_EXEMPT=["/open"])
    native.init_app(first)
    native.init_app(second)
    assert ask(inside, first).body == b"first: invoice"
    assert ask(inside, second).body == b"second: invoice"
    assert ask(inside, first, None, "/open").status == 403
    assert first.extensions[EXTENSION] is second.extensions[EXTENSION] is native


def test_twice_is_refused(inside: Inside) -> None:
    """The second door would judge what the first has let in."""
    app = make()
    MeshNative(app, mesh=inside.mesh)
    with pytest.raises(ConfigError, match="'tax' is in the mesh already"):
        MeshNative(app)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"MESH_MODES": "shadow"}, "'MESH_MODE'"),
        ({"MESH_MODE": "shadwo"}, "one of enforce, shadow"),
        ({"MESH_PORT": "x"}, "port = 'x'"),
        ({"MESH_EXEMPT": ["open"]}, "canonical path"),
    ],
)
def test_a_bad_key_ends_the_start(config: dict[str, Any], said: str) -> None:
    """When the application is made, not at a request; the message names the place."""
    app = make(**config)
    with pytest.raises(ConfigError, match=said):
        MeshNative(app)
    assert EXTENSION not in app.extensions


def test_the_configuration_sets_the_door(inside: Inside) -> None:
    """``MESH_MODE`` and ``MESH_EXEMPT``; what is given in code counts before the mode."""
    shadow, enforced = make(MESH_MODE="shadow"), make(MESH_MODE="shadow")
    MeshNative(shadow, mesh=inside.mesh)
    MeshNative(enforced, mesh=inside.mesh, mode="enforce", shadow=["/new"])
    assert ask(inside, shadow, "order").body == b"tax: order"
    assert ask(inside, enforced, "order").status == 403
    assert ask(inside, enforced, "order", "/new/who").body == b"tax: order"


def test_the_peer_outside_a_request_is_an_error_that_says_so() -> None:
    """Flask's own: there is no request."""
    with pytest.raises(RuntimeError, match="outside of request context"):
        mesh_peer.id  # noqa: B018


def test_the_peer_where_the_door_was_not_passed_is_an_error() -> None:
    """An application without the extension."""
    with make().test_request_context("/"), pytest.raises(RuntimeError, match="did not pass"):
        mesh_peer.id  # noqa: B018


def test_the_peer_of_an_exempt_request_is_an_error(inside: Inside) -> None:
    """Nobody has been asked who they are: no name, and no empty one."""
    app = flask.Flask("open")
    seen: list[str] = []

    @app.get("/open")
    def open_to_all() -> str:
        with pytest.raises(RuntimeError, match="exempt"):
            mesh_peer.id  # noqa: B018
        seen.append("open")
        return "well"

    MeshNative(app, mesh=inside.mesh, exempt=["/open"])
    assert ask(inside, app, None, "/open").body == b"well"
    assert seen == ["open"]


def test_the_mesh_is_the_given_one_or_the_running_one(inside: Inside) -> None:
    """`MeshNative.mesh` tells which judges."""
    assert MeshNative(mesh=inside.mesh).mesh is inside.mesh
    assert MeshNative().mesh is None
    set_default_mesh(inside.mesh)
    try:
        assert MeshNative().mesh is inside.mesh
    finally:
        set_default_mesh(None)
