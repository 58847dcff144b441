"""
The agent as an ASGI application: dispatch, blocking queries, headers.

Owns everything that is the same for every route. The routes decide what to answer; this module
decides when. It may be called from several event loops at once.

Source: Consul HTTP API, conventions and blocking queries (reference 1).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ..exceptions import ConfigError
from . import routes_agent, routes_catalog, routes_connect, routes_intentions
from .faults import PATH as FAULTS_PATH
from .faults import CutError, Fault, Faults, deliver, read_fault
from .http import DEFAULT_WAIT, EMPTY, MAX_WAIT, Answer, Refusal, Request
from .index import Watch
from .routing import Call, Route, Table
from .state import State

log = logging.getLogger("mesh_middleware.dev")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Interpose = Callable[[Request], Awaitable[Answer | None]]

_META = {
    "X-Consul-Knownleader": "true",
    "X-Consul-Lastcontact": "0",
    "X-Consul-Query-Backend": "blocking-query",
}
MAX_BODY = 4 << 20
"""Bytes of a request body that are read at most."""
_ENTERPRISE = {"ns": "Namespaces are", "namespace": "Namespaces are", "partition": "Partitions are"}


class AgentApp:
    """
    The ASGI application.

    Args:
        state: what it serves.
        after_write: called after the answer to a write has gone out.

    Attributes:
        interpose: where a test can delay or replace answers: awaited with each request; an answer
            is sent as it is, None lets the agent answer.
        faults: what goes wrong on purpose.
    """

    def __init__(self, state: State, after_write: Callable[[], None]) -> None:
        self.state = state
        self.interpose: Interpose | None = None
        self.faults = Faults(state)
        self.on_startup: Callable[[], None] = lambda: None
        self.stopping = False
        self._after_write = after_write
        self._table = Table()
        for module in (routes_connect, routes_intentions, routes_agent, routes_catalog):
            module.add_routes(self._table)

    def stop(self) -> None:
        """End every blocked request."""
        self.stopping = True
        self.state.index.poke_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            raise RuntimeError(f"the agent serves HTTP, not {scope['type']}")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self.on_startup()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _read(scope, receive)
        if (why := cross_site(request)) is not None:
            await self._send(request, Answer(why, 403), send)
            return
        if request.path == FAULTS_PATH:
            await self._send(request, self._set_faults(request), send)
            return
        gone: asyncio.Future[Any] = asyncio.ensure_future(receive())
        try:
            await self._serve(request, gone, send)
        finally:
            gone.cancel()

    async def _serve(self, request: Request, gone: asyncio.Future[Any], send: Send) -> None:
        try:
            answer, cut = await self._answer_within(request, gone), None
        except CutError as limit:
            answer, cut = EMPTY, limit.fault
        # Asked again: a question that was held meets the fault that began meanwhile.
        fault = cut or self.faults.find(request)
        if fault is not None and fault.kind == "stall":
            await self.faults.hold(request, gone)
            fault = self.faults.find(request)
        if fault is not None and fault.is_limit and not cut:
            fault = None  # answered in time
        if answer is None or gone.done():
            return  # the client has hung up
        await self._send(request, answer, send, fault, gone)
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            self._after_write()

    async def _answer_within(self, request: Request, gone: asyncio.Future[Any]) -> Answer | None:
        fault = self.faults.find(request)
        if fault is None or not fault.is_limit:
            return await self._answer(request, gone)
        answering = asyncio.ensure_future(self._answer(request, gone))
        done, _ = await asyncio.wait({answering}, timeout=fault.seconds)
        if done:
            return answering.result()
        answering.cancel()
        raise CutError(fault)

    def _set_faults(self, request: Request) -> Answer:
        try:
            if request.method == "PUT":
                self.faults.begin(**read_fault(request.body))
            elif request.method == "DELETE":
                self.faults.end()
        except ConfigError as error:
            return Answer(str(error), 400)
        return Answer(
            [{"kind": f.kind, "on": f.on, "hits": f.hits} for f in self.faults.held],
            headers=(("Content-Type", "application/json"),),
        )

    async def _answer(self, request: Request, gone: asyncio.Future[Any]) -> Answer | None:
        if len(request.body) > MAX_BODY:
            return Answer("Request body too large", 413)
        try:
            if self.interpose is not None:
                replaced = await self.interpose(request)
                if replaced is not None:
                    return replaced
            await self.faults.hold(request, gone)
            return await self._dispatch(request, gone)
        except Refusal as refusal:
            return Answer(refusal.text, refusal.status)
        except CutError:
            raise
        except Exception:
            log.exception("%s %s failed in the dev agent", request.method, request.path)
            return Answer("Internal error of the dev agent", 500)

    async def _dispatch(self, request: Request, gone: asyncio.Future[Any]) -> Answer | None:
        fault = self.faults.find(request)
        if fault is not None:
            refused = self.faults.refusal(fault)
            if refused is not None:
                return refused
            request = self.faults.ask(fault, request)
        found = self._table.find(request.path)
        if found is None:
            return Answer(b"", 404)
        methods, args = found
        allow = (("Allow", ",".join(("OPTIONS", *methods))),)
        if request.method == "OPTIONS":
            return Answer(headers=allow)
        route = methods.get(request.method)
        if route is None:
            return Answer(f"method {request.method} not allowed", 405, headers=allow)
        _refuse_enterprise(request)
        if request.flag("stale") and request.flag("consistent"):
            raise Refusal(400, "Cannot specify ?stale with ?consistent, conflicting semantics.")
        call = Call(self.state, request, args, self.state.rights(request.token()))
        if route.topics is None:
            return self._handle(route, call)
        request.index(), request.wait()  # refuse bad ones even where nothing blocks
        if not call.blocking:
            return self._handle(route, call)
        return await self._block(route, route.topics(call), call, gone, fault)

    def _handle(self, route: Route, call: Call) -> Answer:
        self.state.tick()
        with self.state.lock:
            return route.handler(call)

    async def _block(
        self,
        route: Route,
        topics: tuple[str, ...],
        call: Call,
        gone: asyncio.Future[Any],
        fault: Fault | None,
    ) -> Answer | None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        until = began + _patience(route, call.request)
        waited = False
        with Watch(self.state.index, topics) as watch:
            while True:
                watch.rearm()
                answer = self._handle(route, call)
                left = until - loop.time()
                if _is_news(answer, call.request) or left <= 0:
                    return _as_cached(answer, waited) if route.cached else answer
                if self.stopping:
                    return Answer("The agent is shutting down", 500)
                found = self.faults.find(call.request)
                if found is not None and found.is_limit:
                    left = min(left, found.left(loop.time() - began))
                elif found is not fault:
                    # One has begun, or the one it was asked under has ended: answered by it at
                    # once, or by the truth.
                    return (found and self.faults.refusal(found)) or answer
                if gone.done():
                    return None
                waited = True
                await watch.wait(gone, min(left, self._until_due(route, call)))

    def _until_due(self, route: Route, call: Call) -> float:
        due = route.due(call)
        if due is None:
            return MAX_WAIT
        # A little late rather than a little early: an early look would find nothing and spin.
        return max(0.0, (due - self.state.now()).total_seconds()) + 0.001

    async def _send(
        self,
        request: Request,
        answer: Answer,
        send: Send,
        fault: Fault | None = None,
        gone: asyncio.Future[Any] | None = None,
    ) -> None:
        if fault is not None:
            answer = self.faults.bend(fault, request, answer)
            self.faults.hit(fault)
        body, content_type = answer.encode(pretty=request.flag("pretty"))
        known = self._table.find(request.path) is not None
        headers = self._headers(answer, content_type) if known else []
        headers.append((b"content-length", str(len(body)).encode()))
        start = {"type": "http.response.start", "status": answer.status, "headers": headers}
        if fault is not None and gone is not None:
            await deliver(fault, start, body, send, gone)
            return
        await send(start)
        await send({"type": "http.response.body", "body": body})

    def _headers(self, answer: Answer, content_type: str) -> list[tuple[bytes, bytes]]:
        named = {"X-Consul-Default-Acl-Policy": self.state.options.header_policy}
        if content_type:
            named["Content-Type"] = content_type
        if answer.index is not None:
            named["X-Consul-Index"] = str(max(1, answer.index))
            if answer.meta:
                named |= _META
        if answer.consistent:
            named["X-Consul-Effective-Consistency"] = "leader"
        if answer.hash:
            named["X-Consul-Contenthash"] = answer.hash
        named |= dict(answer.headers)
        return [(name.lower().encode(), value.encode()) for name, value in named.items()]


async def _read(scope: Scope, receive: Receive) -> Request:
    body, more = bytearray(), True
    while more and len(body) <= MAX_BODY:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    raw = scope.get("raw_path") or scope["path"].encode()
    return Request(
        method=scope["method"],
        path=unquote(raw.partition(b"?")[0].decode("latin-1")),
        query=parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True),
        headers={name.decode("latin-1").lower(): value.decode("latin-1")
                 for name, value in scope["headers"]},
        body=bytes(body),
    )  # fmt: skip


def cross_site(request: Request) -> str | None:
    """
    Tell why a request may come from a page of another site in a browser of this machine.

    Loopback is no authentication: a page can make a browser send a form here. Browsers name the
    site in ``Origin`` and ``Sec-Fetch-Site``; programs such as curl send neither. A page of a name
    that was made to lead to loopback (DNS rebinding) shows in ``Host``.

    Returns:
        What the caller is told; ``None`` where nothing is wrong.

    Source: Fetch Standard, "Origin header"; W3C Fetch Metadata, "Sec-Fetch-Site".
    """
    headers = request.headers
    host, origin = headers.get("host", ""), headers.get("origin")
    site = headers.get("sec-fetch-site")
    if (origin is not None or site is not None) and not _is_loopback(host):
        return "a browser's request to a host name that is not loopback (Host) is refused"
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    if site not in (None, "none", "same-origin"):
        return "a write by a page of another site (Sec-Fetch-Site) is refused"
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return "a write by a page of another site (Origin) is refused"
    return None


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refuse_enterprise(request: Request) -> None:
    for name, what in _ENTERPRISE.items():
        if request.flag(name):
            raise Refusal(
                400, f'Bad request: Invalid query parameter: "{name}" - {what} a Consul'
                " Enterprise feature"
            )  # fmt: skip
    if request.headers.get("x-consul-namespace"):
        raise Refusal(
            400, 'Bad request: Invalid header: "X-Consul-Namespace" - Namespaces are a Consul'
            " Enterprise feature"
        )  # fmt: skip


def _patience(route: Route, request: Request) -> float:
    wait = request.wait()
    if route.cached:
        return wait or MAX_WAIT  # no jitter, and no default of five minutes. Source: 1.7.
    wait = wait or DEFAULT_WAIT
    return wait + random.uniform(0, wait / 16)


def _is_news(answer: Answer, request: Request) -> bool:
    if answer.index is None:
        return answer.hash != request.first("hash")
    return answer.index > request.index()


def _as_cached(answer: Answer, waited: bool) -> Answer:
    """A cached answer that had to be waited for is a MISS. Source: reference 1.7."""
    if not waited:
        return answer
    kept = tuple(pair for pair in answer.headers if pair[0] not in ("X-Cache", "Age"))
    return replace(answer, headers=(("X-Cache", "MISS"), *kept))
