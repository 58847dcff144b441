"""
TLS contexts that live: each connection gets the newest leaf and exactly the newest roots.

Owns the live contexts, and what the gate in the handshake demands. Knows nothing of intentions.

Theory. A context handed to a server or a client library cannot be changed safely: OpenSSL only
adds roots to a context, and can keep serving an old key. So what is handed out is a facade
(`LiveContext`) whose ``wrap_bio`` and ``wrap_socket`` pass each
connection to the ordinary context of the newest generation. Before there is a leaf they pass it to
an empty context, which fails the handshake: raising there would kill Hypercorn's trio server.

The gate demands one readable SPIFFE ID, the usages of a leaf, validity by our clock, and our trust
domain; `gate` holds the connections that ask it.

Source: SPIFFE X509-SVID 5; design 4.1 and 4.2.
"""

from __future__ import annotations

import math
import os
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from .certificates import KeyPair, Peer, Role, Roots, load_certificates, read_peer
from .exceptions import CertificateError, PeerMismatchError
from .gate import Gate, GatedObject, GatedSocket, GateError
from .identity import ServiceId, SpiffeId
from .pauses import give_way
from .standing import Standing

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Suites of TLS 1.2, which Envoy's upstreams default to; those of TLS 1.3 are OpenSSL's own."""

SERVER_ALPN = ("h2", "http/1.1")
"""Protocols our servers offer, best first; peers without ALPN get HTTP/1.1."""

KNOWN_PEERS = 1024
"""Certificates remembered per generation, so that a peer that returns is not parsed again."""

_TIMES = (9, 10)
"""Source: OpenSSL, X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""

_SERVER: Role = "server"
_CLIENT: Role = "client"
_PROTOCOLS = {_SERVER: ssl.PROTOCOL_TLS_SERVER, _CLIENT: ssl.PROTOCOL_TLS_CLIENT}


