"""
One HTTP/1.1 connection over a blocking socket.

Owns the exchange of requests and answers on a connection that TLS and the gate have passed, and
its timeouts. Knows no pool: others decide which thread may use it.
"""

from __future__ import annotations

import select
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .carrier import OVER, READ_BYTES, Patience, may_stop_sending
from .h1 import Reading
from .library import httpx
from .pool import Lane, retirement
from .sealed import MAX_RECORD
from .wire import Outgoing


class Connection:
    """
    One TLS connection to one instance, whose identity was verified.

    Args:
        sock: after the handshake.
        lane: the instance.
        generation: of leaf and roots when it was dialled.
    """

    def __init__(self, sock: ssl.SSLSocket, lane: Lane[Any], generation: int) -> None:
        self.sock = sock
        self.lane = lane
        self.generation = generation
        self.retire_at = retirement(sock)
        self.idle_since = 0.0
        self.requests = 0
        self.wrote = False
        self.heard = False
        self.sent_all = False
        self._timeout: float | None = sock.gettimeout()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def is_usable(self) -> bool:
        """Whether the other end neither closed it nor said something unasked."""
        # Not looked into: half of a record may be TLS's own business, or half of a stray answer.
        return not self._poll.poll(0)

    def is_alive(self) -> bool:
        """Do as `is_usable`, where on a new connection TLS's own business may have come."""
        if self.is_usable():
            return True
        if self.requests:
            return False
        self._set_timeout(0.0)
        try:
            self.sock.recv(1)
        except ssl.SSLWantReadError:
            return True  # tickets, as a rule
        except OSError:
            pass
        return False

    def exchange(self, outgoing: Outgoing, patience: Patience) -> Reading:
        """
        Send a request and read the head of its answer.

        Raises:
            httpx.TransportError: as httpx; the connection is of no more use.
        """
        self.requests += 1
        self.wrote = self.heard = self.sent_all = False
        reading = Reading(outgoing.method, outgoing.upgrades)
        try:
            self._send(outgoing, reading, patience)
        except httpx.WriteError:
            # The answer may have come before the other end stopped listening.
            pass
        while not reading.status:
            self.receive(reading, patience.within(patience.read))
            if not reading.status and patience.is_over():
                raise httpx.ReadTimeout(OVER)  # what has come was no answer
        return reading

    def receive(self, reading: Reading, timeout: float | None) -> None:
        """Read once."""
        self._set_timeout(timeout)
        try:
            data = self.sock.recv(READ_BYTES)
        except TimeoutError as error:
            raise httpx.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpx.ReadError(str(error)) from error
        if data:
            self.heard = True
            reading.feed(data)
        else:
            reading.end()

    def write(self, data: bytes, timeout: float | None) -> None:
        """Write all of *data*."""
        self._set_timeout(timeout)
        try:
            if len(data) <= MAX_RECORD:
                sent = self.sock.send(data)
            else:
                # A send that fails does not say how much was sent: of one record, nothing that
                # could be read.
                sent = self.sock.send(memoryview(data)[:MAX_RECORD])
            self.wrote = True
            if sent < len(data):
                rest = memoryview(data)[sent:]
                while rest:
                    rest = rest[self.sock.send(rest) :]
        except TimeoutError as error:
            raise httpx.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpx.WriteError(str(error)) from error

    def close(self) -> None:
        """Close it, telling the other end if that costs no waiting."""
        with suppress(OSError, ValueError):
            self._set_timeout(0.0)
            self.sock.unwrap()
        with suppress(OSError):
            self.sock.close()

    def _send(self, outgoing: Outgoing, reading: Reading, patience: Patience) -> None:
        timeout = patience.within(patience.write)
        if outgoing.body is not None:
            self._write_unless_answered(outgoing.head + outgoing.body, reading, timeout)
            self.sent_all = True
            return
        self.write(outgoing.head, timeout)
        for part in outgoing.stream:
            if self._is_answered(reading):
                return
            if patience.is_over():
                raise httpx.WriteTimeout(OVER)
            if framed := outgoing.frame(part):
                timeout = patience.within(patience.write)
                self._write_unless_answered(framed, reading, timeout)
        if end := outgoing.finish():
            self.write(end, patience.within(patience.write))
        self.sent_all = True

    def _write_unless_answered(self, data: bytes, reading: Reading, timeout: float | None) -> None:
        try:
            self.write(data, timeout)
        except httpx.WriteTimeout as error:
            # It does not take the rest; perhaps because it has said why already.
            if not self._is_answered(reading):
                raise
            raise httpx.WriteError(str(error)) from error

    def _is_answered(self, reading: Reading) -> bool:
        while not reading.status and self._poll.poll(0):
            try:
                self.receive(reading, 0.0)
            except httpx.ReadError as error:
                if isinstance(error.__cause__, ssl.SSLWantReadError):
                    break
                raise httpx.WriteError(str(error)) from error
        return may_stop_sending(reading.status)

    def _set_timeout(self, timeout: float | None) -> None:
        if timeout != self._timeout:
            self.sock.settimeout(timeout)
            self._timeout = timeout


class Stream:
    """
    ``response.extensions["network_stream"]``: facts about the connection, and after an Upgrade or
    CONNECT the connection itself.

    Args:
        connection: the connection.
        reading: of the answer.
        left: called when an upgraded connection was closed.
    """

    __slots__ = ("_connection", "_left", "_reading")

    def __init__(self, connection: Connection, reading: Reading, left: Callable[[], None]) -> None:
        self._connection = connection
        self._reading = reading
        self._left = left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """
        Read from an upgraded connection; empty at its end.

        Raises:
            RuntimeError: the connection was not upgraded.
        """
        reading = self._upgraded()
        if not reading.rest:
            self._connection.receive(reading, timeout)
        data, reading.rest = reading.rest[:max_bytes], reading.rest[max_bytes:]
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """
        Write to an upgraded connection.

        Raises:
            RuntimeError: the connection was not upgraded.
        """
        self._upgraded()
        if buffer:
            self._connection.write(buffer, timeout)

    def close(self) -> None:
        """Close an upgraded connection; of others the response is closed instead."""
        if self._reading.switched:
            self._connection.close()
            self._left()

    def get_extra_info(self, info: str) -> Any:
        """Tell ``ssl_object``, ``client_addr`` or ``server_addr``, as httpcore does."""
        sock = self._connection.sock
        known = {
            "ssl_object": lambda: sock,
            "client_addr": sock.getsockname,
            "server_addr": sock.getpeername,
        }
        return known[info]() if info in known else None

    def _upgraded(self) -> Reading:
        if not self._reading.switched:
            raise RuntimeError("only an upgraded connection is read and written directly")
        return self._reading
