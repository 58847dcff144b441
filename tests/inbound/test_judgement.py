"""A middleware further in accepts the server's judgement for the same request, and for no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from mesh_middleware import MeshAuthz, MeshAuthzWSGI
from mesh_middleware.gate import current_peer
from mesh_middleware.inbound.host import JudgedEnviron
from mesh_middleware.inbound.judgement import JUDGEMENT
from mesh_middleware.mesh import set_default_mesh
from mesh_middleware.trace import current_trace

from ..support.doors import App, Exchange, Inside
from ..support.servers import PATIENCE
from ..support.wsgi import Call, environ

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    """tax; invoice may GET what is below ``/open``, but not ``/admin``; the default is deny."""
    with Inside(agent={"default_policy": "deny"}) as inside:
        inside.agent.set_protocol("tax", "http")
        rules: list[dict[str, Any]] = [
            {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
            {"Action": "deny", "HTTP": {"Header": [{"Name": "x-role", "Exact": "root"}]}},
            {"Action": "allow", "HTTP": {"PathPrefix": "/open", "Methods": ["GET"]}},
        ]
        inside.agent.permissions("invoice", "tax", rules)
        assert inside.mesh.wait_for(lambda seen: bool(seen.intentions), PATIENCE)
        set_default_mesh(inside.mesh)
        try:
            yield inside
        finally:
            set_default_mesh(None)


def ask(inside: Inside, app: Any, exchange: Exchange, source: str | None = "invoice") -> Exchange:
    """Let *source* send one request to *app*, before which the server judges."""
    return inside.run(lambda: exchange.through(MeshAuthz.by_server(app)), source)


class Between:
    """A middleware that changes the scope of a request."""

    def __init__(self, app: Any, **changes: Any) -> None:
        self.app, self.changes = app, changes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app({**scope, **self.changes}, receive, send)


def decisions(inside: Inside) -> int:
    """How many requests the mesh has counted."""
    return sum(inside.mesh.counts.values())


def test_the_same_facts_are_judged_once(inside: Inside) -> None:
    """The second middleware passes the request on, with the caller in its state."""
    app, before = App(), decisions(inside)
    exchange = ask(inside, MeshAuthz(MeshAuthz(app)), Exchange("/open/a?b=c"))
    assert exchange.status == 200
    assert decisions(inside) == before + 1
    assert app.scopes[0]["state"]["mesh"].peer.id.name == "invoice"


CHANGES = {
    "path": ({"path": "/admin", "raw_path": b"/admin"}, 403),
    "decoded path alone": ({"path": "/admin"}, 403),
    "raw path alone": ({"raw_path": b"/admin"}, 403),
    "method": ({"method": "POST"}, 403),
    "header": ({"headers": [(b"host", b"tax"), (b"x-role", b"root")]}, 403),
    "root_path that moves the routed path": ({"path": "/open/admin", "root_path": "/open"}, 403),
    "harmless path": ({"path": "/open/b", "raw_path": b"/open/b"}, 200),
    "harmless header": ({"headers": [(b"host", b"other")]}, 200),
    "query": ({"query_string": b"a=b"}, 200),
}


@pytest.mark.parametrize("case", CHANGES)
def test_other_facts_are_judged_again_and_only_a_denial_counts(case: str, inside: Inside) -> None:
    """What a middleware in between has changed is what the application would act on."""
    change, status = CHANGES[case]
    app, before = App(), decisions(inside)
    exchange = ask(inside, Between(MeshAuthz(app), **change), Exchange("/open/a"))
    assert exchange.status == status
    assert len(app.scopes) == (status == 200)
    # An allowing second judgement is not counted: it is the same request.
    assert decisions(inside) == before + (1 if status == 200 else 2)


def test_headers_changed_in_place_are_seen(inside: Inside) -> None:
    """The list that the application gets is not the one that was judged."""
    app = App()
    inner = MeshAuthz(app)

    async def between(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"].append((b"x-role", b"root"))
        await inner(scope, receive, send)

    assert ask(inside, between, Exchange("/open/a")).status == 403
    assert app.scopes == []


def test_a_denied_request_is_not_let_in_by_what_is_changed_after_it(inside: Inside) -> None:
    """A method override to an allowed method comes too late."""
    app = App()
    changed = Between(MeshAuthz(app), method="GET")
    assert ask(inside, changed, Exchange("/open/a", method="POST")).status == 403
    assert app.scopes == []


class Prefix:
    """Takes ``root_path`` from a header, as middlewares for proxies do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for name, value in scope.get("headers", ()):
            if name == b"x-forwarded-prefix":
                scope = {**scope, "root_path": value.decode()}
        await self.app(scope, receive, send)


def handler(name: str) -> Route:
    """A route at ``/<name>`` that answers its name."""
    return Route(f"/{name}", lambda request: PlainTextResponse(name), methods=["GET"])


