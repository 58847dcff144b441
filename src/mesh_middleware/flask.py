"""
The door of Flask applications: an extension on top of the WSGI door.

Owns `MeshNative` and the proxies `mesh_peer` and `mesh_caller`. ``app.config["MESH_*"]`` names any
setting.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

try:
    import click
    import flask
    from werkzeug.local import LocalProxy
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "mesh_middleware.flask needs its extra: pip install 'mesh-middleware[flask]'"
    ) from None

from .certificates import Peer
from .config import Mode, flask_options, load_settings, offer_options
from .doors import one_line
from .exceptions import ConfigError
from .mesh import Mesh, running_mesh
from .wsgi import KEY, MeshAuthzWSGI

if TYPE_CHECKING:
    from .doors import Caller

EXTENSION = "mesh_native"
"""Key of the extension in ``app.extensions``."""


class MeshNative:
    """
    Flask extension: every request judged by the intentions.

    ``MeshNative(app)``, or ``MeshNative().init_app(app)`` in an application factory.

    Args:
        app: application to wrap at once.
        mesh: judges; the process's own mesh unless given.
        exempt: canonical paths that anyone may call, besides ``MESH_EXEMPT``.
        mode: ``shadow`` lets every request pass and logs the denial.
        shadow: canonical paths at and below which the mode is ``shadow``.
    """

    def __init__(
        self,
        app: flask.Flask | None = None,
        *,
        mesh: Mesh | None = None,
        exempt: Iterable[str] = (),
        mode: Mode | None = None,
        shadow: Iterable[str] = (),
    ) -> None:
        self._mesh = mesh
        self._exempt, self._mode, self._shadow = tuple(exempt), mode, tuple(shadow)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """
        Wrap ``app.wsgi_app``.

        Args:
            app: application whose ``MESH_*`` configuration is read.

        Raises:
            ConfigError: the application is wrapped already, or a ``MESH_*`` key is unknown or
                unusable. One line where the ``flask`` or ``hypercorn`` command imports it.
        """
        with one_line(), _flask_error():
            self._wrap(app)
        if "hypercorn.config" in sys.modules:
            from .servers.hypercorn_tls import check_hosted

            check_hosted()
        app.extensions[EXTENSION] = self

    def _wrap(self, app: flask.Flask) -> None:
        if EXTENSION in app.extensions:
            raise ConfigError(f"MeshNative: {app.name!r} is in the mesh already")
        options = flask_options(app.config)
        # Read for its errors: an unknown key ends the start, not a request.
        settings = load_settings(
            file={"service": "unnamed", **options}, where="app.config", prefix="MESH_"
        )
        app.wsgi_app = MeshAuthzWSGI(  # type: ignore[method-assign]
            app.wsgi_app,
            mesh=self._mesh,
            exempt=(*self._exempt, *(settings.exempt if "exempt" in options else ())),
            mode=self._mode or (settings.mode if "mode" in options else None),
            shadow=(*self._shadow, *(settings.shadow if "shadow" in options else ())),
        )
        # Not what this middleware has taken already: another application must not get it too.
        own = ("exempt", "mode", "shadow")
        offer_options({k: v for k, v in options.items() if k not in own})

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that judges; ``None`` while none runs in this process."""
        return self._mesh or running_mesh()


class FlaskConfigError(ConfigError, click.ClickException):
    """A `ConfigError` that the ``flask`` command tells in one line."""

    def format_message(self) -> str:
        """What the command prints, with whose error it is."""
        return f"mesh_middleware: {self}"


@contextlib.contextmanager
def _flask_error() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise FlaskConfigError(str(error)) from None


def _caller() -> Caller:
    found = flask.request.environ.get(KEY)
    if found is None:
        raise RuntimeError("this request did not pass MeshNative: is the extension initialised?")
    return cast("Caller", found)


def _current_peer() -> Peer:
    peer = _caller().peer
    if peer is None:
        raise RuntimeError("this path is exempt: the request has no mesh identity")
    return peer


mesh_caller: Caller = LocalProxy(_caller)  # type: ignore[assignment]
"""What the mesh knows of the present request: peer, decision, verified token claims."""

mesh_peer: Peer = LocalProxy(_current_peer)  # type: ignore[assignment]
"""The peer that sent the present request: ``mesh_peer.id.name``."""
