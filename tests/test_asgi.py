"""The ASGI door: HTTP, WebSocket, lifespan, and scopes nobody knows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from mesh_middleware import MeshAuthz
from mesh_middleware.doors import Caller, Door, Verdict
from mesh_middleware.exceptions import ConfigError
from mesh_middleware.gate import UNBOUND
from mesh_middleware.inbound.judgement import Judgement
from mesh_middleware.intentions import Reason, decision
from mesh_middleware.live import LiveRequests
from mesh_middleware.mesh import running_mesh, set_default_mesh

from .support.doors import App, Exchange, Inside
from .support.servers import PATIENCE


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    """tax, which denies order; the default is allow."""
    with Inside() as inside:
        inside.agent.deny("order", "tax")
        assert inside.mesh.wait_for(lambda seen: bool(seen.intentions), PATIENCE)
        yield inside


@pytest.fixture(scope="module")
def strict() -> Iterator[Inside]:
    """tax, which allows invoice what is below ``/open/``; the default is deny."""
    with Inside(agent={"default_policy": "deny"}) as strict:
        strict.agent.set_protocol("tax", "http")
        allow = {"Action": "allow", "HTTP": {"PathPrefix": "/open/"}}
        strict.agent.permissions("invoice", "tax", [allow])
        assert strict.mesh.wait_for(lambda seen: bool(seen.intentions), PATIENCE)
        yield strict


def ask(inside: Inside, app: Any, exchange: Exchange, source: str | None = "invoice") -> Exchange:
    """Let *source* send one request."""
    return inside.run(lambda: exchange.through(app), source)


def test_an_allowed_request_reaches_the_application_with_its_peer(inside: Inside) -> None:
    """``state`` has it, and what was there before; the server's own scope is not written to."""
    app = App()
    exchange = ask(inside, MeshAuthz(app, mesh=inside.mesh), Exchange(state={"mine": 1}))
    assert (exchange.status, exchange.body) == (200, b"well")
    state = app.scopes[0]["state"]
    assert state["mine"] == 1
    assert state["mesh"].peer == inside.peer("invoice")
    assert state["mesh"].decision.allowed and state["mesh"].mesh is inside.mesh
    assert exchange.scope["state"] == {"mine": 1}


def test_a_denied_request_is_answered_by_the_door(inside: Inside) -> None:
    """403 as a problem that says nothing of the intention; the application is not asked."""
    app = App()
    exchange = ask(inside, MeshAuthz(app, mesh=inside.mesh), Exchange(), "order")
    assert exchange.status == 403 and app.scopes == []
    assert exchange.headers[b"content-type"] == b"application/problem+json"
    assert exchange.headers[b"x-content-type-options"] == b"nosniff"
    assert exchange.headers[b"content-length"] == str(len(exchange.body)).encode()
    problem = {"type": "urn:mesh-middleware:denied", "title": "Forbidden", "status": 403}
    assert json.loads(exchange.body) == problem


@pytest.mark.parametrize(("version", "closes"), [("1.0", True), ("1.1", True), ("2", False)])
def test_plaintext_is_refused_whatever_a_variable_says(
    version: str, closes: bool, inside: Inside
) -> None:
    """The scheme is the server's word; and HTTP/2 has no ``connection`` header."""
    app = App()
    exchange = Exchange(scheme="http", http_version=version)
    ask(inside, MeshAuthz(app, mesh=inside.mesh), exchange, "invoice")
    assert exchange.status == 403 and app.scopes == []
    assert json.loads(exchange.body)["title"] == "Mutual TLS required"
    assert (b"connection" in exchange.headers) is closes


UNSOUND = {
    "fragment": {"raw_path": b"/open/who#x"},
    "fragment in the query": {"raw_path": b"/open/who", "query_string": b"a#b"},
    "no slash": {"raw_path": b"open/who"},
    "control byte": {"raw_path": b"/open/\x01who"},
    "space": {"raw_path": b"/open/w ho"},
    "not ASCII": {"raw_path": b"/open/wh\xf6"},
    "escaped NUL": {"raw_path": b"/open/who%00", "path": "/open/who\0"},
    "hidden, and no slash": {"raw_path": None, "path": "open/who"},
    "hidden, and NUL": {"raw_path": None, "path": "/open/who\0"},
}
"""Parts of a scope that no sound client's request leads to."""


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
@pytest.mark.parametrize("judged", ["by identity", "by path"])
@pytest.mark.parametrize("target", UNSOUND)
def test_an_unsound_target_is_400(
    target: str, judged: str, mode: Any, inside: Inside, strict: Inside
) -> None:
    """Whatever the intentions say, also where identity alone decides; in shadow mode too."""
    app, where = App(), inside if judged == "by identity" else strict
    exchange = Exchange("/open/who")
    exchange.scope.update(UNSOUND[target])
    ask(where, MeshAuthz(app, mesh=where.mesh, mode=mode), exchange)
    assert exchange.status == 400 and app.scopes == []
    assert json.loads(exchange.body)["type"] == "urn:mesh-middleware:unsound-request"