@pytest.mark.parametrize(
    ("path", "prefix", "answer"),
    [
        ("/open", None, (200, b"open")),
        ("/open/admin", None, (404, b"Not Found")),
        ("/open/admin", "/open", (403, None)),
        ("/open/admin", "/open/", (403, None)),
        ("/open/%61dmin", "/open", (403, None)),
        ("/open/x/admin", "/open/x", (403, None)),
        ("/open/open", "/open", (200, b"open")),
        ("/admin", "/open", (403, None)),
    ],
)
def test_a_root_path_from_a_header_runs_no_handler_under_another_rule(
    path: str, prefix: str | None, answer: tuple[int, bytes | None], inside: Inside
) -> None:
    """The path that the router will see is judged, too."""
    app = Starlette(routes=[handler("admin"), handler("open")])
    app.add_middleware(MeshAuthz)
    app.add_middleware(Prefix)
    headers = [(b"host", b"tax")] + [(b"x-forwarded-prefix", (prefix or "").encode())] * bool(
        prefix
    )
    exchange = ask(inside, app, Exchange(path, headers=headers))
    assert exchange.status == answer[0]
    assert answer[1] is None or exchange.body == answer[1]


@pytest.mark.parametrize("root", ["", "/open"])
def test_mounts_and_a_root_path_of_the_server_go_on_working(root: str, inside: Inside) -> None:
    """Below ``/open`` everything is allowed, whatever the router calls it."""
    inner = Starlette(routes=[handler("admin")])
    inner.add_middleware(MeshAuthz)
    sub = Starlette(routes=[Mount("/sub", app=inner)])
    app = sub if root else Starlette(routes=[Mount("/open", app=sub)])
    exchange = ask(inside, app, Exchange("/open/sub/admin", root_path=root))
    assert (exchange.status, exchange.body) == (200, b"admin")


def test_the_root_path_of_a_fastapi_application_moves_nothing(inside: Inside) -> None:
    """It was written by who wrote the application."""
    app = FastAPI()
    app.root_path = "/open"  # as its argument of that name, which newer versions warn of
    app.add_middleware(MeshAuthz)
    app.get("/admin", response_class=PlainTextResponse)(lambda: "admin")
    assert ask(inside, app, Exchange("/open/admin")).body == b"admin"


def test_what_a_client_sends_is_no_judgement(inside: Inside) -> None:
    """Under the same name in headers and in an environ made of headers it changes nothing."""
    name = JUDGEMENT.encode()
    for header in (name, b"mesh-middleware-judgement", b"mesh_middleware_judgement"):
        exchange = Exchange("/admin", headers=[(header, b"1")])
        assert ask(inside, MeshAuthz(App()), exchange).status == 403
    made = environ("/admin", HTTP_MESH_MIDDLEWARE_JUDGEMENT="1", **{JUDGEMENT: "a string"})
    assert Call(MeshAuthzWSGI(lambda *_: []), made).status_line.startswith("403")


def test_a_judgement_ends_with_its_request(inside: Inside) -> None:
    """A scope that was kept, and comes again by itself, is nobody's."""
    app, kept = App(), []
    inner = MeshAuthz(app)

    async def keeping(scope: Any, receive: Any, send: Any) -> None:
        kept.append(scope)
        await inner(scope, receive, send)

    assert ask(inside, keeping, Exchange("/open/a")).status == 200
    later = Exchange("/open/a")
    later.scope = kept[0]
    inside.run(lambda: later.through(inner), "invoice")
    assert later.status == 403
    assert len(app.scopes) == 1


def test_a_context_alone_carries_no_judgement(inside: Inside) -> None:
    """An application that calls itself, in whatever way, is judged again, by the same identity."""
    before, inner, again = decisions(inside), Exchange("/open/a"), MeshAuthz(App())
    judged: list[Any] = []
    judge_all = again.door.judge_all
    again.door.judge_all = lambda *given: judged.append(given) or judge_all(*given)  # type: ignore[method-assign,func-returns-value]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inner.scope = {k: v for k, v in scope.items() if k != JUDGEMENT}
        await inner.through(again)
        await App()(scope, receive, send)

    assert ask(inside, app, Exchange("/open/a")).status == 200
    assert inner.status == 200 and len(judged) == 1
    assert decisions(inside) == before + 1, "an allowing second judgement is not counted"


