"""A middleware of ours is proven outermost only where nothing else can answer before it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from quart import Quart
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware

from mesh_middleware import MeshAuthz, MeshAuthzWSGI, MeshNative
from mesh_middleware.exceptions import ConfigError
from mesh_middleware.frameworks import RECOGNISERS
from mesh_middleware.inbound.host import Host

from ..support.doors import App


def host() -> Host:
    """As a server composes it, with a bridge that changes nothing."""
    return Host(RECOGNISERS, asgi=MeshAuthz.by_server, bridge=lambda app, **options: app)


def star(kind: Any = Starlette, **options: Any) -> Any:
    """An application whose first middleware is ours."""
    app = kind(**options)
    app.add_middleware(MeshAuthz)
    return app


def flask(**change: Any) -> Any:
    """A Flask application with our extension."""
    app = Flask("app")
    MeshNative(app)
    return app


def quart() -> Any:
    """A Quart application with our middleware."""
    app = Quart("app")
    app.asgi_app = MeshAuthz(app.asgi_app)  # type: ignore[method-assign,assignment]
    return app


PROVEN: dict[str, Callable[[], Any]] = {
    "ours": lambda: MeshAuthz(App()),
    "Starlette": star,
    "FastAPI": lambda: star(FastAPI),
    "in the list": lambda: Starlette(middleware=[Middleware(MeshAuthz)]),
    "Quart": quart,
}


@pytest.mark.parametrize("name", PROVEN)
def test_a_proven_application_is_served_as_it_is(name: str) -> None:
    """Nothing is put before it."""
    app = PROVEN[name]()
    assert host().host_asgi(app) is app


class OwnStarlette(Starlette):
    """A subclass, which may do anything."""


class OwnAuthz(MeshAuthz):
    """A middleware that answers some requests itself."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def replaced(app: Any, name: str) -> Any:
    """*app*, with a method of its own."""
    original = getattr(app, name)
    setattr(app, name, lambda *given: original(*given))
    return app


def late(app: Any) -> Any:
    """*app*, whose stack was wrapped once it was built."""
    stack = app.build_middleware_stack()
    app.middleware_stack = CORSMiddleware(stack)
    return app


def added(app: Any) -> Any:
    """*app*, with another middleware outside of ours."""
    app.add_middleware(CORSMiddleware)
    return app


UNPROVEN: dict[str, Callable[[], Any]] = {
    "none": Starlette,
    "not the first": lambda: added(star()),
    "a subclass": lambda: star(OwnStarlette),
    "a method of its own": lambda: replaced(star(), "build_middleware_stack"),
    "a call of its own": lambda: replaced(star(), "__call__"),
    "a stack that was wrapped": lambda: late(star()),
    "a body limit": lambda: star(max_body_size=10),
    "a body limit of FastAPI": lambda: star(FastAPI, max_body_size=10),
    "a middleware with its own call": lambda: Starlette(middleware=[Middleware(OwnAuthz)]),
    "our class overridden": lambda: OwnAuthz(App()),
    "a function around it": lambda: lambda *given: star()(*given),
    "a bound method": lambda: star().__call__,
    "Quart, wrapped": lambda: replaced(quart(), "asgi_app"),
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_any_other_is_judged_by_the_server(name: str) -> None:
    """Whatever it has inside."""
    app = UNPROVEN[name]()
    hosted = host().host_asgi(app)
    assert type(hosted) is MeshAuthz and hosted is not app and hosted.app is app


@pytest.mark.parametrize("kind", [Starlette, ServerErrorMiddleware])
def test_instrumentation_of_a_class_takes_the_proof_away(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was put in the place of a method may answer by itself, whatever it is called."""
    original = kind.__call__

    @wraps(original)
    async def instrumented(self: Any, *given: Any) -> None:
        await original(self, *given)

    monkeypatch.setattr(kind, "__call__", instrumented)
    app = star()
    assert host().host_asgi(app) is not app


def test_flask_is_judged_by_the_rules_of_its_own_middleware() -> None:
    """By its exemptions too, where it is outermost; by the settings alone where it is not."""
    app = Flask("app")
    MeshNative(app, exempt=["/healthz"])
    hosted = host().host_wsgi(app)
    assert hosted.door is app.wsgi_app.door  # type: ignore[attr-defined]
    app.wsgi_app = (lambda inner: lambda *given: inner(*given))(app.wsgi_app)  # type: ignore[method-assign]
    assert host().host_wsgi(app).door is not hosted.door


@pytest.mark.parametrize(
    "option", [{"exempt": ["/healthz"]}, {"mode": "shadow"}, {"shadow": ["/new"]}]
)
def test_options_that_would_have_no_effect_are_an_error(option: dict[str, Any]) -> None:
    """Wherever in the application the middleware is, as far as it can be seen."""
    inner = Starlette()
    inner.add_middleware(MeshAuthz, **option)
    outer = Starlette()
    outer.mount("/sub", inner)
    wrapped = MeshAuthzWSGI(lambda *_: [], **option)
    for serve in (
        lambda: host().host_asgi(added(inner)),
        lambda: host().host_asgi(outer),
        lambda: host().host_wsgi(type("Wrapper", (), {"__init__": _keep})(wrapped)),
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(option))} of a middleware"):
            serve()


def _keep(self: Any, app: Any) -> None:
    self.app = app


def test_options_that_only_tighten_are_none() -> None:
    """``mode="enforce"`` and empty lists are no errors."""
    app = Starlette()
    app.add_middleware(MeshAuthz, mode="enforce", exempt=[], shadow=())
    assert host().host_asgi(added(app)) is not app


def test_an_exemption_of_fastapi_holds_where_ours_is_outermost() -> None:
    """As its page shows it; FastAPI puts middlewares of its own outside of every other."""
    app = FastAPI()
    app.add_middleware(MeshAuthz, exempt=["/healthz"])
    assert host().host_asgi(app) is app
