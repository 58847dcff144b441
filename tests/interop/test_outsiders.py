"""What others see of us: curl, OpenSSL's own client, and the proxy that is built into Consul."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

import mesh_middleware
from mesh_middleware.dev import DevAgent

from ..support.consul import RealConsul, find_consul, free_ports
from ..support.servers import PATIENCE, Hypercorn, Process, clean_environment, mesh_file, until
from .apps import APPS
from .callers import HOST, Identity
from .test_hypercorn import body, healthy, knock


class Agent(Protocol):
    """As much of an agent, ours or a real one, as is needed here."""

    url: str


@pytest.fixture(scope="module", params=["dev", "real"])
def any_agent(request: pytest.FixtureRequest) -> Iterator[DevAgent | RealConsul]:
    """Our agent and a real Consul: what outsiders do works with both."""
    with DevAgent() if request.param == "dev" else RealConsul() as agent:
        yield agent


class Tax:
    """A served application with the agent it belongs to, and a file to be known by."""

    def __init__(self, agent: DevAgent, server: Hypercorn, folder: Path) -> None:
        self.agent, self.server = agent, server
        self.url = f"https://{HOST}:{server.port()}/who"
        self.roots, self.known = folder / "roots.pem", folder / "invoice.pem"
        self.invoice = Identity.of(*agent.issue("invoice"))
        self.roots.write_text(agent.roots_pem)
        self.known.write_text(self.invoice.pem)

    def calls(self) -> int:
        """How often the handler has run, this time included."""
        return int(body(knock(self.server.port(), self.invoice.pem))["calls"])


@pytest.fixture(scope="module", params=["starlette-asyncio", "starlette-trio", "flask-uvloop"])
def tax(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Tax]:
    """``hypercorn --config mesh`` with an application of each kind."""
    app, worker = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    mesh = mesh_file({"service": "tax"}, worker_class=worker)
    with DevAgent() as agent, Hypercorn(folder, APPS[app], mesh, agent=agent.url) as server:
        yield Tax(agent, server.wait_ready(), folder)


def run(*command: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [str(word) for word in command],
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        # Without the distribution's own limits on versions and ciphers.
        env=clean_environment(OPENSSL_CONF="/dev/null"),
    )


def curl(tax: Tax, *more: str | Path) -> tuple[int, str]:
    """Exit code of curl and the HTTP status it saw, ``000`` for none."""
    words = ("curl", "--silent", "--insecure", "--max-time", "20", "--output", "/dev/null")
    done = run(*words, "--write-out", "%{http_code}", *more, tax.url)
    return done.returncode, done.stdout


@pytest.mark.parametrize("version", ["--tlsv1.3", "--tls-max=1.2"])
@pytest.mark.parametrize("http", ["--http1.1", "--http2"])
def test_curl_without_a_certificate_gets_nothing(http: str, version: str, tax: Tax) -> None:
    """Non-zero exit, no HTTP status, and the handler is not reached; with one it is."""
    more = [http, *version.split("=")]
    before = tax.calls()
    code, status = curl(tax, *more)
    assert code != 0
    assert status == "000"
    assert tax.calls() == before + 1
    assert curl(tax, *more, "--cert", tax.known) == (0, "200")


@pytest.mark.parametrize("wrong", ["foreign", "expired", "no name"])
def test_curl_with_a_wrong_certificate_gets_nothing(wrong: str, tax: Tax, tmp_path: Path) -> None:
    """A certificate of another CA, of yesterday, or without a SPIFFE ID is as good as none."""
    past = datetime.now(UTC) - timedelta(hours=2)
    chain, key = {
        "foreign": lambda: tax.agent.issue("invoice", foreign=True),
        "expired": lambda: tax.agent.issue("invoice", not_before=past),
        "no name": lambda: tax.agent.issue("invoice", uris=[], dns=["invoice"]),
    }[wrong]()
    shown = tmp_path / "wrong.pem"
    shown.write_text(chain + key)
    before = tax.calls()
    code, status = curl(tax, "--cert", shown)
    assert (code != 0, status) == (True, "000")
    assert tax.calls() == before + 1


def s_client(tax: Tax, *more: str | Path, text: str = "") -> str:
    """What ``openssl s_client`` shows of the server, trusting the mesh's roots alone."""
    words = ("openssl", "s_client", "-connect", f"{HOST}:{tax.server.port()}", "-showcerts")
    done = run(*words, "-CAfile", tax.roots, "-verify_return_error", *more, text=text)
    return done.stdout + done.stderr


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("shown", [True, False], ids=["known", "nobody"])
def test_openssl_shows_the_chain_and_the_spiffe_name(version: str, shown: bool, tax: Tax) -> None:
    """Verified up to the mesh's root, with one URI name; what we are is no secret to strangers."""
    said = s_client(tax, version, *(["-cert", tax.known] if shown else []))
    assert "Verification: OK" in said and "verify error" not in said
    certificates = re.findall(
        r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", said, re.S
    )
    names = run("openssl", "x509", "-noout", "-ext", "subjectAltName", text=certificates[0]).stdout
    uri = f"URI:spiffe://{tax.agent.trust_domain}/ns/default/dc/dc1/svc/tax"
    assert names.split("\n")[1].strip() == uri


