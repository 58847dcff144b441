"""
Spellings of a protected path, over raw TLS sockets, against real servers and real routing.

Owns the list of spellings. Three callers send each of them: one whom everything is allowed, which
shows what a spelling reaches; one whom all but ``/admin`` is allowed; one whom only ``/public`` is.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from mesh_middleware.dev import DevAgent

from ..support.servers import Hypercorn, mesh_file
from .callers import HOST, outsider_context

PROTECTED = "admin"
ANYONE, BUT_ADMIN, PUBLIC = "auditor", "invoice", "order"

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from mesh_middleware import MeshAuthz


def handler(name):
    async def answer(request):
        return JSONResponse({"handler": name})

    return answer


METHODS = ["GET", "POST", "OPTIONS"]


def route(path, name):
    return Route(path, handler(name), methods=METHODS)


inner = [route("/", "admin"), route("/{rest:path}", "admin")]
app = Starlette(
    routes=[
        route("/admin", "admin"),
        Mount("/admin", routes=inner),
        route("/public/{rest:path}", "public"),
        route("/{rest:path}", "other"),
    ]
)
app.add_middleware(MeshAuthz)
"""

FASTAPI = """
from fastapi import APIRouter, FastAPI

from mesh_middleware import MeshAuthz

app = FastAPI()
app.add_middleware(MeshAuthz)
admin = APIRouter(prefix="/admin")
METHODS = ["GET", "POST", "OPTIONS"]


@admin.api_route("", methods=METHODS)
@admin.api_route("/{rest:path}", methods=METHODS)
async def protected(rest: str = ""):
    return {"handler": "admin"}


app.include_router(admin)


@app.api_route("/public/{rest:path}", methods=METHODS)
async def public(rest: str):
    return {"handler": "public"}


@app.api_route("/{rest:path}", methods=METHODS)
async def other(rest: str):
    return {"handler": "other"}
"""

FLASK = """
from flask import Blueprint, Flask

from mesh_middleware import MeshNative

app = Flask(__name__)
MeshNative(app)
admin = Blueprint("admin", __name__, url_prefix="/admin")
METHODS = ["GET", "POST", "OPTIONS"]


@admin.route("", methods=METHODS)
@admin.route("/", methods=METHODS)
@admin.route("/<path:rest>", methods=METHODS)
def protected(rest=""):
    return {"handler": "admin"}


app.register_blueprint(admin)


@app.route("/public/<path:rest>", methods=METHODS)
def public(rest):
    return {"handler": "public"}


@app.route("/", methods=METHODS)
@app.route("/<path:rest>", methods=METHODS)
def other(rest=""):
    return {"handler": "other"}
"""

APPS = {"starlette": STARLETTE, "fastapi": FASTAPI, "flask": FLASK}

TARGETS = [
    b"/admin", b"/admin/", b"/admin?x=1", b"/admin/users", b"/admin//users", b"/admin/./users",
    # escapes: of letters, of slashes, twice, broken, overlong
    b"/%61dmin", b"/%61%64%6d%69%6e", b"/%41dmin", b"/adm%69n/users", b"/admin%2f",
    b"/admin%2Fusers",
    b"/admin%5cusers", b"%2fadmin", b"/%2fadmin", b"/%2Fadmin", b"/%5cadmin", b"/%2561dmin",
    b"/%252fadmin", b"/%c0%afadmin", b"/admin%", b"/admin%zz", b"/admin%2", b"/%e2%80%8badmin",
    b"/admin%00", b"/%00admin", b"/admin%0a", b"/admin%20", b"/admin%3fx", b"/admin%23x",
    b"/admin%3b", b"/public%2f..%2fadmin", b"/public/%2e%2e/admin", b"/public/%2e%2e%2fadmin",
    b"/public/.%2e/admin", b"/public/%2e./admin", b"/%2e/admin", b"/%2e%2fadmin",
    # empty and dot segments
    b"//admin", b"///admin", b"/.//admin", b"/./admin", b"/../admin", b"/x/../admin",
    b"/public/../admin", b"/public/./../admin", b"/public//../admin", b"/public/..//admin",
    b"/public/x/../../admin", b"/public/../public/../admin/users", b"/admin/.", b"/admin/..",
    b"/admin/../admin", b"/admin/../public/x", b"/admin/x/..", b"/public/..", b"/public/.../admin",
    # parameters and backslashes
    b"/admin;x=1", b"/admin;", b"/;/admin", b"/public/..;/admin", b"/public/..;x=1/admin",
    b"/public;/../admin", b"/admin;/users", b"/public/x;/../../admin", b"/\\admin", b"\\admin",
    b"/public\\..\\admin", b"/public/..\\admin", b"/admin\\users", b"/public/\\../admin",
    # case, dots, look-alikes
    b"/ADMIN", b"/Admin", b"/admin.", b"/admin..", b"/administrator", b"/adm\xc4\xb1n",
    b"/%ef%bc%8fadmin", b"/admin%c2%a0", b"/admin&x", b"/admin=x", b"/admin:80", b"/admin@x",
    # absolute form, fragments, no slash, asterisk
    b"http://tax/admin", b"https://tax/admin", b"HTTPS://tax/admin", b"http://tax//admin",
    b"http://other/admin", b"http://tax/public/../admin", b"http://u@tax/admin", b"https://tax",
    b"//tax/admin", b"admin", b"/admin#x", b"/public/x#/admin", b"/public/#/../../admin", b"*",
    b"?/admin", b"/?/admin", b"/public/x?/../../admin", b"/admin\x7f", b"/\xffadmin", b"/admin\t",
    b"/public/" + b"../" * 50 + b"admin", b"/" * 200 + b"admin", b"/admin/" + b"a" * 9000,
]  # fmt: skip
METHODS = [b"GET", b"POST", b"OPTIONS", b"get", b"HEAD"]


