"""
What the client's tests stand on: a CA of their own, a mesh that never changes unless told, and
TLS servers whose every byte the test decides.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh_middleware.exceptions import PeerMismatchError
from mesh_middleware.identity import ServiceId
from mesh_middleware.resolve import Endpoint, Upstream
from mesh_middleware.routing.course import Course
from mesh_middleware.routing.instances import Instance
from mesh_middleware.routing.report import AttemptReport

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
PATIENCE = 10.0
"""Longest wait, in seconds, for anything in these tests."""


def service_id(name: str, datacenter: str = "dc1") -> ServiceId:
    """Name a service of the tests' trust domain."""
    return ServiceId(TRUST_DOMAIN, "default", datacenter, name)


class Authority:
    """A CA as Consul's is: one root, leaves with a single critical URI name."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
        builder = self._builder(name, name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self._root = builder.add_extension(
            _usage(key_cert_sign=True, crl_sign=True), critical=True
        ).sign(self._key, hashes.SHA256())
        self.root_pem = self._root.public_bytes(serialization.Encoding.PEM).decode()

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=30))
        )

    def issue(self, *uris: str) -> str:
        """Issue a leaf naming *uris*; certificate and key as one PEM text."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([]), self._root.subject, key)
        if uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in uris]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        both = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        leaf = (
            builder.add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return leaf.public_bytes(serialization.Encoding.PEM).decode() + private.decode()


def _usage(**on: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: on.get(name, False) for name in names.split()})


def load_leaf(context: ssl.SSLContext, leaf_pem: str) -> None:
    """Give *context* a leaf; OpenSSL reads keys from files only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "leaf.pem")
        path.write_text(leaf_pem)
        context.load_cert_chain(path)


class _Gated:
    def do_handshake(self, *args: Any, **options: Any) -> None:
        super().do_handshake(*args, **options)  # type: ignore[misc]
        _demand(self, self.context.expected)  # type: ignore[attr-defined]


class _GatedSocket(_Gated, ssl.SSLSocket):
    pass


class _GatedObject(_Gated, ssl.SSLObject):
    pass


class Refusal(ssl.SSLCertVerificationError, PeerMismatchError):
    """What a gate raises: one of TLS's errors, and one of the mesh's."""

    def __init__(self, expected: str, actual: str) -> None:
        ssl.SSLCertVerificationError.__init__(self, f"expected {expected}, found {actual}")
        self.expected = expected
        self.actual = actual


def _demand(connection: Any, expected: str) -> None:
    names = [value for kind, value in connection.getpeercert().get("subjectAltName", ())]
    if names != [expected]:
        raise Refusal(expected, ",".join(names))


class GatedContext(ssl.SSLContext):
    """A client context that completes handshakes with one SPIFFE ID only."""

    sslsocket_class = _GatedSocket
    sslobject_class = _GatedObject
    expected = ""


def client_context(root_pem: str, leaf_pem: str, expected: str) -> ssl.SSLContext:
    """Make the context a mesh would give for *expected*."""
    context = GatedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=root_pem)
    load_leaf(context, leaf_pem)
    context.expected = expected
    return context


def server_context(
    root_pem: str, leaf_pem: str, alpn: Sequence[str] = ("http/1.1",)
) -> ssl.SSLContext:
    """Make a context that shows *leaf_pem* and demands a certificate under the root."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=root_pem)
    context.num_tickets = 0
    if alpn:
        context.set_alpn_protocols(list(alpn))
    load_leaf(context, leaf_pem)
    return context


@dataclass(frozen=True)
class StaticSnapshot:
    """As much of a snapshot as calling needs."""

    joined: bool = True


@dataclass(frozen=True)
class StaticSettings:
    """As much of the settings as calling needs."""

    domain: str = "consul"


class StaticWatch:
    """An upstream whose instances the test sets."""

    why = "the test has not said"
    rests = False

    def __init__(self, name: str, datacenter: str | None = None) -> None:
        self._told = threading.Event()
        self.course = Course(name, datacenter)
        self.endpoints: tuple[Endpoint, ...] | None = None

    def tell(self, *endpoints: Endpoint) -> None:
        """Set the instances."""
        self.endpoints = endpoints
        instances = tuple(map(Instance, endpoints))
        self.course.learn_instances(self.course.place, instances, time.monotonic())
        self._told.set()

    def wait(self, timeout: float) -> tuple[Endpoint, ...]:
        """Wait for `tell`."""
        self._told.wait(timeout)
        return self.endpoints or ()


