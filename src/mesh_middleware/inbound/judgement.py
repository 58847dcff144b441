"""
The judgement of one request, as the middlewares further in find it.

Owns how it is carried: an object in the ASGI scope or the WSGI environ of that request. Clients
cannot put one there, since what they send arrives in headers, body and target. A middleware further
in accepts it only while the request is alive and only for the same facts; for others it judges
again, by the identity that this object holds.

Knows nothing of policy: the enforcement is carried, not made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..doors import Door, Verdict
from ..gate import ActiveRequest, Bond, active_request
from ..intentions import Reason
from ..snapshot import Snapshot

JUDGEMENT = "mesh_middleware.judgement"
"""Key of the `Judgement` in scope and environ."""

SERVER_SEND = "mesh_middleware.send"
"""Key under which a server adapter leaves the server's own ``send`` in the scope: what frameworks
put around a middleware may wrap it, as Starlette's ``ServerErrorMiddleware`` does."""

_FACTS = ("type", "method", "path", "raw_path", "query_string", "root_path")


class Judgement(ActiveRequest):
    """
    One request that was judged and let in.

    Args:
        bond: what is bound to its connection.
        headers: as the application gets them; not the list that it gets, which it may change.
        verdict: what was decided.
        scope: as it was judged. Middlewares further in get a copy.
        door: judged it.

    Attributes:
        origin: the judgement of the same request further out, where this is not the first.
        routed: a second scope that was judged, where the router sees another path; else ``None``.
        environ: copy of the environ that the server made of it, for WSGI applications.
        nested: the entry of the request in whose task this one runs; an application may call
            itself.
        holds: until when the verdict holds while the snapshot is the same; see `Mesh.holds`.
        complete: whether the last byte of the answer was sent, where the server cannot tell.
    """

    # What most requests never need is of the class until it is set: each request pays for the rest.
    __slots__ = ("__dict__", "door", "scope", "verdict")

    origin: Judgement | None = None
    routed: Mapping[str, Any] | None = None
    environ: Mapping[str, Any] | None = None
    nested: Judgement | None = None
    holds: tuple[Snapshot, float] | None = None
    complete: bool = False

    def __init__(
        self,
        bond: Bond,
        headers: Iterable[tuple[bytes, bytes]],
        verdict: Verdict,
        scope: Mapping[str, Any],
        door: Door,
    ) -> None:
        self.bond = bond
        self.headers = headers
        self.alive = True
        self.verdict = verdict
        self.scope = scope
        self.door = door

    @property
    def root_path(self) -> str:
        """The ``root_path`` of the server, before any application changed it."""
        root: str = self._first.scope.get("root_path", "")
        return root

    @property
    def server_send(self) -> Any:
        """The server's own ``send``; ``None`` where its adapter does not tell."""
        return self._first.scope.get(SERVER_SEND)

    @property
    def _first(self) -> Judgement:
        return self if self.origin is None else self.origin._first

    def covers(self, scope: Mapping[str, Any], mesh: object) -> bool:
        """
        Tell whether this judgement holds for what a middleware further in sees.

        Args:
            scope: as the middleware got it.
            mesh: by which it would judge.

        Returns:
            False where anything that a rule can see differs, where the request was let in without
            being allowed (exempt, shadow mode), or where its work has ended.
        """
        was = self.scope
        return (
            self.stands(mesh)
            and all(scope.get(name) == was.get(name) for name in _FACTS)
            and list(scope.get("headers", ())) == list(self.headers)
        )

    def covers_environ(self, environ: Mapping[str, Any], mesh: object) -> bool:
        """Tell the same of an environ: only of one that is still as the server made it."""
        return self.stands(mesh) and self.environ is not None and self.environ == environ

    def stands(self, mesh: object) -> bool:
        """Whether the request is alive and its caller was allowed by the intentions of *mesh*."""
        caller = self.verdict.caller
        decided = caller.decision
        allowed = decided.allowed and decided.reason is not Reason.EXEMPT
        return self.alive and allowed and caller.mesh is mesh


def find_judgement(scope: Mapping[str, Any]) -> ActiveRequest | None:
    """
    Find the judgement of the request that an ASGI scope belongs to.

    Adapters between WSGI and ASGI carry the other side's values: a2wsgi's ``wsgi_environ``. Where
    nothing is carried, the request in whose context this runs tells whose connection it is; but no
    judgement is accepted from there: see `is_carried`.
    """
    found = scope.get(JUDGEMENT)
    if found is None:
        found = (scope.get("wsgi_environ") or {}).get(JUDGEMENT)
    return found if isinstance(found, Judgement) else active_request()


def is_carried(scope: Mapping[str, Any], judgement: ActiveRequest) -> bool:
    """Whether a judgement stands in this very scope, and was not found by the context alone."""
    return (
        scope.get(JUDGEMENT) is judgement
        or (scope.get("wsgi_environ") or {}).get(JUDGEMENT) is judgement
    )


def find_environ_judgement(environ: Mapping[str, Any]) -> ActiveRequest | None:
    """Find it for a WSGI environ; a2wsgi carries the scope as ``asgi.scope``."""
    found = environ.get(JUDGEMENT)
    if found is None:
        found = (environ.get("asgi.scope") or {}).get(JUDGEMENT)
    return found if isinstance(found, Judgement) else active_request()


def routed_scope(scope: Mapping[str, Any], server_root: str) -> Mapping[str, Any] | None:
    """
    Find what a router below sees, where a middleware moved the beginning of the path away.

    Routers cut ``root_path`` from the path: Starlette cuts what stood there before its own mounts,
    which it keeps in ``app_root_path``. A ``root_path`` that the server or the application was
    given, or that mounts have made, moves nothing; one taken from a header does.

    Args:
        scope: as the middleware got it.
        server_root: the ``root_path`` that the server gave.

    Returns:
        A scope whose path is the one that is routed; ``None`` where it is the path already.

    Source: Starlette, ``starlette._utils.get_route_path`` and ``Mount``; FastAPI, ``root_path``.
    """
    root: str = scope.get("app_root_path", scope.get("root_path", ""))
    if not root or root in (server_root, getattr(scope.get("app"), "root_path", "")):
        return None
    path: str = scope["path"]
    if not path.startswith(root):
        return None
    cut = path[len(root) :]
    cut = cut if cut.startswith("/") else f"/{cut}"
    return {**scope, "path": cut, "raw_path": None, "root_path": ""}
