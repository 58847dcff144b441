"""
One service, served in three ways at once: by itself, behind Consul's proxy, behind Envoy.

Owns the processes and the registrations. Everything is real: Consul, its proxy, Envoy, Hypercorn.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..support.consul import RealConsul, free_ports
from ..support.servers import Hypercorn, Process, clean_environment, mesh_file, until

ENVOY = Path(sys.executable).with_name("envoy")
_TYPES = "type.googleapis.com/envoy.extensions"
_HTTP = f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions"

NATIVE = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from mesh_middleware import MeshAuthz

async def who(request):
    peer = request.state.mesh.peer
    version = request.scope["http_version"]
    return JSONResponse({"kind": "native", "source": peer.id.name, "version": version})

app = Starlette(routes=[Route("/{path:path}", who)])
app.add_middleware(MeshAuthz)
"""


class Agent:
    """What these tests ask a real agent."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request; returns its JSON, or None."""
        data = None if body is None else json.dumps(body).encode()
        question = urllib.request.Request(self.url + path, data, method=method)
        with urllib.request.urlopen(question, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def identity(self, folder: Path, name: str) -> tuple[str, str, str]:
        """Write leaf, key and roots of *name*; returns the files."""
        leaf = self.ask("GET", f"/v1/agent/connect/ca/leaf/{name}")
        roots = self.ask("GET", "/v1/agent/connect/ca/roots")["Roots"]
        parts = {
            "pem": leaf["CertPEM"],
            "key": leaf["PrivateKeyPEM"],
            "roots": "".join(root["RootCert"] for root in roots),
        }
        for kind, text in parts.items():
            (folder / f"{name}.{kind}").write_text(text)
        return tuple(str(folder / f"{name}.{kind}") for kind in parts)  # type: ignore[return-value]

    def sidecar(self, name: str, number: str, port: int) -> None:
        """Register a proxy in front of an instance of *name*."""
        definition = {
            "ID": f"{name}-{number}",
            "Name": f"{name}-sidecar-proxy",
            "Kind": "connect-proxy",
            "Address": "127.0.0.1",
            "Port": port,
            "Proxy": {"DestinationServiceName": name},
        }
        self.ask("PUT", "/v1/agent/service/register", definition)


@contextmanager
def plain_app(kind: str) -> Iterator[int]:
    """Serve, without TLS, an application that says what stands in front of it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps({"kind": kind}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        # With the usual five a crowd is kept waiting for a second, and Consul's proxy gives up.
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join(10)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _tls(files: tuple[str, str, str], **parts: Any) -> dict[str, Any]:
    leaf, key, roots = files
    return {
        "tls_certificates": [
            {"certificate_chain": {"filename": leaf}, "private_key": {"filename": key}}
        ],
        "validation_context": {"trusted_ca": {"filename": roots}},
        **parts,
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def listener(
    port: int, cluster: str, tls: Mapping[str, Any] | None, deny: bool = False
) -> dict[str, Any]:
    """A listener that sends every request to *cluster*, or refuses it as an intention would."""
    rbac = f"{_TYPES}.filters.http.rbac.v3.RBAC"
    router = f"{_TYPES}.filters.http.router.v3.Router"
    filters: list[dict[str, Any]] = [{"name": "router", "typed_config": {"@type": router}}]
    if deny:
        rules = {"action": "ALLOW", "policies": {}}
        filters.insert(0, {"name": "rbac", "typed_config": {"@type": rbac, "rules": rules}})
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": cluster,
        "route_config": {"virtual_hosts": [{"name": "x", "domains": ["*"], "routes": [route]}]},
        "http_filters": filters,
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if tls is not None:
        kind = f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"
        config = {
            "@type": kind,
            "require_client_certificate": True,
            "common_tls_context": dict(tls),
        }
        chain["transport_socket"] = {"name": "tls", "typed_config": config}
    return {"name": f"in-{port}", "address": _address(port), "filter_chains": [chain]}


def cluster(
    name: str, port: int, tls: Mapping[str, Any] | None = None, *, http2: bool = False
) -> dict[str, Any]:
    """A cluster of one endpoint."""
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}]
    found: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }
    if tls is not None:
        kind = f"{_TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"
        config = {"@type": kind, "common_tls_context": dict(tls)}
        found["transport_socket"] = {"name": "tls", "typed_config": config}
    protocol = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    options = {"@type": _HTTP, "explicit_http_config": protocol}
    found["typed_extension_protocol_options"] = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
    }
    return found


class Shop:
    """
    Service ``tax`` in three kinds, and variants of Envoy under names of their own.

    Args:
        folder: takes files.
        stack: ends everything.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        consul = stack.enter_context(RealConsul())
        self.agent = Agent(consul.url)
        self.binary = consul.binary
        self.native = self._native()
        self.outbound: dict[str, int] = {}
        self._proxy()
        self._envoy()

    def _native(self) -> int:
        text = mesh_file({"service": "tax"})
        server = Hypercorn(self.folder / "native", NATIVE, text, agent=self.agent.url)
        self._stack.enter_context(server).wait_ready()
        return server.port()

    def _proxy(self) -> None:
        app = self._stack.enter_context(plain_app("proxy"))
        (port,) = free_ports(1)
        command = [
            self.binary, "connect", "proxy", f"-http-addr={self.agent.url}", "-service=tax",
            f"-service-addr=127.0.0.1:{app}", f"-listen=127.0.0.1:{port}", "-log-level=info",
        ]  # fmt: skip
        process = Process(command, self.folder, clean_environment())
        self._stack.enter_context(process)
        # It says so before it listens, and one that cannot be reached at first is left for long.
        until(lambda: _listens(port), "Consul's proxy")
        self.agent.sidecar("tax", "proxy", port)

    def _envoy(self) -> None:
        app = self._stack.enter_context(plain_app("envoy"))
        public, new, old, denied, h1, h2 = free_ports(6)
        tax, order = (self.agent.identity(self.folder, name) for name in ("tax", "order"))
        modern = _tls(tax, alpn_protocols=["h2", "http/1.1"])
        newest = _tls(self.agent.identity(self.folder, "modern"), alpn_protocols=["h2", "http/1.1"])
        least = _tls(
            self.agent.identity(self.folder, "old"),
            tls_params={"tls_maximum_protocol_version": "TLSv1_2"},
        )
        strict = _tls(self.agent.identity(self.folder, "strict"))
        expected = self.agent.ask("GET", "/v1/agent/connect/ca/leaf/tax")["ServiceURI"]
        name = {"san_type": "URI", "matcher": {"exact": expected}}
        callers = [_tls(order, alpn_protocols=[protocol]) for protocol in ("http/1.1", "h2")]
        for caller in callers:
            caller["validation_context"]["match_typed_subject_alt_names"] = [name]
        config = {
            "static_resources": {
                "listeners": [
                    listener(public, "app", modern),
                    listener(new, "app", newest),
                    listener(old, "app", least),
                    listener(denied, "app", strict, deny=True),
                    listener(h1, "tax-1", None),
                    listener(h2, "tax-2", None),
                ],
                "clusters": [
                    cluster("app", app),
                    cluster("tax-1", self.native, callers[0]),
                    cluster("tax-2", self.native, callers[1], http2=True),
                ],
            }
        }
        file = self.folder / "envoy.json"
        file.write_text(json.dumps(config))
        command = [
            str(ENVOY), "-c", str(file), "-l", "info", "--concurrency", "1",
            "--disable-hot-restart",
        ]  # fmt: skip
        process = Process(command, self.folder, clean_environment())
        self._stack.enter_context(process).wait_output("starting main dispatch loop")
        for name_, port in (
            ("tax", public),
            ("modern", new),
            ("old", old),
            ("strict", denied),
        ):
            self.agent.sidecar(name_, "envoy", port)
        self.outbound = {"1.1": h1, "2": h2}

    def wait_registered(self, name: str, count: int) -> None:
        """Wait until the agent tells *count* healthy instances."""
        path = f"/v1/health/connect/{name}?passing=1"
        until(lambda: len(self.agent.ask("GET", path)) == count, f"{count} instances of {name}")