@pytest.mark.parametrize("raw", [b"/who", b"http://tax/who", b"/who/%23", b"/w(h)o=a@b"])
def test_a_sound_target_is_left_to_the_intentions(raw: bytes, inside: Inside) -> None:
    """Escaped or absolute, as sound clients send them."""
    exchange = Exchange("/who", raw_path=raw, query_string=b"q=%23&r=@")
    assert ask(inside, MeshAuthz(App(), mesh=inside.mesh), exchange).status == 200


def test_an_allowed_websocket_is_accepted(inside: Inside) -> None:
    """The application does its handshake, and knows the peer."""
    app = App()
    exchange = ask(inside, MeshAuthz(app, mesh=inside.mesh), Exchange(kind="websocket"))
    assert exchange.sent == [{"type": "websocket.accept"}]
    assert app.scopes[0]["state"]["mesh"].peer.id.name == "invoice"


@pytest.mark.parametrize("judged", ["by identity", "by path"])
def test_what_a_scope_need_not_hold_may_be_missing(
    judged: str, inside: Inside, strict: Inside
) -> None:
    """A WebSocket's query and headers, and the raw path: judged as if they were empty."""
    where, app = inside if judged == "by identity" else strict, App()
    for path, passes in (("/open/who", True), ("/who", where is inside)):
        exchange = Exchange(path, kind="websocket")
        for key in ("query_string", "headers", "raw_path"):
            del exchange.scope[key]
        ask(where, MeshAuthz(app, mesh=where.mesh), exchange)
        assert (exchange.sent == [{"type": "websocket.accept"}]) is passes


@pytest.mark.parametrize("scheme", ["wss", "ws"])
def test_a_denied_websocket_gets_an_answer_where_the_server_can(
    scheme: str, inside: Inside
) -> None:
    """With the extension a 403 of HTTP, without it a close code; denied or plaintext alike."""
    app, source = App(), "order" if scheme == "wss" else "invoice"
    door = MeshAuthz(app, mesh=inside.mesh)
    able = Exchange(kind="websocket", scheme=scheme, extensions={"websocket.http.response": {}})
    ask(inside, door, able, source)
    assert [m["type"] for m in able.sent] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert able.status == 403
    bare = ask(inside, door, Exchange(kind="websocket", scheme=scheme), source)
    assert bare.sent == [{"type": "websocket.close", "code": 4403, "reason": "denied"}]
    assert bare.waiting == [] and app.scopes == []


@pytest.mark.parametrize("kind", ["webtransport", "grpc", ""])
def test_an_unknown_scope_is_refused(kind: str, inside: Inside) -> None:
    """Whatever comes after HTTP and WebSocket: not judged, so not let through."""
    app = App()
    with pytest.raises(RuntimeError, match="not"):
        ask(inside, MeshAuthz(app, mesh=inside.mesh), Exchange(type=kind, scheme="https"), "order")
    assert app.scopes == []


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_mounted_application_is_judged_by_the_whole_path(where: str, strict: Inside) -> None:
    """A rule on ``/open/`` holds for an application mounted there, whichever has the door."""

    async def who(request: Any) -> PlainTextResponse:
        return PlainTextResponse(request.state.mesh.peer.id.name)

    inner = Starlette(routes=[Route("/who", who)])
    outer = Starlette(routes=[Mount("/open", inner), Mount("/shut", inner)])
    (outer if where == "outside" else inner).add_middleware(MeshAuthz, mesh=strict.mesh)
    assert ask(strict, outer, Exchange("/open/who")).body == b"invoice"
    assert ask(strict, outer, Exchange("/shut/who")).status == 403


@pytest.mark.parametrize("path", ["/shut/../open/who", "/open/../shut/who", "/open%2f..%2fshut"])
def test_a_path_with_two_readings_needs_both(path: str, strict: Inside) -> None:
    """Allowed as it is written or as proxies read it, not as both: denied."""
    assert ask(strict, MeshAuthz(App(), mesh=strict.mesh), Exchange(path)).status == 403


@pytest.mark.parametrize("root", ["/open", "/shut"])
def test_a_root_path_changes_no_verdict(root: str, strict: Inside) -> None:
    """What a server calls the root of the application is not what the client sent."""
    door = MeshAuthz(App(), mesh=strict.mesh)
    assert ask(strict, door, Exchange("/open/who", root_path=root)).status == 200
    assert ask(strict, door, Exchange("/shut/who", root_path=root)).status == 403