@dataclass
class Served:
    """One server of one framework, and the certificates of the three callers."""

    port: int
    contexts: dict[tuple[str, str], ssl.SSLContext]

    def send(self, caller: str, method: bytes, target: bytes, *more: bytes) -> bytes:
        """Send one raw HTTP/1.1 request; all bytes of the answer."""
        lines = [method + b" " + target + b" HTTP/1.1", b"host: tax", b"connection: close", *more]
        answer = b""
        with socket.create_connection((HOST, self.port), timeout=10) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.contexts[caller, "http/1.1"].wrap_socket(plain) as connection:
                connection.sendall(b"\r\n".join([*lines, b"", b""]))
                with suppress(ConnectionError, ssl.SSLError):
                    while part := connection.recv(65536):
                        answer += part
        return answer

    @cached_property
    def reached(self) -> list[bytes]:
        """The spellings that reach the protected handler for whom everything is allowed."""
        return [t for t in TARGETS if handler(self.send(ANYONE, b"GET", t)) == PROTECTED]


@contextmanager
def serving(app: str, folder: Path, **options: str) -> Iterator[Served]:
    """Hypercorn's asyncio worker with one framework; the policy is there when it starts."""
    with DevAgent(default_policy="deny") as agent:
        agent.set_protocol("tax", "http")
        agent.allow(ANYONE, "tax")
        allow = {"Action": "allow", "HTTP": {"PathPrefix": "/"}}
        deny = {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}}
        agent.permissions(BUT_ADMIN, "tax", [deny, allow])
        public = {"Action": "allow", "HTTP": {"PathPrefix": "/public"}}
        agent.permissions(PUBLIC, "tax", [public])
        if options:
            raw = {"RequestNormalization": {"InsecureDisablePathNormalization": True}}
            agent.put_entry({"Kind": "mesh", "Name": "mesh", "HTTP": {"Incoming": raw}})
        contexts = {
            (name, alpn): outsider_context("".join(agent.issue(name)), alpn=alpn)
            for name in (ANYONE, BUT_ADMIN, PUBLIC)
            for alpn in ("http/1.1", "h2")
        }
        mesh = mesh_file({"service": "tax", "register": False, **options})
        with Hypercorn(folder, APPS[app], mesh, agent=agent.url) as server:
            server.wait_ready()
            yield Served(server.port(), contexts)


@pytest.fixture(scope="module", params=sorted(APPS))
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server of each framework."""
    with serving(request.param, tmp_path_factory.mktemp("spellings")) as served:
        yield served


def handler(answer: bytes) -> str:
    """The handler that answered; empty when none did."""
    if not answer.startswith(b"HTTP/1.1 200 "):
        return ""
    body = answer.partition(b"\r\n\r\n")[2]
    return str(json.loads(body)["handler"]) if body else ""


def status(answer: bytes) -> int:
    """The status; 0 when the connection ended without an answer."""
    return int(answer[9:12]) if answer else 0


def test_the_list_is_long_enough() -> None:
    """At least sixty spellings, none of them twice."""
    assert len(TARGETS) == len(set(TARGETS)) >= 60


def test_the_list_bites(served: Served) -> None:
    """Many of them reach the protected handler, when the caller may do anything."""
    assert len(served.reached) >= 10, served.reached
    assert {b"/admin", b"/%61dmin", b"/admin%2Fusers"} <= set(served.reached)


def test_the_list_finds_a_gap_where_one_is_opened(tmp_path: Path) -> None:
    """Envoy's reading with normalization switched off in the mesh entry: known to be unsafe."""
    with serving("starlette", tmp_path, reading="envoy") as served:
        found = [t for t in TARGETS if handler(served.send(BUT_ADMIN, b"GET", t)) == PROTECTED]
    assert b"/%61dmin" in found and b"/admin" not in found