def test_a_task_that_outlives_its_request_is_of_nobody(inside: Inside) -> None:
    """Neither its peer nor its trace is that caller's, nor is a call of the application."""
    questions: asyncio.Queue[asyncio.Future[Any]]
    second = MeshAuthz(App())

    async def work() -> None:
        while True:
            answer = await questions.get()
            inner = await Exchange("/open/a").through(second)
            answer.set_result((current_peer(), current_trace(), inner.status))

    tasks: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not tasks:
            tasks.append(asyncio.create_task(work()))
        answer = asyncio.get_running_loop().create_future()
        await questions.put(answer)
        found = await answer
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": repr(found).encode()})

    async def scenario() -> tuple[Any, ...]:
        nonlocal questions
        questions = asyncio.Queue()
        judged = MeshAuthz.by_server(app)
        seen = []
        for headers in ([(b"traceparent", PARENT)], []):
            exchange = await Exchange("/open/a", headers=headers).through(judged)
            seen.append(exchange.body)
        answer = asyncio.get_running_loop().create_future()
        await questions.put(answer)
        last = await answer
        tasks[0].cancel()
        return (*seen, last)

    first, second_body, last = inside.run(scenario, "invoice")
    assert b"name='invoice'" in first and PARENT in first and b"200" in first
    assert second_body == b"(None, (), 403)"
    assert last == (None, (), 403)


# -- WSGI ------------------------------------------------------------------------------------------


def through_wsgi(
    inside: Inside, app: Any, path: str, source: str = "invoice", **change: Any
) -> Call | None:
    """Ask *app* as the server's bridge does, after the judgement; ``None`` where it was denied."""
    calls: list[Call] = []

    async def bridge(scope: Any, receive: Any, send: Any) -> None:
        made = environ(path, **{JUDGEMENT: scope[JUDGEMENT]})
        calls.append(Call(JudgedEnviron(_Changing(app, change)), made))

    ask(inside, bridge, Exchange(path), source)
    return calls[0] if calls else None


class _Changing:
    """A WSGI middleware that changes the environ of a request."""

    def __init__(self, app: Any, changes: dict[str, Any]) -> None:
        self.app, self.changes = app, changes

    def __call__(self, environ: Any, start_response: Any) -> Any:
        environ.update(self.changes)
        return self.app(environ, start_response)


def plain_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    """Answers 200."""
    start_response("200 OK", [])
    return [environ["mesh_middleware.caller"].peer.id.name.encode()]


def test_an_unchanged_environ_is_judged_once(inside: Inside) -> None:
    """By the server; the middleware further in passes it on."""
    before = decisions(inside)
    call = through_wsgi(inside, MeshAuthzWSGI(MeshAuthzWSGI(plain_wsgi)), "/open/a")
    assert call is not None and call.body == b"invoice"
    assert decisions(inside) == before + 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"SCRIPT_NAME": "/admin"}, "403"),
        ({"PATH_INFO": "/admin"}, "403"),
        ({"REQUEST_METHOD": "POST"}, "403"),
        ({"HTTP_X_ROLE": "root"}, "403"),
        ({"PATH_INFO": "/open/b"}, "200"),
        ({"REMOTE_ADDR": "192.0.2.1", "wsgi.url_scheme": "http"}, "200"),
    ],
)
def test_a_changed_environ_is_judged_again(
    change: dict[str, Any], status: str, inside: Inside
) -> None:
    """By the identity of the connection, whatever the scheme says now."""
    call = through_wsgi(inside, MeshAuthzWSGI(plain_wsgi), "/open/a", **change)
    assert call is not None and call.status_line.startswith(status)


def test_a_path_without_its_slash_is_refused(inside: Inside) -> None:
    """With the root path ``/open/x``, a router would take ``admin`` for ``/admin``."""
    app: list[Any] = []

    async def bridge(scope: Any, receive: Any, send: Any) -> None:
        made = environ("/", **{JUDGEMENT: scope[JUDGEMENT]})
        made.update(SCRIPT_NAME="/open/x", PATH_INFO="admin")
        app.append(Call(JudgedEnviron(plain_wsgi), made))

    ask(inside, bridge, Exchange("/open/xadmin"))
    assert app[0].status_line.startswith("400")


# -- options of a middleware that is not outermost -----------------------------------------------


def test_options_that_have_no_effect_are_logged_once(
    inside: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the server could not know of the middleware at its start."""
    inner = MeshAuthz(App(), exempt=["/healthz"], mode="shadow")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert ask(inside, inner, Exchange("/open/a")).status == 200
        assert ask(inside, inner, Exchange("/healthz")).status == 403
        assert ask(inside, inner, Exchange("/admin")).status == 403
    told = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert len(told) == 1
    assert "exempt, mode of a middleware" in told[0]
    assert "settings exempt, mode" in told[0]


def test_an_inner_mode_of_enforce_tightens_shadow(inside: Inside) -> None:
    """The server lets it pass in shadow mode; a middleware that enforces denies it all the same."""
    app = App()
    outer = MeshAuthz(MeshAuthz(app, mode="enforce"), mode="shadow")
    exchange = inside.run(lambda: Exchange("/admin").through(outer), "invoice")
    assert exchange.status == 403 and app.scopes == []


def test_an_exemption_further_out_is_none_further_in(inside: Inside) -> None:
    """What one application lets pass, the other does not."""
    app = App()
    outer = MeshAuthz(MeshAuthz(app), exempt=["/admin"])
    exchange = inside.run(lambda: Exchange("/admin").through(outer), "invoice")
    assert exchange.status == 403 and app.scopes == []
