"""
Faults of the agent, on purpose: what a test of an outage needs.

Owns which faults hold now, what each does to an answer, and how a broken one goes over the wire.
A fault hits questions that are held already, too: they are answered by it at once. Those that came
while it held, and are held still when it ends, are answered by the truth at once.

Source: reliability.md, 2 (R3, R8, R17); Consul's error texts from the reference, 1.3.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from ..exceptions import ConfigError
from . import forge
from .ca import make_root, to_pem
from .http import Answer, Request
from .index import Watch
from .state import State

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

KINDS = {
    "stall": "holds the question until the fault ends, then answers it",
    "cut": "closes the connection within an answer; with `seconds`, one that took longer",
    "regress": "tells indexes that went backwards, as servers restored from a backup do",
    "wrong": "answers JSON of another shape",
    "empty": "answers no roots, no intentions, nothing",
    "foreign": "answers roots of another trust domain",
    "expired": "answers a leaf that has expired",
    "mismatch": "answers a leaf with the key of another",
    "forbid": "403: the token was revoked",
    "busy": "429: rate limited",
    "fail": "500: no cluster leader",
    "slow": "sends the answer byte by byte, one every `seconds`",
    "huge": "sends an answer that does not end",
    "gzip": "sends a compressed answer that unpacks to a gigabyte, asked for or not",
    "truncated": "sends half of the JSON as if it were all",
}
"""Every fault and what it does."""

ON = {
    "": "/v1/",
    "roots": "/v1/agent/connect/ca/roots",
    "leaf": "/v1/agent/connect/ca/leaf/",
    "intentions": "/v1/connect/intentions",
    "authorize": "/v1/agent/connect/authorize",
    "self": "/v1/agent/self",
    "health": "/v1/health/",
    "register": "/v1/agent/service/register",
    "check": "/v1/agent/check/",
}
"""Names of what a fault can be on, with the paths they stand for; empty is everything."""

PATH = "/v1/dev/faults"
"""Where faults begin and end over HTTP; no fault is ever on it."""

_REFUSALS = {
    "forbid": Answer("Permission denied", 403),
    "busy": Answer("rate limit exceeded, try again later or against a different server", 429),
    "fail": Answer("No cluster leader", 500),
}
_PIECE = b" " * 65536


@dataclass(eq=False, slots=True)
class Fault:
    """
    One fault that holds; use it in ``with``, or `end` it.

    Args:
        kind: one of `KINDS`.
        on: one of `ON`, or the beginning of a path.
        seconds: of kinds that have a rhythm.
        count: answers after which it ends by itself; 0 for no limit.
        offset: how far indexes went backwards.
        hits: answers it has spoilt so far.
    """

    faults: Faults = field(repr=False)
    kind: str
    on: str
    seconds: float = 0.0
    count: int = 0
    offset: int = 0
    hits: int = 0

    @property
    def holds(self) -> bool:
        """Whether it has not ended."""
        return self in self.faults.held

    @property
    def is_limit(self) -> bool:
        """Whether it spoils only what takes longer than `seconds`."""
        return self.kind == "cut" and self.seconds > 0

    def left(self, held: float) -> float:
        """
        Seconds that a question may still be held, after *held* seconds.

        Raises:
            CutError: none.
        """
        if held >= self.seconds:
            raise CutError(self)
        return self.seconds - held

    def end(self) -> None:
        """End it. Ending twice is no error."""
        self.faults.end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


class CutError(Exception):
    """A question was held longer than *fault* lets it be."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class Faults:
    """
    The faults of one agent.

    Args:
        state: what it would answer without them.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self.held: tuple[Fault, ...] = ()

    def begin(self, kind: str, on: str = "", *, seconds: float = 0.0, count: int = 0) -> Fault:
        """
        Let a fault hold from now on.

        Args:
            kind: one of `KINDS`.
            on: one of `ON`, or the beginning of a path.
            seconds: that a question may be held before it is ``cut``, as by a proxy; between the
                bytes of a ``slow`` answer.
            count: answers after which it ends by itself; 0 for no limit.

        Raises:
            ConfigError: no such kind or place.
        """
        if kind not in KINDS:
            raise ConfigError(f"fault {kind!r}: one of {', '.join(KINDS)} is expected")
        if on not in ON and not on.startswith("/"):
            raise ConfigError(f"fault on {on!r}: one of {', '.join(filter(None, ON))}, or a path")
        offset = self._state.index.counter - 2 if kind == "regress" else 0
        fault = Fault(self, kind, on, seconds, count, offset)
        self.held = (*self.held, fault)
        self._state.index.poke_all()
        return fault

    def end(self, fault: Fault | None = None) -> None:
        """End *fault*, or all of them."""
        self.held = tuple(f for f in self.held if fault is not None and f is not fault)
        self._state.index.poke_all()

    def find(self, request: Request) -> Fault | None:
        """The fault that *request* meets now, the newest first."""
        if request.path.startswith(PATH):
            return None
        for fault in reversed(self.held):
            if request.path.startswith(ON.get(fault.on, fault.on)):
                return fault
        return None

    def hit(self, fault: Fault) -> None:
        """Count one spoilt answer."""
        fault.hits += 1
        if fault.count and fault.hits >= fault.count:
            fault.end()

    async def hold(self, request: Request, gone: asyncio.Future[Any]) -> None:
        """Hold *request* while it meets a ``stall``, or until its client has *gone*."""
        with Watch(self._state.index, ("faults",)) as watch:
            while (found := self.find(request)) and found.kind == "stall" and not gone.done():
                watch.rearm()
                if found.holds:
                    await watch.wait(gone, 60.0)

    def refusal(self, fault: Fault) -> Answer | None:
        """What is answered instead of anything else; ``None`` for other kinds of fault."""
        return _REFUSALS.get(fault.kind)

    def ask(self, fault: Fault, request: Request) -> Request:
        """The question as the agent has to understand it, whose indexes went backwards."""
        if not fault.offset or not request.first("index"):
            return request
        index = str(request.index() + fault.offset)
        return replace(request, query={**request.query, "index": [index]})

    def bend(self, fault: Fault, request: Request, answer: Answer) -> Answer:
        """The answer that *request* gets in place of the right one."""
        if fault.offset and answer.index is not None:
            return replace(answer, index=max(1, answer.index - fault.offset))
        made = {
            "wrong": lambda body: {"Unexpected": ["shape", 7, None]},
            "empty": _emptied,
            "foreign": self._foreign,
            "expired": self._expired,
            "mismatch": self._mismatched,
        }.get(fault.kind)
        if made is None or answer.status != 200:
            return answer
        return replace(answer, body=made(answer.body))

    def _foreign(self, body: Any) -> Any:
        if "Roots" not in body:
            return body
        cluster = "11111111-2222-3333-4444-555555555555"
        pem = to_pem(make_root(cluster, 99, self._state.now())[0])
        roots = [{**body["Roots"][0], "RootCert": pem, "ID": "ff:ff"}]
        return {**body, "TrustDomain": f"{cluster}.consul", "Roots": roots, "ActiveRootID": "ff:ff"}

    def _expired(self, body: Any) -> Any:
        return self._issued(body, timedelta(hours=-2), timedelta(hours=1))

    def _mismatched(self, body: Any) -> Any:
        made = self._issued(body, timedelta(minutes=-1), timedelta(hours=1))
        return {**made, "PrivateKeyPEM": body["PrivateKeyPEM"]} if made is not body else body

    def _issued(self, body: Any, begins: timedelta, lasts: timedelta) -> Any:
        if "CertPEM" not in body:
            return body
        now, ca = self._state.now(), self._state.ca
        start, end = forge.validity(now, lasts, now + begins)
        shape = forge.Shape([body["ServiceURI"]], start, end)
        chain, key = forge.forge(ca.active, ca.cluster, ca.next_serial(), now, shape)
        return {**body, "CertPEM": chain, "PrivateKeyPEM": key}


class BrokenWireError(Exception):
    """The connection is to be closed here: raised through the server, which does so."""


async def deliver(
    fault: Fault,
    start: MutableMapping[str, Any],
    body: bytes,
    send: Send,
    gone: asyncio.Future[Any],
) -> None:
    """
    Send an answer as *fault* wants it on the wire.

    Args:
        start: the ``http.response.start`` message, its content length included.
        gone: done when the client has hung up.

    Raises:
        BrokenWireError: the connection ends here.
    """
    named = dict(start["headers"])
    if fault.kind == "truncated":
        body = body[: len(body) // 2]
    elif fault.kind == "gzip":
        body = gzip.compress(bytes(1 << 20)) * 1024
        named[b"content-encoding"] = b"gzip"
    length = len(body) + {"huge": 1 << 40, "cut": 1}.get(fault.kind, 0)
    named[b"content-length"] = str(length).encode()
    await send({**start, "headers": list(named.items())})
    if fault.kind == "cut":
        await _send_part(send, body[: len(body) // 2])
        raise BrokenWireError
    if fault.kind == "huge":
        while not gone.done():
            await _send_part(send, _PIECE)
            await asyncio.sleep(0)  # let the server notice that nobody reads any more
        raise BrokenWireError
    if fault.kind == "slow":
        for at in range(len(body)):
            await _send_part(send, body[at : at + 1])
            await asyncio.wait({gone}, timeout=fault.seconds)
            if gone.done():
                raise BrokenWireError
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


def _emptied(body: Any) -> Any:
    if isinstance(body, dict) and "Roots" in body:
        return {**body, "Roots": []}
    if isinstance(body, dict):
        return dict.fromkeys(body)
    return [] if isinstance(body, list) else body


def read_fault(body: bytes) -> dict[str, Any]:
    """
    Read what `Faults.begin` takes from the JSON of a request.

    Raises:
        ConfigError: it is no object with ``kind`` and, if wanted, ``on``, ``seconds``, ``count``.
    """
    known = {"kind": str, "on": str, "seconds": (int, float), "count": int}
    try:
        told = json.loads(body)
    except ValueError as error:
        raise ConfigError(f"a fault is a JSON object: {error}") from None
    if not isinstance(told, dict) or "kind" not in told:
        raise ConfigError('a fault is a JSON object with "kind"')
    for name, value in told.items():
        if name not in known or not isinstance(value, known[name]):  # type: ignore[arg-type]
            raise ConfigError(f"fault: {name!r} is unknown or of another type")
    return told
