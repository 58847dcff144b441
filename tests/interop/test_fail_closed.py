"""
Doubt is no: over real TLS, on Hypercorn, everything that cannot be believed is refused.

Who is not who they say ends in the handshake, with no byte of HTTP; what the intentions cannot say
for certain is answered 403, or 503 while there is no policy at all. The handler counts its calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import websockets

from mesh_middleware.dev import DevAgent, Token
from mesh_middleware.dev.http import Answer

from ..support.servers import HELD, PATIENCE, Hypercorn, mesh_file, until
from .apps import FLASK
from .callers import HOST, Identity, knock, outsider_context
from .conftest import Serve
from .test_hypercorn import body

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from mesh_middleware import MeshAuthz

calls = []


async def who(request):
    calls.append(request.url.path)
    return JSONResponse({"peer": request.state.mesh.peer.id.uri, "calls": len(calls)})


async def talk(websocket):
    calls.append("websocket")
    await websocket.accept()
    await websocket.close()


app = Starlette(
    routes=[Route("/who", who, methods=["GET", "POST"]), WebSocketRoute("/ws", talk)]
)
app.add_middleware(MeshAuthz)
"""

APPS = {"starlette": STARLETTE, "flask": FLASK}
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
Forge = Callable[[DevAgent], tuple[str, str]]


class Served:
    """A server with its agent, and a caller who is believed."""

    def __init__(self, agent: DevAgent, server: Hypercorn) -> None:
        self.agent, self.server = agent, server
        self.invoice = Identity.of(*agent.issue("invoice"))

    def calls(self) -> int:
        """How often the handler has run, this time included."""
        return int(body(knock(self.server.port(), self.invoice.pem))["calls"])


@pytest.fixture(scope="module", params=["starlette-asyncio", "starlette-trio", "flask-uvloop"])
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Served]:
    """One server for all that is refused in the handshake."""
    app, worker = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    mesh = mesh_file({"service": "tax"}, worker_class=worker)
    with DevAgent() as agent, Hypercorn(folder, APPS[app], mesh, agent=agent.url) as server:
        yield Served(agent, server.wait_ready())
        server.stop()
    assert "Traceback" not in server.output


def uri(agent: DevAgent, path: str = "/ns/default/dc/dc1/svc/invoice") -> str:
    """A SPIFFE ID of the agent's trust domain."""
    return f"spiffe://{agent.trust_domain}{path}"


def ago(**span: float) -> datetime:
    """A moment before this one."""
    return datetime.now(UTC) - timedelta(**span)


def named(*paths: str) -> Forge:
    """A certificate with these URI names."""
    return lambda agent: agent.issue("x", uris=[uri(agent, path) for path in paths])


INVOICE, ORDER = "/ns/default/dc/dc1/svc/invoice", "/ns/default/dc/dc1/svc/order"
WRONG: dict[str, Forge] = {
    "two URI names": named(INVOICE, ORDER),
    "one URI name twice": named(INVOICE, INVOICE),
    "no URI name": lambda agent: agent.issue("x", uris=[], dns=["invoice"]),
    "another scheme": lambda agent: agent.issue("x", uris=["https://invoice" + INVOICE]),
    "another trust domain": lambda agent: agent.issue("invoice", trust_domain="other.consul"),
    "the trust domain in upper case": lambda agent: agent.issue(
        "x", uris=[f"SPIFFE://{agent.trust_domain.upper()}{INVOICE}"]
    ),
    "a port": lambda agent: agent.issue("x", uris=[f"spiffe://{agent.trust_domain}:1{INVOICE}"]),
    "a query": named(INVOICE + "?x=1"),
    "a dot segment": named("/ns/default/dc/dc1/svc/../svc/invoice"),
    "a slash at the end": named(INVOICE + "/"),
    "expired": lambda agent: agent.issue("invoice", not_before=ago(hours=2)),
    "not valid yet": lambda agent: agent.issue("invoice", not_before=ago(hours=-2)),
    "a CA": lambda agent: agent.issue("invoice", ca=True),
    "may sign certificates": lambda agent: agent.issue("invoice", cert_sign=True),
    "for servers only": lambda agent: agent.issue("invoice", usages=["server"]),
    "of a foreign CA": lambda agent: agent.issue("invoice", foreign=True),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_certificate_that_breaks_a_rule_gets_no_byte(wrong: str, served: Served) -> None:
    """By TLS 1.2 and 1.3, and the handler is not reached."""
    pem = "".join(WRONG[wrong](served.agent))
    before = served.calls()
    for version in VERSIONS:
        assert knock(served.server.port(), pem, version=version) == b""
    assert served.calls() == before + 1


def test_no_certificate_gets_no_byte(served: Served) -> None:
    """By TLS 1.2 and 1.3; and plaintext on the TLS port neither."""
    before = served.calls()
    for version in VERSIONS:
        assert knock(served.server.port(), None, version=version) == b""
    assert not knock(served.server.port(), None, tls=False).startswith(b"HTTP")
    assert served.calls() == before + 1


def test_a_name_that_is_no_service_matches_no_rule(served: Served) -> None:
    """An agent's certificate is one of the mesh, but not a service's: 403 under default allow."""
    agent_id = "/agent/client/dc/dc1/id/4711"
    pem = "".join(named(agent_id)(served.agent))
    answer = knock(served.server.port(), pem)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "headers",
    [
        "X-Forwarded-Client-Cert: By=x;URI={uri}",
        "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https",
        "X-Mesh-Peer: {uri}",
    ],
)
def test_no_header_changes_who_calls(headers: str, served: Served) -> None:
    """What a caller writes about identities is not read: the connection's counts."""
    order = Identity.of(*served.agent.issue("order"))
    path = f"/who HTTP/1.1\r\n{headers.format(uri=served.invoice.uri)}\r\nX-Rest:"
    assert body(knock(served.server.port(), order.pem, path=path))["peer"] == order.uri


