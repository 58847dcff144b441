"""
TLS connections that pass a gate, and the peer bound to the connection that carries a request.

Owns what one connection knows: its gate, its peer, what it stands on. Knows nothing of leafs, roots
or where contexts come from; `tls` makes these.

The gate runs inside ``do_handshake``, after OpenSSL has verified the chain. OpenSSL would also
shake hands by itself in the first read or write: those are refused until the gate is passed.

The binding. The peer belongs to the connection's TLS object. Servers hide that object from the
application, but Hypercorn asks it for ``selected_alpn_protocol()`` in the connection's own task,
before any request: there, and nowhere else, the peer is put into a context variable, which the
request's tasks inherit. Binding in ``do_handshake`` instead would be wrong: under uvloop the
callbacks of different connections can share one context.

Source: design 4.2 and 4.3.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from .certificates import Peer, utc_now
from .exceptions import PeerMismatchError
from .standing import Standing

Gate = Callable[[bytes | None], Peer]
"""Takes the peer's certificate in DER, returns who it is or raises `ssl.SSLError`."""

_UNSHAKEN = "the handshake has not passed the gate"
_UNFINISHED = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Bond(NamedTuple):
    """
    What is bound to the connection that carries a request.

    Args:
        peer: who is at its other end.
        standing: what the connection stands on.
    """

    peer: Peer | None
    standing: Standing | None


UNBOUND = Bond(None, None)
"""On plaintext, and outside of any request."""

_bond: ContextVar[Bond] = ContextVar("mesh_middleware_bond", default=UNBOUND)

connection_bond: Callable[[], Bond] = _bond.get
"""What is bound to the connection whose task, or a task started by it, runs now."""


class ActiveRequest:
    """
    One request while the application works on it.

    A task that a request starts inherits its context, and may run for days. So what belongs to the
    request is asked for here, where it ends with the request.

    Args:
        bond: what is bound to its connection.
        headers: of the request, names in lower case.

    Attributes:
        alive: whether the application still works on it.
    """

    __slots__ = ("alive", "bond", "headers")

    def __init__(self, bond: Bond, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.bond = bond
        self.headers = headers
        self.alive = True


_request: ContextVar[ActiveRequest | None] = ContextVar("mesh_middleware_request", default=None)

active_request: Callable[[], ActiveRequest | None] = _request.get
"""The request in whose context this runs; it may have ended: see `ActiveRequest.alive`."""

enter_request = _request.set
"""Make a request the present one of this context; returns the token for `leave_request`."""

leave_request = _request.reset
"""Undo `enter_request`, in the same context."""


def current_bond() -> Bond:
    """
    What is bound to the connection that carries the present request.

    Returns:
        `UNBOUND` on plaintext, outside a request, and in a task that outlived its request.
    """
    request = _request.get()
    if request is None:
        return _bond.get()
    return request.bond if request.alive else UNBOUND


class GateError(ssl.SSLCertVerificationError):
    """
    The gate refused a handshake that OpenSSL had accepted.

    Args:
        reason: which rule the certificate breaks.
    """

    def __init__(self, reason: str, mismatch: PeerMismatchError | None = None) -> None:
        super().__init__(1, f"[MESH_PEER_REFUSED] {reason}")
        self.rule = reason
        self.mismatch = mismatch


def current_peer() -> Peer | None:
    """
    The peer of the connection that carries the present request.

    Returns:
        ``None`` on a plaintext connection, outside a request, in a task that outlived the request
        that started it, or on a server that does not bind.
    """
    return current_bond().peer


class Wraps(Protocol):
    """As much of a live context as an accepting socket needs."""

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = ...,
        do_handshake_on_connect: bool = ...,
        suppress_ragged_eofs: bool = ...,
    ) -> ssl.SSLSocket:
        """Begin a connection."""


class Gated:
    """What the two kinds of TLS object share: a gate, and the peer it let in."""

    mesh_gate: Gate | None = None
    mesh_peer: Peer | None = None

    def _demand_gate(self) -> None:
        if self.mesh_peer is None:
            raise GateError(_UNSHAKEN)

    def _pass_gate(self) -> None:
        self.mesh_peer = None
        if self.mesh_gate is None:
            raise GateError("no gate was set for this connection")
        der = self.getpeercert(binary_form=True)  # type: ignore[attr-defined]
        self.mesh_peer = self.mesh_gate(der)


