"""
How fast a deny acts on a connection in use.

Owns one kept-alive mutual TLS connection that is never idle, and the writes to the agent. The clock
runs from the agent's reply to the write until the first refusal has arrived: it contains the
agent's wake-up of the blocking query, the mesh's new policy, and one request.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from .agent import CALLER, PERMISSIONS, SERVICE
from .figures import Figure, Target
from .setting import PATH, Server, SettingError, Stage
from .stats import Estimate, estimate, quantile

IN_USE_SECONDS = 0.12
"""How long the connection is busy before each write; also keeps writes apart."""
FLIP_SECONDS = 10.0
"""Longest wait for a write to act."""

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


def measure(stage: Stage, server: Server, count: int, told: Callable[[str], None]) -> list[Figure]:
    """
    Deny the caller, *count* times, and take the time until it is refused.

    Raises:
        SettingError: a change did not act within ten seconds.
    """
    caller = Caller(stage, server)
    taken = []
    try:
        for number in range(count):
            _use(caller)
            stage.ask("PUT", _WHERE, {"Action": "deny"})
            taken.append(_until(caller, 403, time.perf_counter()) * 1000)
            stage.ask("PUT", _WHERE, {"Permissions": PERMISSIONS})
            caller.renew()
            _until(caller, 200, time.perf_counter())
            caller.renew()
            if (number + 1) % 10 == 0:
                told(f"deny {number + 1} of {count}")
    finally:
        caller.close()
    late = quantile(taken, 0.99)
    return [
        Figure("a deny acts on a connection in use, median", "ms", estimate(taken), Target(5.0)),
        Figure(
            "the same, 99th percentile",
            "ms",
            Estimate(late, late, late, count),
            Target(25.0),
            f"of {count} changes",
        ),
    ]


def _use(caller: Caller) -> None:
    until = time.perf_counter() + IN_USE_SECONDS
    while time.perf_counter() < until:
        if (status := caller.status()) != 200:
            raise SettingError(f"the caller is answered {status}, not 200")


def _until(caller: Caller, status: int, since: float) -> float:
    while caller.status() != status:
        if time.perf_counter() - since > FLIP_SECONDS:
            raise SettingError(f"no {status} within {FLIP_SECONDS:g} s of the change")
        if status == 200:
            caller.renew()
    return time.perf_counter() - since


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    return 0