def test_options_for_the_whole_server_is_exempt_from_nothing(inside: Inside) -> None:
    """``OPTIONS *`` has no path to judge: 400, as by Envoy; in plaintext 403 as any other."""
    door = MeshAuthz(App(), mesh=inside.mesh, exempt=["/"])
    star = {"method": "OPTIONS", "path": "*", "raw_path": b"*"}
    assert ask(inside, door, Exchange(**star), "order").status == 400
    assert ask(inside, door, Exchange(**star, scheme="http"), None).status == 403


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("/healthz", True),
        ("/healthz?x=1", True),
        ("/healthz/", False),
        ("//healthz", False),
        ("/./healthz", False),
        ("/x/../healthz", False),
        ("/healthz;x=1", False),
        ("/%68ealthz", False),
        ("/healthz%2f", False),
        ("/HEALTHZ", False),
        ("/healthz/more", False),
        ("/healthz\\", False),
    ],
)
def test_exempt_is_exact_and_canonical(path: str, passes: bool, inside: Inside) -> None:
    """Anyone may call the one spelling; every other one is judged like any path."""
    app = App()
    door = MeshAuthz(app, mesh=inside.mesh, exempt=["/healthz"])
    exchange = ask(inside, door, Exchange(path, scheme="http"), None)
    assert (exchange.status == 200) is passes
    assert len(app.scopes) == passes
    if passes:
        caller = app.scopes[0]["state"]["mesh"]
        assert caller.peer is None and caller.decision.reason is Reason.EXEMPT


def test_exempt_is_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """What is open to all stands in the log."""
    MeshAuthz(App(), exempt=["/healthz", "/"])
    assert "exempt from the intentions: /, /healthz" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        {"exempt": ["healthz"]},
        {"exempt": ["/a//b"]},
        {"exempt": ["/a/../b"]},
        {"exempt": ["/a?b"]},
        {"shadow": ["/%61"]},
        {"mode": "off"},
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_at_once(wrong: Any) -> None:
    """A path that is not canonical, a mode that is none."""
    with pytest.raises(ConfigError):
        MeshAuthz(App(), **wrong)


def test_shadow_lets_pass_and_tells(inside: Inside) -> None:
    """The application sees the denial in the decision."""
    app = App()
    door = MeshAuthz(app, mesh=inside.mesh, mode="shadow")
    assert ask(inside, door, Exchange(), "order").status == 200
    assert app.scopes[0]["state"]["mesh"].decision.reason is Reason.INTENTION_DENY


def test_shadow_may_hold_for_one_path(inside: Inside) -> None:
    """There and below, not for a path that only begins alike."""
    door = MeshAuthz(App(), mesh=inside.mesh, shadow=["/new"])
    seen = {
        path: ask(inside, door, Exchange(path), "order").status
        for path in ("/new", "/new/x", "/newer", "/new/../old", "/old")
    }
    assert seen == {"/new": 200, "/new/x": 200, "/newer": 403, "/new/../old": 403, "/old": 403}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_without_a_mesh_everything_is_refused(
    scheme: str, inside: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    """No server door, no mesh: refused, and told once why; what is exempt passes."""
    app = App()
    door = MeshAuthz(app, exempt=["/healthz"])
    for _ in range(2):
        exchange = ask(inside, door, Exchange(scheme=scheme), "invoice")
        assert exchange.status == (403 if scheme == "http" else 503)
    assert app.scopes == []
    assert caplog.text.count("was refused") == (scheme == "http")
    assert ask(inside, door, Exchange("/healthz"), None).status == 200
    assert app.scopes[0]["state"]["mesh"].mesh is None


def test_a_failure_while_judging_denies(inside: Inside, caplog: pytest.LogCaptureFixture) -> None:
    """A scope that breaks its own specification: refused, and the defect is in the log."""
    app = App()
    exchange = Exchange(raw_path=7, headers=7)
    ask(inside, MeshAuthz(app, mesh=inside.mesh, exempt=["/x"]), exchange)
    assert exchange.status == 403 and app.scopes == []
    assert "judging failed; the request is denied" in caplog.text


# -- lifespan ----------------------------------------------------------------------------------


class Lifespan(Exchange):
    """A server's lifespan around an application."""

    def __init__(self) -> None:
        super().__init__(type="lifespan")
        self.waiting = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]


