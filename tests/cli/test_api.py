"""How commands reach an agent: by socket file, over verified TLS, and what bad answers become."""

from __future__ import annotations

import gc
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from mesh_middleware.cli.api import AgentApi, NoSuchThingError, RejectedError, connect
from mesh_middleware.exceptions import (
    AgentAnswerError,
    AgentRefusedError,
    AgentUnavailableError,
)
from tests.support.certs import Ca

from .conftest import Run

Serve = Callable[..., None]


class Answering(BaseHTTPRequestHandler):
    """Answers every request with what its server was told to."""

    def do_GET(self) -> None:
        self.server.seen = dict(self.headers)  # type: ignore[attr-defined]
        self.server.path = self.path  # type: ignore[attr-defined]
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def prepare(server: socketserver.BaseServer, status: int, body: bytes, stack: ExitStack) -> None:
    server.answer = (status, body)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    stack.callback(server.server_close)
    stack.callback(thread.join, 10)
    stack.callback(server.shutdown)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, b"not json", AgentAnswerError),
        (403, b"Permission denied", AgentRefusedError),
        (404, b"", NoSuchThingError),
        (429, b"Rate limit reached, try again later", AgentUnavailableError),
        (500, b"No cluster leader", AgentUnavailableError),
        (500, b"Sources[0].Action must be set", RejectedError),
    ],
    ids=["no JSON", "token", "nothing there", "too many", "no leader", "a bad write"],
)
def test_what_is_wrong_has_its_own_error(
    stack: ExitStack, status: int, body: bytes, error: type[Exception]
) -> None:
    """So that a command can say whose fault it is."""
    server = socketserver.TCPServer(("127.0.0.1", 0), Answering)
    prepare(server, status, body, stack)
    with AgentApi(f"http://127.0.0.1:{server.server_address[1]}") as api:
        with pytest.raises(error):
            api.get("/v1/anything")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>It works!</html>"),
        (200, b"null"),
        (200, b'"x"'),
        (200, b"{}"),
        (200, b'{"Roots": {}, "Allowed": 1, "web": {}}'),
        (404, b"Not here"),
    ],
    ids=["a page", "null", "a text", "an empty object", "another shape", "404"],
)
@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["intention", "list"],
        ["intention", "create", "shop", "web", "--allow"],
        ["intention", "delete", "shop", "web"],
        ["intention", "check", "shop", "web"],
        ["explain", "shop", "GET", "/", "--service", "web"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_is_no_consul_is_named(
    stack: ExitStack, run: Run, words: list[str], status: int, body: bytes
) -> None:
    """The address stands for a web server: one line says so, and nothing passes for done."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering)
    prepare(server, status, body, stack)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    code, out, err = run(*words, "--agent", address)
    assert (code, out) == (1, "")
    assert err.startswith(f"mesh: {address} does not answer as a Consul agent does: ")
    assert err.count("\n") == 1 and "Traceback" not in err


def test_rules_of_another_shape_are_listed_as_far_as_they_go(stack: ExitStack, run: Run) -> None:
    """A newer Consul may know more; what is not understood is no traceback."""
    rules = (
        b'[{"Permissions": [1, {"HTTP": 7}, {"HTTP": {"Methods": [2], "Header": [3]}}]}, 5,'
        b' {"SourceName": null, "Permissions": {}, "Precedence": "x"}]'
    )
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering)
    prepare(server, 200, rules, stack)
    code, out, err = run("intention", "list", "--agent", f"127.0.0.1:{server.server_address[1]}")
    assert (code, err) == (0, "") and out.count("\n") >= 3


def test_an_agent_behind_a_socket_file_is_reached(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``unix://``, as Consul's own tools write it, with user and password when they are set."""
    server = socketserver.UnixStreamServer(str(tmp_path / "agent"), Answering)
    prepare(server, 200, b"[]", stack)
    monkeypatch.setenv("CONSUL_HTTP_AUTH", "user:word")
    with connect(f"unix://{tmp_path}/agent") as api:
        assert (api.get("/v1/connect/intentions"), api.port) == ([], 80)
    assert server.seen["Authorization"].startswith("Basic ")  # type: ignore[attr-defined]


# httpcore (1.0) does not close a socket whose file is missing: the collector does, here.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_socket_file_that_is_missing_is_named(run: Run, tmp_path: Path) -> None:
    """Not the host name that stands for it in HTTP."""
    code, _, err = run("status", "--agent", f"unix://{tmp_path}/nowhere")
    assert code == 1 and f"unix://{tmp_path}/nowhere: [Errno 2] No such file" in err
    gc.collect()


@pytest.fixture
def secure(stack: ExitStack, tmp_path: Path) -> str:
    """Address of an agent over TLS, named consul.example; its CA is in ``ca.pem``."""
    ca = Ca()
    made = ca.leaf(dns=["consul.example"])
    (tmp_path / "ca.pem").write_text(ca.pem)
    (tmp_path / "agent.pem").write_text(made.chain_pem + made.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "agent.pem")
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    server.handle_error = lambda *_: None  # type: ignore[method-assign,misc]  # callers who leave
    prepare(server, 200, b"[]", stack)
    return f"https://127.0.0.1:{server.server_address[1]}"


def test_an_agent_over_tls_is_verified(
    secure: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the CA and under the name that Consul's variables give; the way out is in the line."""
    code, _, err = run("intention", "list", "--agent", secure)
    assert code == 1 and "certificate verify failed" in err and "CONSUL_CACERT" in err
    monkeypatch.setenv("CONSUL_CACERT", str(tmp_path / "ca.pem"))
    code, _, err = run("intention", "list", "--agent", secure)
    assert code == 1 and "IP address mismatch" in err
    monkeypatch.setenv("CONSUL_TLS_SERVER_NAME", "consul.example")
    assert run("intention", "list", "--agent", secure) == (0, "no intentions\n", "")
    monkeypatch.delenv("CONSUL_CACERT")
    monkeypatch.setenv("CONSUL_HTTP_SSL_VERIFY", "false")
    assert run("intention", "list", "--agent", secure)[0] == 0


def test_a_file_for_tls_that_is_missing_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, secure: str
) -> None:
    """Which option, and which file."""
    monkeypatch.setenv("CONSUL_CACERT", "/nowhere/ca.pem")
    code, out, err = run("status", "--agent", secure)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "ca_file = '/nowhere/ca.pem'" in err and "No such file" in err


def test_namespace_and_partition_go_with_every_question(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the service's own questions do; a Community agent refuses them in its own words."""
    server = socketserver.TCPServer(("127.0.0.1", 0), Answering)
    prepare(server, 200, b"[]", stack)
    monkeypatch.setenv("CONSUL_NAMESPACE", "team")
    monkeypatch.setenv("CONSUL_PARTITION", "part")
    with connect(f"127.0.0.1:{server.server_address[1]}") as api:
        api.get("/v1/connect/intentions", a="b")
    assert server.path == "/v1/connect/intentions?ns=team&partition=part&a=b"  # type: ignore[attr-defined]


@pytest.mark.parametrize("address", ["http://bad..name:8500", "http://two words", "http://a\tb"])
def test_an_address_that_is_none_is_one_line(run: Run, address: str) -> None:
    """Names that no resolver takes were a traceback."""
    code, out, err = run("status", "--agent", address)
    assert (code, out, err.count("\n")) == (2, "", 1)