class StaticMesh:
    """A mesh without an agent: leaf, roots and instances are what the test says they are."""

    def __init__(self, authority: Authority, name: str = "order") -> None:
        self.authority = authority
        self.generation = 1
        self.snapshot = StaticSnapshot()
        self.settings = StaticSettings()
        self.attempt_told: Callable[[AttemptReport], None] | None = None
        self.asked = Upstream("")
        self.watches: dict[tuple[str, str | None], StaticWatch] = {}
        self._joined = threading.Event()
        self._name = name
        self._leaf = authority.issue(service_id(name).uri)

    def rotate(self) -> None:
        """Take a new leaf."""
        self._leaf = self.authority.issue(service_id(self._name).uri)
        self.generation += 1

    def leave(self) -> None:
        """Be a mesh that was not joined yet."""
        self.snapshot = StaticSnapshot(joined=False)

    def join(self) -> None:
        """Have leaf and roots."""
        self.snapshot = StaticSnapshot()
        self._joined.set()

    def wait_for(self, condition: Callable[[Any], bool], timeout: float) -> bool:
        """Wait for *condition*; only `join` can make it true."""
        return condition(self.snapshot) or (self._joined.wait(timeout) and condition(self.snapshot))

    def client_context(self, expected: ServiceId) -> ssl.SSLContext:
        """Make a context for *expected*."""
        return client_context(self.authority.root_pem, self._leaf, expected.uri)

    def watch_upstream(self, upstream: Upstream | str) -> StaticWatch:
        """Find the watch on *upstream*; a text is the name of a service."""
        self.asked = Upstream(upstream) if isinstance(upstream, str) else upstream
        key = (self.asked.name, self.asked.datacenter)
        if key not in self.watches:
            self.watches[key] = StaticWatch(*key)
        return self.watches[key]

    def tell(self, name: str, *endpoints: Endpoint) -> None:
        """Set the instances of *name*."""
        self.watch_upstream(name).tell(*endpoints)


class Wire:
    """One accepted connection, in the hands of a test's script."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self._left = False

    def read_until(self, mark: bytes) -> bytes:
        """Read up to and including *mark*; shorter when the other end closed."""
        while mark not in self.buffer:
            data = self._recv()
            if not data:
                break
            self.buffer += data
        head, found, self.buffer = self.buffer.partition(mark)
        return head + found

    def read_head(self) -> bytes:
        """Read the head of a request; empty when the other end closed instead."""
        return self.read_until(b"\r\n\r\n")

    def read_exactly(self, count: int) -> bytes:
        """Read *count* bytes, fewer when the other end closed."""
        while len(self.buffer) < count:
            data = self._recv()
            if not data:
                break
            self.buffer += data
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def read_request(self) -> tuple[bytes, bytes]:
        """Read a request with a Content-Length or chunked body: head and raw body."""
        head = self.read_head()
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            return head, self.read_until(b"0\r\n\r\n")
        found = lower.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return head, self.read_exactly(int(found)) if found else b""

    def read_to_end(self) -> bytes:
        """Read until the other end closes."""
        data = self.buffer
        while part := self._recv():
            data += part
        return data

    def send(self, data: bytes) -> None:
        """Send *data*; a client that has seen enough may have hung up, and hears nothing more."""
        if self._left:
            return  # OpenSSL would complain of a second try with something else
        try:
            self.sock.sendall(data)
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            self._left = True

    def _recv(self) -> bytes:
        try:
            return self.sock.recv(65536)
        except (ssl.SSLError, OSError):
            return b""


Script = Callable[[Wire], None]


class ScriptServer:
    """
    A TLS server that runs *script* for every connection, in a thread each.

    Args:
        context: shown to clients.
        script: gets the connection after the handshake; when it returns, the connection ends.
        port: to listen at; 0 is any.
    """

    def __init__(self, context: ssl.SSLContext, script: Script, port: int = 0) -> None:
        self._context = context
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", port))
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.connections = 0
        self.failures: list[Exception] = []
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def endpoint(self, name: str, **options: Any) -> Endpoint:
        """Say where this server is, and that *name* has to answer there."""
        return Endpoint("127.0.0.1", self.port, service_id(name), **options)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                # Not SSLSocket's own, which would pull the TLS object from under its thread.
                with suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._acceptor.join(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            secure = self._context.wrap_socket(sock, server_side=True)
        except OSError:
            sock.close()
            return
        with self._lock:
            self._open.add(secure)
            self.connections += 1
        try:
            self._script(Wire(secure))
        except Exception as error:
            self.failures.append(error)
        finally:
            with self._lock:
                self._open.discard(secure)
            with suppress(OSError):
                secure.unwrap()
            secure.close()


def answering(body: bytes = b"ok", status: bytes = b"200 OK", headers: bytes = b"") -> Script:
    """Make a script that answers every request alike, keeping the connection open."""
    head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n" % (status, len(body), headers)

    def script(wire: Wire) -> None:
        while wire.read_request()[0]:
            wire.send(head + body)

    return script


@contextmanager
def serving(
    authority: Authority,
    script: Script,
    *uris: str,
    name: str = "tax",
    alpn: Sequence[str] = ("http/1.1",),
) -> Iterator[ScriptServer]:
    """Serve *script* as the service *name*, or with a certificate naming *uris*."""
    leaf = authority.issue(*(uris or (service_id(name).uri,)))
    with ScriptServer(server_context(authority.root_pem, leaf, alpn), script) as server:
        yield server
    assert not server.failures, server.failures