def test_old_versions_of_tls_are_refused(tax: Tax) -> None:
    """TLS 1.1 ends without an answer, however much the client would like it."""
    said = s_client(tax, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-cert", tax.known)
    assert "Cipher is (NONE)" in said
    assert re.search("has read 0 bytes and written [1-9]", said)


def test_sessions_are_not_resumed(tax: Tax, tmp_path: Path) -> None:
    """There are no tickets in TLS 1.3: a connection is a full handshake, judged anew."""
    session = tmp_path / "session"
    request = "GET /who HTTP/1.1\r\nHost: tax\r\nConnection: close\r\n\r\n"
    words = ("-tls1_3", "-ign_eof", "-cert", tax.known, "-sess_out", session)
    said = s_client(tax, *words, text=request)
    assert "HTTP/1.1 200" in said
    assert "Session Ticket" not in said
    assert not session.exists()


@contextmanager
def proxy(agent: Agent, folder: Path, *words: str) -> Iterator[Process]:
    """``consul connect proxy``, Consul's own."""
    command = [find_consul(), "connect", "proxy", f"-http-addr={agent.url}", *words]
    with Process(command, folder, clean_environment()) as running:
        yield running


def intend(agent: Agent, source: str, destination: str, action: str) -> str:
    """Write an intention as every version of Consul takes it; returns its ID."""
    wanted = {"SourceName": source, "DestinationName": destination, "Action": action}
    url = f"{agent.url}/v1/connect/intentions"
    answer = httpx.post(url, json=wanted, trust_env=False, timeout=PATIENCE)
    answer.raise_for_status()
    return str(answer.json()["ID"])


def forget(agent: Agent, identity: str) -> None:
    """Delete an intention."""
    url = f"{agent.url}/v1/connect/intentions/{identity}"
    httpx.delete(url, trust_env=False, timeout=PATIENCE).raise_for_status()


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
@pytest.mark.parametrize("app", ["starlette", "flask"])
def test_the_builtin_proxy_calls_our_service(
    app: str, http2: bool, any_agent: DevAgent | RealConsul, tmp_path: Path
) -> None:
    """
    Somebody's plain request through it carries the proxy's identity, and is judged by it.

    The proxy offers HTTP/2 in the handshake, whatever goes through it: a service that is called
    by HTTP/1.1 through it must not accept that.
    """
    (port,) = free_ports(1)
    name = f"tax-{app}-{'h2' if http2 else 'h1'}"
    mesh = mesh_file({"service": name}, **({} if http2 else {"alpn_protocols": ["http/1.1"]}))
    with Hypercorn(tmp_path / "app", APPS[app], mesh, agent=any_agent.url) as server:
        server.wait_ready()
        healthy(any_agent, 1, name)
        with (
            proxy(any_agent, tmp_path, "-service=invoice", f"-upstream={name}:{port}") as running,
            httpx.Client(
                base_url=f"http://{HOST}:{port}",
                trust_env=False,
                timeout=10,
                http1=not http2,
                http2=http2,
            ) as client,
        ):
            running.wait_output("Starting listener")

            def answer() -> httpx.Response | None:
                try:
                    return client.get("/who")
                except httpx.TransportError:
                    return None

            first = until(answer, "an answer through the proxy")
            assert first.json()["peer"].endswith("/ns/default/dc/dc1/svc/invoice")
            intention = intend(any_agent, "invoice", name, "deny")
            refused = until(lambda: (r := answer()) and r.status_code == 403 and r, "a refusal")
            assert refused.json()["type"] == "urn:mesh-middleware:denied"
            forget(any_agent, intention)
            until(lambda: (r := answer()) and r.status_code == 200, "an answer again")


class Rates:
    """A plain HTTP service that knows nothing of any mesh, and counts its calls."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        rates = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                rates.paths.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"0.19")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.address = f"{HOST}:{self._server.server_port}"

    def __enter__(self) -> Rates:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)


@pytest.fixture
def rates() -> Iterator[Rates]:
    """The plain service."""
    with Rates() as rates:
        yield rates


def test_our_client_calls_a_plain_service_behind_the_builtin_proxy(
    any_agent: DevAgent | RealConsul, rates: Rates, tmp_path: Path
) -> None:
    """It finds the proxy by the service's name, and expects the service's identity of it."""
    (port,) = free_ports(1)
    serving = ("-service=rates", f"-service-addr={rates.address}", f"-listen={HOST}:{port}")
    with (
        proxy(any_agent, tmp_path, *serving, "-register"),
        mesh_middleware.Mesh("invoice", agent=any_agent.url, register=False) as mesh,
        mesh_middleware.Client(mesh=mesh) as client,
    ):
        assert mesh.ready(PATIENCE)
        healthy(any_agent, 1, "rates")

        def answer() -> str:
            try:
                return client.get("https://rates/vat").text
            except httpx.TransportError:
                return ""

        assert until(answer, "an answer through the proxy") == "0.19"
        assert rates.paths[-1] == "/vat"


def test_a_proxy_of_another_service_is_told_nothing(
    any_agent: DevAgent | RealConsul, rates: Rates, tmp_path: Path
) -> None:
    """Where ``rates`` is said to be, ``other`` answers: not a byte is sent."""
    (port,) = free_ports(1)
    serving = ("-service=other", f"-service-addr={rates.address}", f"-listen={HOST}:{port}")
    wanted = {
        "Name": "false-proxy",
        "Kind": "connect-proxy",
        "Port": port,
        "Address": HOST,
        "Proxy": {"DestinationServiceName": "false"},
    }
    url = f"{any_agent.url}/v1/agent/service/register"
    httpx.put(url, json=wanted, trust_env=False, timeout=PATIENCE).raise_for_status()
    with (
        proxy(any_agent, tmp_path, *serving, "-register"),
        mesh_middleware.Mesh("invoice", agent=any_agent.url, register=False) as mesh,
        mesh_middleware.Client(mesh=mesh) as client,
    ):
        assert mesh.ready(PATIENCE)
        healthy(any_agent, 1, "other")

        def right() -> bool:
            try:
                return client.get("https://other/vat").text == "0.19"
            except httpx.TransportError:
                return False

        until(right, "an answer of the right one")
        before = len(rates.paths)
        with pytest.raises(httpx.ConnectError, match="svc/other"):
            client.get("https://false/secret")
        assert len(rates.paths) == before
