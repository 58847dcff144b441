"""
What our door adds to a request, in process: CPU with the door minus CPU without it.

Owns the trivial applications and the requests. No network, no server: a ready mesh, fed by the dev
agent, judges requests as Hypercorn would hand them over. ``python -m bench.door`` runs it alone.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mesh_middleware import Mesh, MeshAuthz, MeshAuthzWSGI, Peer, gate
from mesh_middleware.certificates import read_peer
from mesh_middleware.config import load_settings
from mesh_middleware.mesh import set_default_mesh
from mesh_middleware.servers._hypercorn.streams import HypercornStreams

from .agent import CALLER, PLAIN_CALLER, SERVICE
from .figures import Figure, Target
from .processes import Processes
from .setting import PATH, Stage
from .stats import estimate

CHUNK = 2000
"""Requests between two looks at the clock: short enough that a chunk is rarely interrupted."""

Request = dict[str, Any]
Make = Callable[[str], Request]
Drive = Callable[[Any, Make, list[str]], Awaitable[float]]

_START = {"type": "http.response.start", "status": 200, "headers": []}
_BODY = {"type": "http.response.body", "body": b""}


async def _asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """Answers, to nobody."""
    await send(_START)
    await send(_BODY)


async def _send(message: Any) -> None:
    """Sends nothing."""


def _wsgi_app(environ: Any, start_response: Any) -> Iterable[bytes]:
    """Does nothing."""
    return ()


async def _drive_asgi(app: Any, make: Make, paths: list[str]) -> float:
    # Each request is made when its turn comes, as on a server: one that has lain in memory for
    # long would make the first to look at it, the door, wait for the memory. What the making costs
    # is on both sides. Of this thread only: the mesh's watcher is not part of a request.
    began = time.thread_time()
    for path in paths:
        # On a server each request has a task, and so a context, of its own. On both sides, too.
        gate.enter_request(None)
        await app(make(path), None, _send)
    return time.thread_time() - began


async def _drive_wsgi(app: Any, make: Make, paths: list[str]) -> float:
    began = time.thread_time()
    for path in paths:
        app(make(path), None)
    return time.thread_time() - began


def _scope(path: str) -> Request:
    """As Hypercorn makes it for a request of an ordinary client."""
    return {
        "type": "http",
        "asgi": {"spec_version": "2.3", "version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"tax"),
            (b"accept", b"*/*"),
            (b"accept-encoding", b"gzip, deflate"),
            (b"connection", b"keep-alive"),
            (b"user-agent", b"python-httpx/0.28.1"),
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 5000),
        "state": {},
        "extensions": {},
    }


def _environ(path: str) -> Request:
    """As Hypercorn makes it."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "5000",
        "HTTP_HOST": "tax",
        "HTTP_ACCEPT": "*/*",
        "HTTP_ACCEPT_ENCODING": "gzip, deflate",
        "HTTP_USER_AGENT": "python-httpx/0.28.1",
        "QUERY_STRING": "",
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "https",
    }


def measure(stage: Stage, chunks: int) -> list[Figure]:
    """
    Measure every door.

    Args:
        stage: with the agent and certificates.
        chunks: of requests, per door; each gives one difference.
    """
    said = {"service": SERVICE, "agent": stage.agent, "register": False, "plugins": False}
    with Mesh(settings=load_settings(said)) as mesh:
        if not mesh.ready(10):
            raise RuntimeError(f"the mesh is not ready: {mesh.status()['troubles']}")
        # As on Hypercorn: the process's own mesh judges, and the server tells complete answers.
        mesh.server = HypercornStreams()
        set_default_mesh(mesh)
        try:
            return list(_figures(stage, mesh, chunks))
        finally:
            set_default_mesh(None)


def _figures(stage: Stage, mesh: Mesh, chunks: int) -> Iterator[Figure]:
    asgi = (_asgi_app, MeshAuthz(_asgi_app), _drive_asgi, _scope)
    wsgi = (_wsgi_app, MeshAuthzWSGI(_wsgi_app), _drive_wsgi, _environ)
    same = itertools.repeat(PATH)
    unseen = (f"/books/{number}" for number in itertools.count())
    named = (
        ("ASGI, by identity (L4)", PLAIN_CALLER, asgi, same, Target(2.0)),
        ("ASGI, HTTP permissions (L7)", CALLER, asgi, same, Target(4.0)),
        ("ASGI, L7, path never seen before", CALLER, asgi, unseen, None),
        ("WSGI, by identity (L4)", PLAIN_CALLER, wsgi, same, Target(6.0)),
        ("WSGI, HTTP permissions (L7)", CALLER, wsgi, same, Target(6.0)),
        ("WSGI, L7, path never seen before", CALLER, wsgi, unseen, None),
    )
    for name, caller, (app, door, drive, make), paths, target in named:
        peer = _peer(stage, caller)
        # A loop and a task, as on a server: the door keeps account of live requests by task.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            taken = runner.run(_added(peer, (app, door), drive, make, paths, chunks))
        _check(mesh)
        yield Figure(f"CPU added by the door: {name}", "us", estimate(taken), target)


async def _added(
    peer: Peer,
    apps: tuple[Any, Any],
    drive: Drive,
    make: Make,
    paths: Iterator[str],
    chunks: int,
) -> list[float]:
    # What Hypercorn's own question for the protocol does in the task of a connection.
    gate._bond.set(gate.Bond(peer, None))
    taken = []
    for number in range(chunks + 1):
        cost = {}
        for app in apps if number % 2 else apps[::-1]:
            some = list(itertools.islice(paths, CHUNK))
            cost[app] = await drive(app, make, some) / CHUNK * 1e6
        if number:  # the first only warms up
            taken.append(cost[apps[1]] - cost[apps[0]])
    return taken


def _check(mesh: Mesh) -> None:
    denied = {str(r): n for r, n in mesh.counts.items() if not r.allows}
    if denied or not mesh.counts:
        raise RuntimeError(f"the door was to let everything through: {denied or 'no requests'}")


def _peer(stage: Stage, name: str) -> Peer:
    pem = stage.identity(name).certificate.read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    return read_peer(der, "client", datetime.now(UTC))


def main() -> None:
    """Measure the doors alone."""
    chunks = 10 if "--quick" in sys.argv else 60
    with tempfile.TemporaryDirectory() as folder, Processes() as started:
        for figure in measure(Stage.open(Path(folder), started), chunks):
            found = figure.estimate
            held = "" if figure.target is None else f"   target {figure.target}"
            print(f"{figure.name:58} {found.median:6.2f} ({found.low:.2f}-{found.high:.2f}){held}")


if __name__ == "__main__":
    main()