def test_a_stolen_certificate_without_its_key_is_useless(served: Served) -> None:
    """The chain is public; whoever shows it has to sign with its key."""
    (chain, _), (_, key) = served.agent.issue("invoice"), served.agent.issue("order")
    with pytest.raises(ssl.SSLError, match="KEY_VALUES_MISMATCH"):
        knock(served.server.port(), chain + key)


# -- no policy, no default, no plugin ----------------------------------------------------------


def denied(answer: bytes, status: int = 403) -> Mapping[str, Any]:
    """The problem in an answer of that status, which says nothing but type, title and status."""
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert b"content-type: application/problem+json" in head
    assert b"x-content-type-options: nosniff" in head
    problem: dict[str, Any] = json.loads(content)
    assert set(problem) == {"type", "title", "status"}
    return problem


@pytest.mark.parametrize(
    ("app", "worker"), [("starlette", "asyncio"), ("starlette", "trio"), ("flask", "asyncio")]
)
def test_no_policy_yet_is_503(app: str, worker: str, agent: DevAgent, serve: Serve) -> None:
    """Leaf and roots, but no intentions: 503 with ``Retry-After`` until they come, then 200."""
    invoice = Identity.of(*agent.issue("invoice"))
    with agent.faults.begin("fail", "intentions"):
        server = serve(APPS[app], worker_class=worker)
        answer = knock(server.port(), invoice.pem)
        assert denied(answer, 503)["type"] == "urn:mesh-middleware:not-ready"
        assert b"retry-after: 1\r\n" in answer
        if app == "starlette":
            assert websocket_status(server.port(), invoice.pem) == 503
    until(lambda: b" 200 " in knock(server.port(), invoice.pem)[:16], "the policy")
    assert body(knock(server.port(), invoice.pem))["calls"] == 2


def websocket_status(port: int, pem: str) -> int:
    """Status that a WebSocket's handshake is refused with."""

    async def ask() -> int:
        with pytest.raises(websockets.InvalidStatus) as caught:
            tls = outsider_context(pem)
            async with websockets.connect(f"wss://{HOST}:{port}/ws", ssl=tls, proxy=None):
                pass
        return caught.value.response.status_code

    return asyncio.run(ask())


def test_a_denied_websocket_is_refused_in_its_handshake(agent: DevAgent, serve: Serve) -> None:
    """403, before the application hears of it."""
    agent.deny("invoice", "tax")
    server = serve(STARLETTE)
    invoice, order = (Identity.of(*agent.issue(name)) for name in ("invoice", "order"))
    assert websocket_status(server.port(), invoice.pem) == 403
    assert body(knock(server.port(), order.pem))["calls"] == 1