class Generation:
    """
    The ordinary contexts of one leaf and one set of roots.

    Args:
        pair: what we show; ``None`` makes contexts that can only fail.
        roots: what we trust.
        number: grows with every change.
        like: the generation before; the contexts it was asked for are built at once, here, so
            that no handshake waits for them.

    Raises:
        CertificateError: OpenSSL refuses leaf, key or roots.
    """

    def __init__(
        self,
        pair: KeyPair | None = None,
        roots: Roots | None = None,
        number: int = 0,
        like: Generation | None = None,
    ) -> None:
        self.number = number
        self.trust_domain = roots.trust_domain if pair and roots else None
        trusted = load_certificates(roots.pem) if pair and roots and roots.certificates else []
        self.anchors = frozenset(root.public_bytes(Encoding.DER) for root in trusted)
        self._pair, self._roots = pair, roots
        self._peers: dict[tuple[bytes, Role], Peer] = {}
        self._contexts: dict[tuple[Role, tuple[str, ...]], ssl.SSLContext] = {}
        # A list: another thread may ask the old generation for one more while this goes on.
        for role, alpn in list(like._contexts) if like else ((_SERVER, SERVER_ALPN),):
            self.context(role, alpn)

    def context(self, role: Role, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """
        The context of this generation in which we play *role*.

        Contexts are not shared between lists of protocols: setting them is not atomic with the
        start of a connection, and another thread's list must not reach this one's.
        """
        context = self._contexts.get((role, alpn))
        if context is None:
            give_way()
            context = _context(role, alpn)
            if self._pair and self._roots:
                give_way()
                _fill(context, self._pair, self._roots)
            self._contexts[role, alpn] = context
        return context

    def check_itself(self, now: datetime) -> str:
        """
        Shake hands with itself, in memory, by the contexts that will serve and call.

        What Python code says of a chain and what OpenSSL says of it can differ; only OpenSSL's word
        counts in a handshake. Times are left to our own clock, which decides elsewhere.

        Returns:
            Why a peer with the same roots would refuse our leaf; empty where it would not, and
            where there is none.
        """
        if self._pair is None or self._roots is None:
            return ""
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self.context(_SERVER, SERVER_ALPN).wrap_bio(to_server, to_client, server_side=True)
        client = self.context(_CLIENT, ()).wrap_bio(to_client, to_server)
        for ours, role in ((server, _CLIENT), (client, _SERVER)):
            assert isinstance(ours, GatedObject)
            ours.mesh_gate = partial(self.peer, role=role, now=now)
        try:
            for ours in (client, server, client, server):
                give_way()
                with suppress(ssl.SSLWantReadError):
                    ours.do_handshake()
        except ssl.SSLCertVerificationError as error:
            if getattr(error, "verify_code", 0) in _TIMES:
                return ""
            return getattr(error, "verify_message", "") or str(error)
        except ssl.SSLError as error:
            return str(error)
        return ""

    def peer(self, der: bytes | None, role: Role, now: datetime) -> Peer:
        """
        Judge the certificate of a peer, whose chain OpenSSL has verified under these roots.

        Raises:
            GateError: none was shown, or it breaks a rule of the gate.
        """
        if self.trust_domain is None:
            raise GateError("there are no roots yet")
        if not der:
            raise GateError("no certificate")
        known = self._peers.get((der, role))
        if known is not None and now <= known.not_after:
            return known
        try:
            peer = read_peer(der, role, now)
        except CertificateError as error:
            raise GateError(str(error)) from None
        if peer.id.trust_domain != self.trust_domain:
            raise GateError(f"{peer.id}: trust domain is not {self.trust_domain}")
        if len(self._peers) >= KNOWN_PEERS:
            self._peers.clear()
        self._peers[der, role] = peer
        return peer


class LiveContext(ssl.SSLContext):
    """
    A context that passes every connection to the newest generation.

    Made by `server_context` and `client_context`; settings made on it by a library (ALPN) are
    kept and passed on, verification settings are not: those are the mesh's.
    """

    _newest: Callable[[], Generation]
    _now: Callable[[], datetime]
    _role: Role
    _alpn: tuple[str, ...]
    _expected: ServiceId | None
    _may_connect: Callable[[SpiffeId], bool] | None = None
    _max_age: float = math.inf
    _refused: Callable[[ssl.SSLError], None] | None = None

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """Remember the protocols to offer, for every connection from now on."""
        self._alpn = tuple(alpn_protocols)
        super().set_alpn_protocols(self._alpn)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection in memory, in the newest generation."""
        generation = self._newest()
        made = generation.context(self._role, self._alpn).wrap_bio(*args, **options)
        assert isinstance(made, GatedObject)
        made.mesh_gate = self._gate(generation)
        if self._role == "server":
            made.mesh_standing = Standing(generation, self._newest, self._max_age)
            made.mesh_now = self._now
            made.mesh_refused = self._refused
        return made

    def wrap_socket(  # type: ignore[override]
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | None = None,
        session: None = None,
    ) -> ssl.SSLSocket:
        """Begin a connection on a socket, in the newest generation; *session* is never resumed."""
        generation = self._newest()
        connected = _connected(sock)
        if do_handshake_on_connect and connected and sock.gettimeout() == 0.0:
            raise ValueError("do_handshake_on_connect needs a blocking socket")
        made = generation.context(self._role, self._alpn).wrap_socket(
            sock,
            server_side=server_side,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=suppress_ragged_eofs,
            server_hostname=server_hostname,
        )
        # The gate has to be there before the handshake, which wrap_socket would start at once.
        assert isinstance(made, GatedSocket)
        made.mesh_gate, made.mesh_live = self._gate(generation), self
        made.do_handshake_on_connect = do_handshake_on_connect
        if do_handshake_on_connect and connected:
            _shake_hands(made)
        return made

    def _gate(self, generation: Generation) -> Gate:
        expected = self._expected
        if self._role == "server":
            return lambda der: self._admit(generation.peer(der, "client", self._now()))

        def gate(der: bytes | None) -> Peer:
            peer = generation.peer(der, "server", self._now())
            if expected is not None and not _is_expected(peer.id, expected):
                error = PeerMismatchError(str(expected), str(peer.id))
                raise GateError(str(error), error)
            return peer

        return gate

    def _admit(self, peer: Peer) -> Peer:
        if self._may_connect is not None and not self._may_connect(peer.id):
            raise GateError(f"{peer.id}: no request of it is allowed (deny_in_handshake)")
        return peer


def server_context(
    newest: Callable[[], Generation],
    now: Callable[[], datetime],
    *,
    may_connect: Callable[[SpiffeId], bool] | None = None,
    max_age: float = math.inf,
    refused: Callable[[ssl.SSLError], None] | None = None,
) -> LiveContext:
    """
    Make the context that a server uses for its whole life.

    Args:
        newest: returns the generation for a new connection.
        now: this moment, aware UTC.
        may_connect: whether a peer may connect at all; ``None`` leaves that to its requests.
        max_age: seconds after which a connection ends at its next bytes.
        refused: hears why a handshake failed.
    """
    context = _live(_SERVER, newest, now, None)
    context._may_connect, context._max_age = may_connect, max_age
    context._refused = refused
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(SERVER_ALPN)
    return context


def client_context(
    newest: Callable[[], Generation], now: Callable[[], datetime], expected: ServiceId
) -> LiveContext:
    """
    Make the context for the connections to one upstream.

    Args:
        newest: returns the generation for a new connection.
        now: this moment, aware UTC.
        expected: the only identity the other end may have; checked before the first byte.
    """
    return _live(_CLIENT, newest, now, expected)


def _live(
    role: Role,
    newest: Callable[[], Generation],
    now: Callable[[], datetime],
    expected: ServiceId | None,
) -> LiveContext:
    context = LiveContext(_PROTOCOLS[role])
    _harden(context)
    context._newest, context._now, context._role = newest, now, role
    context._alpn, context._expected = (), expected
    return context


def _context(role: Role, alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(_PROTOCOLS[role])
    context.sslobject_class = GatedObject
    context.sslsocket_class = GatedSocket
    _harden(context)
    context.verify_mode = ssl.CERT_REQUIRED
    # Every listed root is an anchor, self-signed or not; `certificates.read_root` demands CAs.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def _harden(context: ssl.SSLContext) -> None:
    # Identity is the URI name, judged in the gate; names of hosts mean nothing here.
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    if context.protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0


def _fill(context: ssl.SSLContext, pair: KeyPair, roots: Roots) -> None:
    try:
        context.load_verify_locations(cadata=roots.pem)
        give_way()
        with _private_file(pair.leaf.chain_pem + "\n" + pair.key_pem) as path:
            # Without a password OpenSSL would ask the terminal for one, and wait.
            context.load_cert_chain(path, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise CertificateError(f"OpenSSL refuses leaf or roots: {error}") from None


@contextmanager
def _private_file(text: str) -> Iterator[str]:
    """A path that holds *text* while it is needed: in memory, else 0600 and removed at once."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("mesh_middleware", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        yield file.name


def _is_expected(actual: SpiffeId, expected: ServiceId) -> bool:
    return isinstance(actual, ServiceId) and actual.uri == expected.uri


def _connected(plain: socket.socket) -> bool:
    try:
        plain.getpeername()
    except OSError:
        return False
    return True


def _shake_hands(made: ssl.SSLSocket) -> None:
    try:
        made.do_handshake()
    except BaseException:
        made.close()
        raise
