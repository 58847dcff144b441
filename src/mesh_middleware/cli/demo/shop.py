"""
The shop: the demo's own place in the mesh, from which it calls the services.

Owns a mesh identity named ``shop``, the calls made with it, and the background traffic that counts
what fails. Its calls go the way any user's do: through `mesh_middleware.Client`.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography import x509

from ...config import load_settings
from ...httpx import MeshInfo
from ...identity import ServiceId
from ...mesh import Mesh
from .evidence import Call, Evidence

NAME = "shop"
_TIMEOUT = 15.0


class Shop:
    """
    A client of the mesh.

    Args:
        environment: where the agent is, as the services are told it.
        evidence: takes every call.
    """

    def __init__(self, environment: Mapping[str, str], evidence: Evidence) -> None:
        from ... import Client

        arguments = {"service": NAME, "register": False}
        self.mesh = Mesh(settings=load_settings(arguments, environ=environment))
        self._client = Client(mesh=self.mesh, timeout=_TIMEOUT)
        self._evidence = evidence
        self.step = 0
        self.calls = 0

    def __enter__(self) -> Self:
        self.mesh.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()
        self.mesh.close()

    def order(self, method: str = "GET") -> Call:
        """Call order, which calls invoice, which calls tax."""
        return self.call(method, "https://order/orders/1")

    def call(self, method: str, url: str) -> Call:
        """Call anything in the mesh, and note how it went."""
        return self.call_seen(method, url)[0]

    def call_seen(self, method: str, url: str) -> tuple[Call, MeshInfo | None]:
        """Do as `call`, and tell which instance answered; ``None`` when none did."""
        at, started = datetime.now(UTC), time.perf_counter()
        status: int | None = None
        seen: MeshInfo | None = None
        says: Any
        try:
            answer = self._client.request(method, url)
            status, says = answer.status_code, _body(answer)
            seen = answer.extensions["mesh"]
        except httpx.HTTPError as error:
            says = f"{type(error).__name__}: {error}"
        ms = (time.perf_counter() - started) * 1000
        call = Call(at, self.step, NAME, method, url, status, round(ms, 3), says)
        self._evidence.call(call)
        self.calls += 1
        return call, seen

    def certificate_of(self, service: ServiceId, port: int) -> x509.Certificate:
        """The certificate a service shows on a new connection, verified on the way."""
        context = self.mesh.client_context(service)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            with context.wrap_socket(plain) as tls:
                der = tls.getpeercert(binary_form=True)
        if der is None:
            raise ssl.SSLError(f"{service.name} shows no certificate")
        return x509.load_der_x509_certificate(der)


def _body(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text[:300]


@dataclass(frozen=True, slots=True)
class Tally:
    """
    What background traffic amounted to.

    Args:
        calls: how many were made.
        failed: those that did not succeed.
        slowest: milliseconds of the slowest.
    """

    calls: int
    failed: tuple[Call, ...]
    slowest: float


class Traffic:
    """
    Calls that go on, one after the other, until they are stopped; used with ``with``.

    Args:
        shop: who calls.
    """

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._calls: list[Call] = []
        self._thread = threading.Thread(target=self._run, name="demo-traffic", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> Tally:
        """End the calls and count them; again is fine."""
        self._stop.set()
        self._thread.join(_TIMEOUT + 5)
        return self.tally()

    def tally(self) -> Tally:
        """Count the calls so far."""
        with self._progress:
            calls = tuple(self._calls)
        failed = tuple(call for call in calls if not call.answered)
        return Tally(len(calls), failed, max((call.ms for call in calls), default=0.0))

    def wait_for_more(self, count: int, timeout: float) -> bool:
        """
        Wait until *count* more calls have ended.

        Returns:
            ``False`` when *timeout* seconds were not enough.
        """
        with self._progress:
            goal = len(self._calls) + count
            return self._progress.wait_for(lambda: len(self._calls) >= goal, timeout)

    def _run(self) -> None:
        while not self._stop.is_set():
            call = self._shop.order()
            with self._progress:
                self._calls.append(call)
                self._progress.notify_all()
            if not call.answered:
                # It is lost already: a refused connection must not make this a busy loop.
                self._stop.wait(0.05)