@pytest.mark.parametrize("given", [True, False], ids=["given", "the process's own"])
def test_lifespan_passes_through_and_ends_the_mesh_it_found(given: bool) -> None:
    """After the application's shutdown; a mesh that was given is its giver's to end."""
    with Inside() as own:
        order: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            order.append(f"running {own.mesh.running}")
            await send({"type": "lifespan.shutdown.complete"})

        set_default_mesh(own.mesh)
        try:
            door = MeshAuthz(app, mesh=own.mesh if given else None)
            life = asyncio.run(Lifespan().through(door))
            assert running_mesh() is (own.mesh if given else None)
        finally:
            set_default_mesh(None)
        assert order == ["running True"] and own.mesh.running is given
        assert [m["type"] for m in life.sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
        ]


# -- what lives long ---------------------------------------------------------------------------


class Stream:
    """An application that begins to answer, and would go on for ever."""

    def __init__(self) -> None:
        self.begun, self.cancelled = asyncio.Event(), False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            if scope["type"] == "websocket":
                await send({"type": "websocket.accept"})
            else:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"a", "more_body": True})
            self.begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


LAST = {
    "h1": {"type": "http.response.body", "body": b"a", "more_body": True},
    "h2": {"type": "http.response.body", "body": b"a", "more_body": True},
    "ws": {"type": "websocket.close", "code": 4403, "reason": "denied by policy"},
}


@pytest.mark.parametrize("protocol", LAST)
def test_a_stream_whose_caller_is_denied_ends(protocol: str, inside: Inside) -> None:
    """The application is cancelled; what it said of an answer is not made to look complete."""
    exchange = {
        "h1": Exchange(),
        "h2": Exchange(http_version="2"),
        "ws": Exchange(kind="websocket"),
    }[protocol]

    async def work() -> Stream:
        stream = Stream()
        task = asyncio.create_task(exchange.through(MeshAuthz(stream, mesh=inside.mesh)))
        await stream.begun.wait()
        inside.agent.deny("vat", "tax")
        await task
        return stream

    stream = inside.run(work, "vat")
    inside.agent.delete("vat", "tax")
    assert inside.mesh.wait_for(lambda seen: len(seen.intentions or ()) == 1, PATIENCE)
    assert stream.cancelled
    assert exchange.sent[-1] == LAST[protocol]


def test_a_stream_on_trio_ends_too(inside: Inside) -> None:
    """The same in trio's loop, where scopes are cancelled instead of tasks."""
    peer, seen = inside.peer("vat"), []

    async def work() -> None:
        begun = trio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            begun.set()
            await trio.sleep_forever()

        async def call() -> None:
            door = MeshAuthz(app, mesh=inside.mesh)
            exchange = Exchange(kind="websocket")
            inside_ends.server.selected_alpn_protocol()
            await door(exchange.scope, exchange.receive, exchange.send)
            seen.extend(exchange.sent)

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await begun.wait()
                await trio.to_thread.run_sync(inside.agent.deny, "vat", "tax")

    inside_ends = inside.connect("vat")
    assert peer.id.name == "vat"
    trio.run(work)
    inside.agent.delete("vat", "tax")
    assert inside.mesh.wait_for(lambda told: len(told.intentions or ()) == 1, PATIENCE)
    assert seen == [LAST["ws"]]


def test_a_cancellation_of_the_server_is_the_servers(inside: Inside) -> None:
    """A client that hangs up: the cancellation goes on to the server, nothing is sent."""
    exchange = Exchange(http_version="2")

    async def work() -> Stream:
        stream = Stream()
        task = asyncio.create_task(exchange.through(MeshAuthz(stream, mesh=inside.mesh)))
        await stream.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream

    assert inside.run(work).cancelled
    assert exchange.sent[-1]["body"] == b"a"


def test_an_applications_own_error_is_not_hidden(inside: Inside) -> None:
    """It goes on to the server."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("the application's own")

    with pytest.raises(ValueError, match="own"):
        ask(inside, MeshAuthz(broken, mesh=inside.mesh), Exchange())


def judgement(scope: Any = None) -> Judgement:
    """A request that was let in, of nobody."""
    door = Door()
    verdict = Verdict(True, Caller(None, decision(Reason.EXEMPT), None))
    return Judgement(UNBOUND, (), verdict, scope or {"path": "/"}, door)


def test_a_sweep_after_the_loop_has_ended_harms_nobody() -> None:
    """A policy may change when the server has ended already."""
    live = LiveRequests(lambda request: True)
    live.sweep_soon()

    async def enter() -> Any:
        return live.enter(judgement())

    task = asyncio.run(enter())
    live.sweep_soon()
    live.sweep_soon()
    live.leave(task)
    assert len(live) == 0


def test_outside_of_any_loop_nothing_is_entered() -> None:
    """A door that is called by hand has no task to end."""
    assert LiveRequests(lambda request: True).enter(judgement()) is None
