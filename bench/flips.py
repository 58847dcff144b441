"""
How fast a deny acts on a connection in use.

Owns one kept-alive mutual TLS connection that is never idle, and the writes to the agent. The clock
runs from the agent's reply to the write until the first refusal has arrived: it contains the
agent's wake-up of the blocking query, the mesh's new policy, and one request. ``python -m
bench.flips`` runs it alone.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .agent import CALLER, PERMISSIONS, SERVICE
from .figures import Figure, Target
from .processes import Processes
from .setting import PATH, Server, SettingError, Stage
from .stats import Estimate, estimate, quantile

IN_USE_SECONDS = 0.12
"""How long the connection is busy before each write; also keeps writes apart."""
FLIP_SECONDS = 10.0
"""Longest wait for a write to act."""

MANY = 10_000
"""Intentions about the service in the second half."""

_ENTRY = f"/v1/config/service-intentions/{SERVICE}"
_WRITTEN = ("Name", "Action", "Permissions")
_REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: {SERVICE}\r\n\r\n".encode()
_WHERE = f"/v1/connect/intentions/exact?source={CALLER}&destination={SERVICE}"


class Caller:
    """
    The measured connection.

    Args:
        stage: knows the caller's certificate.
        server: that is called.
    """

    def __init__(self, stage: Stage, server: Server) -> None:
        self._context = stage.context(CALLER)
        self._port = server.port
        self._open()

    def _open(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self._port), FLIP_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = self._context.wrap_socket(plain)

    def status(self) -> int:
        """Send one request on the connection."""
        self._socket.sendall(_REQUEST)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        length = _content_length(head)
        while len(body) < length:
            body += self._more()
        if b"connection: close" in head.lower():
            self.renew()
        return int(head[9:12])

    def _more(self) -> bytes:
        piece = self._socket.recv(65536)
        if not piece:
            raise SettingError("the server closed the connection in use")
        return piece

    def renew(self) -> None:
        """Begin a new connection: Hypercorn ends one after 1000 requests."""
        self.close()
        self._open()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def measure(
    stage: Stage, server: Server, count: int, told: Callable[[str], None]
) -> Iterator[Figure]:
    """
    Deny the caller, *count* times, and take the time until it is refused; then among many.

    Raises:
        SettingError: a change did not act within ten seconds.
    """
    yield from _figures("a deny acts on a connection in use", _flips(stage, server, count, told),
                        Target(5.0), Target(25.0))  # fmt: skip
    with _many(stage, server):
        told(f"denies among {MANY:,} intentions")
        # The server knows them all when a change that came after them has acted.
        _flips(stage, server, 1, told)
        taken = _flips(stage, server, max(5, count // 4), told)
    yield from _figures(f"the same among {MANY:,} intentions", taken, None, Target(200.0))


def _figures(name: str, taken: list[float], half: Target | None, late: Target) -> Iterator[Figure]:
    worst = quantile(taken, 0.99)
    yield Figure(f"{name}, median", "ms", estimate(taken), half)
    yield Figure(
        "  99th percentile", "ms", Estimate(worst, worst, worst, len(taken)), late,
        f"of {len(taken)} changes",
    )  # fmt: skip


def _flips(stage: Stage, server: Server, count: int, told: Callable[[str], None]) -> list[float]:
    caller = Caller(stage, server)
    taken = []
    try:
        for number in range(count):
            _use(caller)
            stage.ask("PUT", _WHERE, {"Action": "deny"})
            taken.append(_until(caller, 403, time.perf_counter()) * 1000)
            stage.ask("PUT", _WHERE, {"Permissions": PERMISSIONS})
            _until(caller, 200, time.perf_counter())
            if (number + 1) % 10 == 0:
                told(f"deny {number + 1} of {count}")
    finally:
        caller.close()
    return taken


@contextmanager
def _many(stage: Stage, server: Server) -> Iterator[None]:
    """Let there be `MANY` intentions more about the service, and the server know them."""
    few = stage.ask("GET", _ENTRY)
    kept = [{k: v for k, v in s.items() if k in _WRITTEN} for s in few["Sources"]]
    entry = {"Kind": "service-intentions", "Name": SERVICE}
    crowd = [{"Name": f"crowd-{number:05}", "Action": "allow"} for number in range(MANY)]
    stage.ask("PUT", "/v1/config", {**entry, "Sources": [*kept, *crowd]})
    try:
        yield
    finally:
        stage.ask("PUT", "/v1/config", {**entry, "Sources": kept})


def _use(caller: Caller) -> None:
    until = time.perf_counter() + IN_USE_SECONDS
    while time.perf_counter() < until:
        if (status := caller.status()) != 200:
            raise SettingError(f"the caller is answered {status}, not 200")


def _until(caller: Caller, status: int, since: float) -> float:
    while caller.status() != status:
        if time.perf_counter() - since > FLIP_SECONDS:
            raise SettingError(f"no {status} within {FLIP_SECONDS:g} s of the change")
    return time.perf_counter() - since


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    return 0


def main() -> None:
    """Measure the denies alone."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    with tempfile.TemporaryDirectory() as folder, Processes() as started:
        stage = Stage.open(Path(folder), started)
        server = stage.mesh("starlette")
        stage.check(server)
        for figure in measure(stage, server, count, lambda text: None):
            found, held = figure.estimate, figure.target or ""
            print(f"{figure.name:55} {found.median:7.2f} ({found.low:.2f}-{found.high:.2f}) {held}")


if __name__ == "__main__":
    main()
