"""
The real Envoy, configured as Consul configures a sidecar's public listener.

One process serves many policies: each has a filter chain of its own, chosen by the TLS server
name. Every source gets a certificate of one CA, made for the run. Requests are raw bytes over
kept-alive mutual TLS connections.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Json = dict[str, Any]

ENVOY = Path(sys.executable).with_name("envoy")
START_SECONDS = 30.0


class Authority:
    """A CA that issues leaves with one URI name each, once per name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "differential CA")])
        self._certificate = self._sign(self._name, self._key, None)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.roots = self._write("roots.pem", self._certificate)
        self.key = folder / "leaf.key"
        self.key.write_bytes(
            self._leaf_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def leaf(self, uri: str) -> Path:
        """Issue a leaf for *uri*."""
        subject = x509.Name([])
        certificate = self._sign(subject, self._leaf_key, uri)
        return self._write(f"leaf-{len(list(self._folder.iterdir()))}.pem", certificate)

    def context(self, uri: str) -> ssl.SSLContext:
        """A client's TLS context that shows a leaf for *uri*."""
        if uri not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.load_verify_locations(self.roots)
            context.load_cert_chain(self.leaf(uri), self.key)
            self._contexts[uri] = context
        return self._contexts[uri]

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self._folder / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, uri: str | None
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(uri is None, None), critical=True)
        )
        if uri is not None:
            usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
            name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
            builder = builder.add_extension(name, critical=True)
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def connection_manager(filters: Iterable[Json], normalization: Mapping[str, Any]) -> Json:
    """The HTTP connection manager of a public listener, with Consul's defaults."""
    echo = [
        {"header": {"key": "x-seen-path", "value": "%REQ(:PATH)%"}},
        {"header": {"key": "x-seen-host", "value": "%REQ(:AUTHORITY)%"}},
    ]
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "response_headers_to_add": echo,
    }
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    config = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network."
        "http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "public_listener",
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {
            "subject": True,
            "cert": True,
            "chain": True,
            "dns": True,
            "uri": True,
        },
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {
            "name": "public_listener",
            "virtual_hosts": [{"name": "public", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [
            *filters,
            {"name": "envoy.filters.http.router", "typed_config": {"@type": router}},
        ],
        **request_normalization(normalization),
    }
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def echo() -> Json:
    """A network filter that sends back what it gets: the service behind a tcp policy."""
    kind = "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"
    return {"name": "envoy.filters.network.echo", "typed_config": {"@type": kind}}


def request_normalization(options: Mapping[str, Any]) -> Json:
    """The mesh entry's ``HTTP.Incoming.RequestNormalization`` as Envoy's options."""
    found: Json = {"normalize_path": not options.get("InsecureDisablePathNormalization", False)}
    if options.get("MergeSlashes"):
        found["merge_slashes"] = True
    if action := options.get("PathWithEscapedSlashesAction"):
        found["path_with_escaped_slashes_action"] = action
    if action := options.get("HeadersWithUnderscoresAction"):
        found["common_http_protocol_options"] = {"headers_with_underscores_action": action}
    return found


class Envoy:
    """
    A running Envoy.

    Args:
        chains: network filters of each policy, by name.
    """

    def __init__(self, chains: Mapping[str, list[Json]], folder: Path) -> None:
        self.authority = Authority(folder)
        self.port = _free_port()
        self._folder = folder
        self._config = folder / "envoy.json"
        self._config.write_text(json.dumps(self._bootstrap(chains)))
        self._process: subprocess.Popen[bytes] | None = None

    def _bootstrap(self, chains: Mapping[str, list[Json]]) -> Json:
        leaf = self.authority.leaf("spiffe://server.consul/ns/default/dc/dc1/svc/web")
        inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3"
        listener = {
            "name": "public_listener",
            "address": _address("127.0.0.1", self.port),
            "listener_filters": [
                {
                    "name": "tls_inspector",
                    "typed_config": {"@type": f"{inspector}.TlsInspector"},
                }
            ],
            "filter_chains": [
                {
                    "filter_chain_match": {"server_names": [f"{name}.test"]},
                    "transport_socket": self._tls(leaf),
                    "filters": filters,
                }
                for name, filters in chains.items()
            ],
        }
        limit = {"re2.max_program_size.error_level": 1048576}
        return {
            "static_resources": {"listeners": [listener]},
            "layered_runtime": {"layers": [{"name": "base", "static_layer": limit}]},
        }

    def _tls(self, leaf: Path) -> Json:
        context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
        chain = {"filename": str(leaf)}
        certificate = {
            "certificate_chain": chain,
            "private_key": {"filename": str(self.authority.key)},
        }
        return {
            "name": "tls",
            "typed_config": {
                "@type": f"{context}.DownstreamTlsContext",
                "require_client_certificate": True,
                "common_tls_context": {
                    "tls_certificates": [certificate],
                    "validation_context": {"trusted_ca": {"filename": str(self.authority.roots)}},
                },
            },
        }

    def validate(self) -> str:
        """Ask Envoy whether it takes the configuration; its complaint, or nothing."""
        done = subprocess.run(
            [ENVOY, "--mode", "validate", "-c", self._config, "-l", "error"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return "" if done.returncode == 0 else done.stderr

    def start(self) -> Envoy:
        """Start the process, and return when it listens."""
        command = [ENVOY, "-c", self._config, "--concurrency", "1", "--disable-hot-restart"]
        with (self._folder / "envoy.log").open("wb") as log:
            self._process = subprocess.Popen([*command, "-l", "error"], stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
        self.close()
        raise RuntimeError((self._folder / "envoy.log").read_text()[-4000:])

    def close(self) -> None:
        """Stop the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def connect(self, policy: str, source: str) -> Connection:
        """Open a connection to one policy as one source."""
        return Connection(self.port, self.authority.context(source), f"{policy}.test")


@contextlib.contextmanager
def running(chains: Mapping[str, list[Json]]) -> Iterator[Envoy]:
    """Run Envoy with these policies for the length of a block."""
    with tempfile.TemporaryDirectory() as folder:
        envoy = Envoy(chains, Path(folder))
        try:
            yield envoy.start()
        finally:
            envoy.close()


def complaint(chains: Mapping[str, list[Json]]) -> str:
    """What Envoy says against a configuration with these policies; nothing when it takes them."""
    with tempfile.TemporaryDirectory() as folder:
        return Envoy(chains, Path(folder)).validate()


class Connection:
    """A kept-alive HTTP/1.1 connection that sends raw bytes; reopened when Envoy closes it."""

    def __init__(self, port: int, context: ssl.SSLContext, server_name: str) -> None:
        self._port = port
        self._context = context
        self._server_name = server_name
        self._socket: ssl.SSLSocket | None = None

    def ask(self, request: bytes) -> Answer:
        """
        Send one request.

        Args:
            request: the whole request, byte for byte.

        Returns:
            Status and headers; status 0 when Envoy ended the connection without an answer.
        """
        for _ in range(2):
            fresh = self._socket is None
            try:
                answer = self._ask(request)
            except OSError:
                answer = None
            if answer is not None:
                # After an upgrade the connection speaks another protocol.
                if answer.closes or b"pgrade" in request:
                    self.close()
                return answer
            self.close()
            if fresh:
                break
        return Answer(0, {}, True)

    def _ask(self, request: bytes) -> Answer | None:
        if self._socket is None:
            self._socket = self._open()
        self._socket.sendall(request)
        return _read_answer(self._socket, request.startswith(b"HEAD "))

    def _open(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self._port), 10)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(plain, server_hostname=self._server_name)

    def echoes(self) -> bool:
        """Tell whether a tcp policy lets bytes through, on a connection of its own."""
        try:
            with self._open() as sock:
                sock.sendall(b"ping")
                return sock.recv(16) == b"ping"
        except OSError:
            return False

    def close(self) -> None:
        """Close the socket; the next question opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Answer:
    """Status, headers, and whether the connection ends with it."""

    def __init__(self, status: int, headers: dict[str, str], closes: bool) -> None:
        self.status = status
        self.headers = headers
        self.closes = closes

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.headers})"


def _read_answer(sock: ssl.SSLSocket, head: bool, data: bytes = b"") -> Answer | None:
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return None
        data += piece
    top, _, body = data.partition(b"\r\n\r\n")
    if top.startswith(b"HTTP/1.1 1"):
        return _read_answer(sock, head, body)
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    length = 0 if head else int(headers.get("content-length", "0"))
    closes = headers.get("connection") == "close"
    while len(body) < length:
        piece = sock.recv(65536)
        if not piece:
            closes = True
            break
        body += piece
    return Answer(int(first.split()[1]), headers, closes)


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