@pytest.mark.parametrize("caller", [BUT_ADMIN, PUBLIC])
def test_no_spelling_reaches_what_is_denied(served: Served, caller: str) -> None:
    """Neither past a deny of the prefix nor through an allow of another, whatever the method."""
    found = [
        (method, target, answer[:80])
        for target in TARGETS
        for method in METHODS[: 5 if len(target) < 12 else 1]
        if handler(answer := served.send(caller, method, target)) == PROTECTED
    ]
    assert found == []


@pytest.mark.parametrize("caller", [BUT_ADMIN, PUBLIC])
def test_what_reaches_it_is_refused_by_policy_not_by_chance(served: Served, caller: str) -> None:
    """A spelling that leads there for others is answered 403 or 400, by the mesh."""
    for target in served.reached:
        answer = served.send(caller, b"GET", target)
        assert status(answer) in (400, 403), (target, answer[:80])
        assert b"urn:mesh-middleware:" in answer


@pytest.mark.parametrize("caller", [BUT_ADMIN, PUBLIC])
def test_plain_requests_still_pass(served: Served, caller: str) -> None:
    """Caution does not refuse what can be read in one way only."""
    for target in (b"/public/x", b"/public/x?y=/admin", b"/public/administration/a_b~c"):
        assert handler(served.send(caller, b"GET", target)) == "public", target
    other = handler(served.send(caller, b"GET", b"/else"))
    assert other == ("other" if caller == BUT_ADMIN else "")


@pytest.mark.parametrize("caller", [BUT_ADMIN, PUBLIC])
def test_headers_that_claim_another_path_change_nothing(served: Served, caller: str) -> None:
    """X-Original-URL, X-Rewrite-URL, X-Forwarded-Prefix and their kin are no targets."""
    names = (b"x-original-url", b"x-rewrite-url", b"x-forwarded-prefix", b"x-forwarded-uri")
    for name in (*names, b"x-envoy-original-path", b"script_name", b"x-script-name"):
        for target, claim in ((b"/public/x", b"/admin"), (b"/admin", b"/public/x")):
            answer = served.send(caller, b"GET", target, name + b": " + claim)
            assert handler(answer) in ("public", ""), (name, target)
            assert handler(answer) == "" or target == b"/public/x"


async def _send_h2(served: Served, caller: str, targets: list[bytes]) -> dict[bytes, str]:
    """Send each target as ``:path`` of a connection of its own; the handlers that answered."""
    return {target: await _one_h2(served, caller, target) for target in targets}


async def _one_h2(served: Served, caller: str, target: bytes) -> str:
    config = h2.config.H2Configuration(
        validate_outbound_headers=False, normalize_outbound_headers=False
    )
    wire = h2.connection.H2Connection(config)
    wire.initiate_connection()
    names = [(b":method", b"GET"), (b":path", target), (b":scheme", b"https")]
    wire.send_headers(1, [*names, (b":authority", b"tax")], end_stream=True)
    reader, writer = await asyncio.open_connection(
        HOST, served.port, ssl=served.contexts[caller, "h2"]
    )
    code, body = b"", b""
    try:
        writer.write(wire.data_to_send())
        async with asyncio.timeout(10):
            while data := await reader.read(65536):
                for event in wire.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        code = dict(event.headers)[b":status"]  # type: ignore[arg-type,index]
                    elif isinstance(event, h2.events.DataReceived):
                        body += event.data
                    elif isinstance(
                        event,
                        h2.events.StreamEnded
                        | h2.events.StreamReset
                        | h2.events.ConnectionTerminated,
                    ):
                        return str(json.loads(body)["handler"]) if code == b"200" else ""
    finally:
        writer.transport.abort()
    return ""


def test_no_spelling_reaches_it_over_http2(served: Served) -> None:
    """``:path`` may hold what a request line cannot: the same list, and spaces, on HTTP/2."""
    targets = [*TARGETS, b"/public/x /../../admin", b"/ /admin", b"", b"/admin\r\nx: y"]
    reached = asyncio.run(_send_h2(served, ANYONE, targets))
    assert list(reached.values()).count(PROTECTED) >= 10
    for caller in (BUT_ADMIN, PUBLIC):
        found = asyncio.run(_send_h2(served, caller, targets))
        assert [target for target, name in found.items() if name == PROTECTED] == []
