"""
What stands between a server and the application that it serves: every request is judged.

Owns the rule by which a server may leave the judging to the application: only where a middleware of
ours is provably outermost in the very object that is served. Everything else (factories,
dispatchers, mounts, a middleware added later, an application that has none) is judged before it. No
count and no flag decides that. Knows frameworks only by their recognisers, and servers not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from ..answers import refusal
from ..doors import Door, overruled
from ..exceptions import ConfigError
from ..gate import ActiveRequest
from ..intentions import Reason, decision
from .judgement import JUDGEMENT, Judgement

_log = logging.getLogger("mesh_middleware.inbound")

MAX_INNER = 10_000
"""Objects inside an application that are looked at for middlewares; a start takes some ms."""

CALLER = "mesh_middleware.caller"
"""Key of an environ that holds the `mesh_middleware.Caller` of the request."""


class Middleware(NamedTuple):
    """
    A middleware of ours found in an application.

    Args:
        options: names of its options that may let a request pass which the settings would not.
        door: judges, where the middleware was made already.
    """

    options: tuple[str, ...]
    door: Door | None = None


class Recogniser(Protocol):
    """What a framework's face tells a server about applications."""

    def outermost(self, app: object) -> Door | None:
        """
        Prove that a middleware of ours sees every request of *app* first.

        Returns:
            What judges in it; ``None`` where that is not certain.
        """

    def inner(self, app: object) -> Iterable[object]:
        """The applications, middlewares and `Middleware` values inside *app*, one level down."""


class Host:
    """
    Puts the judgement before what a server serves.

    Args:
        recognisers: of the frameworks.
        asgi: makes the middleware that judges before an ASGI application, by a door or, for
            ``None``, by the settings alone.
        bridge: makes an ASGI application of a WSGI application.
    """

    def __init__(
        self,
        recognisers: Iterable[Recogniser],
        *,
        asgi: Callable[[Any, Door | None], Any],
        bridge: Callable[..., Any],
    ) -> None:
        self._recognisers = tuple(recognisers)
        self._asgi, self._bridge = asgi, bridge

    def host_asgi(self, app: Any) -> Any:
        """
        Make what is served of an ASGI application.

        Returns:
            *app* itself where a middleware of ours is outermost in it.

        Raises:
            ConfigError: the options of a middleware in it would have no effect.
        """
        if self._outermost(app) is not None:
            return app
        self._check(app)
        return self._asgi(app, None)

    def host_wsgi(self, app: Any, **options: Any) -> Any:
        """
        Make an ASGI application of a WSGI application, judged before its body is read.

        Args:
            options: of the bridge.

        Raises:
            ConfigError: the options of a middleware in it would have no effect.
        """
        door = self._outermost(app)
        if door is None:
            self._check(app)
        return self._asgi(self._bridge(JudgedEnviron(app), **options), door)

    def _outermost(self, app: object) -> Door | None:
        for each in self._recognisers:
            door = each.outermost(app)
            if door is not None:
                return door
        return None

    def _check(self, app: object) -> None:
        found = list(self._middlewares(app))
        if not found:
            _log.warning(
                "the application has no MeshAuthz, MeshAuthzWSGI or MeshNative: "
                "the server judges its requests"
            )
            return
        options = sorted({option for each in found for option in each.options})
        if options:
            raise ConfigError(overruled(options))
        _log.info("MeshAuthz is not outermost in the application: the server judges its requests")

    def _middlewares(self, app: object) -> Iterator[Middleware]:
        left, seen = [app], {id(app)}
        while left and len(seen) < MAX_INNER:
            each = left.pop()
            if isinstance(each, Middleware):
                yield each
                continue
            for recogniser in self._recognisers:
                for inner in recogniser.inner(each):
                    if id(inner) not in seen or isinstance(inner, Middleware):
                        seen.add(id(inner))
                        left.append(inner)


class JudgedEnviron:
    """
    Notes, in the application's thread, the environ that the server made of a judged request.

    A middleware further in compares its own with it: Werkzeug's ``ProxyFix`` takes ``SCRIPT_NAME``
    from a header, others the method. Routers put a slash before a ``PATH_INFO`` without one, so
    that with the root path ``/api`` the target ``/apiadmin`` would run what ``/api/admin`` names:
    such a request is refused.

    Args:
        app: the WSGI application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Note the environ, and call the application."""
        if not _begins_with_slash(environ):
            status, headers, body = refusal(decision(Reason.UNSOUND_TARGET))
            start_response(f"{status} Bad Request", headers)
            return [body]
        judgement: ActiveRequest | None = environ.get(JUDGEMENT)
        if isinstance(judgement, Judgement):
            environ[CALLER] = judgement.verdict.caller
            judgement.environ = dict(environ)
        return self.app(environ, start_response)


def _begins_with_slash(environ: Any) -> bool:
    info: str = environ.get("PATH_INFO", "")
    return not info or info.startswith("/") or environ.get("SCRIPT_NAME", "").endswith("/")