def test_an_unknown_default_denies_what_needs_it(serve: Serve) -> None:
    """
    The token may not ask for the default, and an intention for all answers in its place.

    Requests that an intention decides are judged; the one that falls through its permissions needs
    the default, which nobody knows: refused, under a default allow.
    """
    rights = Token("tax", service={"tax": "write"}, service_prefix={"": "read"})
    with DevAgent(acl={"s3cret": rights, "boss": Token("boss", management=True)}) as agent:
        agent.set_protocol("tax", "http")
        agent.allow("*", "tax")
        allow = {"Action": "allow", "HTTP": {"PathExact": "/who", "Methods": ["GET"]}}
        agent.permissions("invoice", "tax", [allow])

        async def hide(request: Any) -> Answer | None:
            return Answer("Permission denied", 403) if request.path == "/v1/agent/self" else None

        agent.interpose = hide
        server = serve(STARLETTE, agent=agent.url, environment={"MESH_TOKEN": "s3cret"})
        invoice, order = (Identity.of(*agent.issue(name)) for name in ("invoice", "order"))
        assert body(knock(server.port(), order.pem))["calls"] == 1
        assert body(knock(server.port(), invoice.pem))["calls"] == 2
        denied(knock(server.port(), invoice.pem, method="POST"), 503)
        server.wait_output("svc/invoice: default_unknown")
        server.wait_output("set default_policy")
        assert body(knock(server.port(), invoice.pem))["calls"] == 3
        server.stop()


PLUGIN = """
from mesh_middleware import hookimpl


@hookimpl
def mesh_restrict(source, facts):
    if source.name == "invoice":
        raise ValueError("the plugin's own defect")
    return True


@hookimpl
def mesh_decision(decision, source, facts):
    raise ValueError("a watcher's defect")


@hookimpl
def mesh_snapshot(old, new):
    raise ValueError("a watcher's defect")
"""


@pytest.mark.parametrize("app", ["starlette", "flask"])
def test_a_plugin_that_raises_denies(
    app: str, agent: DevAgent, serve: Serve, tmp_path: Path
) -> None:
    """One that restricts and fails denies; those that only watch change nothing."""
    (tmp_path / "faulty.py").write_text(PLUGIN)
    about = tmp_path / "faulty-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[mesh_middleware]\nfaulty = faulty\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    server = serve(APPS[app], environment={"PYTHONPATH": path})
    invoice, order = (Identity.of(*agent.issue(name)) for name in ("invoice", "order"))
    denied(knock(server.port(), invoice.pem))
    server.wait_output("svc/invoice: plugin_error")
    assert body(knock(server.port(), order.pem))["calls"] == 1


# -- answers of an agent that is newer than we are -----------------------------------------------


class Told:
    """
    An agent whose intentions for tax are what a test says, word for word.

    Args:
        agent: everything else is its own.
        intentions: items of the match.
    """

    def __init__(self, agent: DevAgent, intentions: list[dict[str, Any]]) -> None:
        self._body, self._release = {"tax": intentions}, threading.Event()
        agent.interpose = self._answer

    async def _answer(self, request: Any) -> Answer | None:
        if request.path != "/v1/connect/intentions/match":
            return None
        if request.first("index"):
            await asyncio.to_thread(self._release.wait, PATIENCE)
        return Answer(self._body, index=7)

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()


def item(source: str, **fields: Any) -> dict[str, Any]:
    """An intention about *source* as the match tells it."""
    sides = {"SourceNS": "default", "SourceName": source, "SourceType": "consul"}
    return {**sides, "DestinationNS": "default", "DestinationName": "tax", "Precedence": 9} | fields


def permission(**http: Any) -> list[dict[str, Any]]:
    """Permissions of one that allows where *http* holds."""
    return [{"Action": "allow", "HTTP": http}]


UNREADABLE = {
    "criterion": item("criterion", Permissions=permission(PathExact="/who", SourceIP="::1")),
    "action": item("action", Action="audit"),
    "noaction": item("noaction"),
    "nothing": item("nothing", Permissions=permission()),
    "both": item("both", Permissions=permission(PathExact="/who", PathPrefix="/")),
    "pattern": item("pattern", Permissions=permission(PathRegex="/(who")),
    "method": item("method", Permissions=permission(PathExact="/who", Methods="GET")),
    "token": item("token", Action="allow", JWT={"Providers": [{"Name": "nobody"}]}),
    "header": item(
        "header", Permissions=permission(Header=[{"Name": "x", "Glob": "*", "Exact": "y"}])
    ),
    "second": item(
        "second",
        Permissions=[*permission(PathExact="/who"), {"Action": "allow", "GRPC": {"Method": "x"}}],
    ),
}


@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_a_source_whose_rule_cannot_be_read_is_denied(
    protocol: str, agent: DevAgent, serve: Serve
) -> None:
    """Each for its own flaw, under a default allow; the others are judged as before."""
    agent.set_protocol("tax", protocol)
    with Told(agent, [*UNREADABLE.values(), item("fine", Action="allow")]):
        server = serve(STARLETTE)
        for name in UNREADABLE:
            denied(knock(server.port(), "".join(agent.issue(name))))
            server.wait_output(f"denied spiffe://[^ ]+/svc/{name}: [a-z_]+ ")
        for number, name in enumerate(("fine", "unnamed"), 1):
            assert body(knock(server.port(), "".join(agent.issue(name))))["calls"] == number
        server.stop()
    reasons = dict(re.findall(r"/svc/([a-z]+): ([a-z_]+) ", server.output))
    unread = "unknown_field" if protocol == "http" else "permissions_on_connection"
    assert reasons["criterion"] == reasons["second"] == unread
    assert reasons["token"].startswith("jwt_")
    assert reasons["action"] == reasons["noaction"] == "unknown_action"