class GatedObject(Gated, ssl.SSLObject):
    """A TLS connection in memory, as asyncio, uvloop, trio and anyio use it."""

    mesh_standing: Standing | None = None
    mesh_now: Callable[[], datetime] = staticmethod(utc_now)
    mesh_refused: Callable[[ssl.SSLError], None] | None = None

    def do_handshake(self) -> None:
        """Finish the handshake, then pass the gate."""
        try:
            super().do_handshake()
            self._pass_gate()
        except ssl.SSLError as error:
            if self.mesh_refused is not None and not isinstance(error, _UNFINISHED):
                self.mesh_refused(error)
            raise
        if self.mesh_standing is not None and self.mesh_peer is not None:
            self.mesh_standing.begin(self, self.mesh_peer, self.mesh_now())

    # Servers call these two several times per request. They stand in for those of `ssl.SSLObject`,
    # which do no more than pass the call to the same ``_sslobj``, instead of calling them.

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Read, or report the end of the connection once its peer may not be believed any more."""
        if self.mesh_peer is None:
            raise GateError(_UNSHAKEN)
        tls = self._sslobj  # type: ignore[attr-defined]
        found = tls.read(len) if buffer is None else tls.read(len, buffer)
        # After the read, not before it: half of a server's reads find nothing, and raise.
        standing = self.mesh_standing
        if standing is not None and standing.over():
            return b"" if buffer is None else 0
        return found

    def write(self, data: Any) -> int:
        """Write, once the gate is passed."""
        if self.mesh_peer is None:
            raise GateError(_UNSHAKEN)
        return self._sslobj.write(data)  # type: ignore[attr-defined,no-any-return]

    def unwrap(self) -> None:
        """
        Say goodbye; as a server, without waiting for the peer's.

        Asyncio and uvloop would wait 30 s for an idle peer's answer, and Hypercorn's shutdown with
        them; and a peer whose next request crosses our goodbye would crash the worker there.

        Source: RFC 8446, 6.1: each side closes its own direction.
        """
        try:
            super().unwrap()
        except ssl.SSLWantReadError:
            if not self.server_side:
                raise
        except ssl.SSLError as error:
            if not (self.server_side and error.reason == "APPLICATION_DATA_AFTER_CLOSE_NOTIFY"):
                raise

    def selected_alpn_protocol(self) -> str | None:
        """Tell the protocol; on the server's side, in the connection's task, bind the peer."""
        if self.server_side and _in_task():
            _bond.set(Bond(self.mesh_peer, self.mesh_standing))
        return super().selected_alpn_protocol()


_counting = threading.Lock()
"""Held for an instant, while a thread enters or leaves a socket."""


class GatedSocket(Gated, ssl.SSLSocket):
    """
    A TLS connection on a socket, as blocking servers and clients use it.

    Theory. OpenSSL's object for a connection is not made for two threads, and CPython (before 3.13)
    lets another thread run while one is inside it. To end a connection that another thread reads,
    is ordinary: whoever closes a WebSocket does it. So the threads inside are counted. Ending a
    connection wakes them by ending the socket below TLS, says no goodbye then, and leaves the
    closing itself to the last one that leaves: nothing is freed, and no file number reused, under
    a thread that is still inside.
    """

    mesh_live: Wraps | None = None
    mesh_inside = 0
    mesh_closing = False
    do_handshake_on_connect: bool
    suppress_ragged_eofs: bool

    def do_handshake(self, block: bool = False) -> None:
        """Finish the handshake, then pass the gate."""
        self._enter()
        try:
            super().do_handshake(block)
        finally:
            self._leave()
        self._pass_gate()

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Read, once the gate is passed; every way to receive leads here."""
        self._demand_gate()
        self._enter()
        try:
            return super().read(len, buffer)
        finally:
            self._leave()

    def write(self, data: Any) -> int:
        """Write, once the gate is passed."""
        self._demand_gate()
        self._enter()
        try:
            return super().write(data)
        finally:
            self._leave()

    def send(self, data: Any, flags: int = 0) -> int:
        """Send, once the gate is passed; every way to send leads here."""
        self._demand_gate()
        self._enter()
        try:
            return super().send(data, flags)
        finally:
            self._leave()

    def unwrap(self) -> socket.socket:
        """
        Say goodbye, and give back the socket below TLS.

        Raises:
            OSError: another thread is inside, which is woken instead; or TLS failed.
        """
        with _counting:
            alone = self.mesh_inside == 0
            self.mesh_inside += alone
        if not alone:
            self._wake()
            raise OSError(errno.EBUSY, "another thread uses this connection")
        try:
            return super().unwrap()
        finally:
            self._leave()

    def shutdown(self, how: int) -> None:
        """End the connection in one or both directions, for whoever is inside as well."""
        with _counting:
            alone = self.mesh_inside == 0
        if alone:
            super().shutdown(how)
        else:
            # TLS stays: without it, the other thread's next read would be of the plain socket.
            socket.socket.shutdown(self, how)

    def close(self) -> None:
        """Close; where another thread is inside, it is woken, and closes as it leaves."""
        with _counting:
            self.mesh_closing = True
            alone = self.mesh_inside == 0
        if alone:
            super().close()
        else:
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self, socket.SHUT_RDWR)

    def _enter(self) -> None:
        with _counting:
            if self.mesh_closing:
                raise OSError(errno.EBADF, "this connection was closed")
            self.mesh_inside += 1

    def _leave(self) -> None:
        with _counting:
            self.mesh_inside -= 1
            last = self.mesh_closing and self.mesh_inside == 0
        if last:
            super().close()

    def accept(self) -> tuple[ssl.SSLSocket, Any]:
        """Accept on a listening socket: the new connection belongs to the newest generation."""
        if self.mesh_live is None:
            raise GateError("no gate was set for this socket")
        plain, address = socket.socket.accept(self)
        made = self.mesh_live.wrap_socket(
            plain,
            server_side=True,
            do_handshake_on_connect=self.do_handshake_on_connect,
            suppress_ragged_eofs=self.suppress_ragged_eofs,
        )
        return made, address


def _in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        pass
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def peer_of(tls: object) -> Peer | None:
    """
    The peer of a TLS object or socket that one of our contexts made.

    Returns:
        ``None`` for every other object, and before the handshake is done.
    """
    return tls.mesh_peer if isinstance(tls, Gated) else None