@pytest.mark.parametrize(
    "unread",
    [
        item("partial*", Action="deny"),
        item("", Action="deny"),
        item("group", Action="deny", SourceSamenessGroup="all"),
        item("gone", Action="deny", SourceType="vm"),
        item("field", Action="allow", Quota={"PerSecond": 1}),
        "a text",
    ],
    ids=["partial wildcard", "no source", "sameness group", "source type", "field", "no object"],
)
def test_a_source_that_cannot_be_read_denies_everyone(
    unread: Any, agent: DevAgent, serve: Serve
) -> None:
    """Whom the rule is about cannot be told: it may be about the one who calls."""
    with Told(agent, [unread, item("fine", Action="allow")]):
        server = serve(STARLETTE)
        denied(knock(server.port(), "".join(agent.issue("fine"))))
        server.wait_output("svc/fine: unreadable_source|svc/fine: unknown_field")
        server.stop()


@pytest.mark.parametrize("fault", ["foreign", "expired", "mismatch", "truncated", "wrong", "empty"])
def test_a_bad_answer_never_replaces_a_good_one(fault: str, agent: DevAgent, serve: Serve) -> None:
    """Whatever the agent says of roots and leaf afterwards, calls go on as before."""
    server = serve(STARLETTE)
    invoice = Identity.of(*agent.issue("invoice"))
    first = knock(server.port(), invoice.pem)
    assert body(first)["calls"] == 1
    until(lambda: agent.watching == HELD, "all questions held")
    with agent.faults.begin(fault, "roots") as roots, agent.faults.begin(fault, "leaf") as leaf:
        until(lambda: roots.hits and leaf.hits, f"{roots} and {leaf} to be spoken")
        for calls in (2, 3):
            assert body(knock(server.port(), invoice.pem))["calls"] == calls
        foreign = "".join(agent.issue("invoice", foreign=True))
        assert knock(server.port(), foreign) == b""


# -- nothing tells a secret --------------------------------------------------------------------

TALKATIVE = """
import json
import logging
import sys

logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
for name in ("hpack", "asyncio", "httpx", "httpcore", "mesh_middleware", "hypercorn"):
    logging.getLogger(name).setLevel(logging.DEBUG)
"""

DEBUGGED = """


async def debug(request):
    mesh = request.state.mesh.mesh
    told = [mesh.status(), mesh.metrics(), repr(mesh), repr(mesh.snapshot), repr(mesh.settings)]
    told += [repr(request.state.mesh), repr(vars(mesh)), repr(request.scope)]
    return JSONResponse(told)


app.routes.append(Route("/debug", debug))
"""


def test_no_output_holds_a_token_or_a_key(serve: Serve) -> None:
    """At the lowest level of every logger, through refusals, faults and an agent that goes away."""
    canary = "c4n4ry-t0ken-5f0e1d2c"
    rights = Token("tax", service={"tax": "write"}, service_prefix={"": "read"}, agent="read")
    with DevAgent(acl={canary: rights}) as agent:
        app = TALKATIVE + STARLETTE + DEBUGGED
        server = serve(app, agent=agent.url, environment={"MESH_TOKEN": canary}, loglevel="debug")
        invoice = Identity.of(*agent.issue("invoice"))
        answer = knock(server.port(), invoice.pem, path="/debug")
        assert answer.startswith(b"HTTP/1.1 200 ")
        for fault in ("forbid", "fail", "truncated", "mismatch"):
            with agent.faults.begin(fault) as held:
                until(lambda held=held: held.hits >= 3, f"the fault {fault}")
        agent.renew("tax")
        knock(server.port(), None)
        agent.close()
        server.wait_output("no answer from the agent|agent_unavailable|attempts failed")
        answer += knock(server.port(), invoice.pem, path="/debug")
        server.stop()
    told = server.output.encode() + answer
    assert b"DEBUG" in told and b"outage_budget_seconds" in told
    assert canary.encode() not in told
    # The label of a key, and how every EC key begins.
    assert b"PRIVATE" not in told and b"MHcCAQEE" not in told and b"MIGHAgEA" not in told
