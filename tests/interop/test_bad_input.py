"""What people get wrong: each mistake ends in one line that says what to do, or heals by itself."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.dev import DevAgent, Token

from ..support.consul import free_ports
from ..support.servers import Hypercorn, until
from .apps import APPS, FLASK, STARLETTE
from .callers import Identity, knock
from .conftest import Serve

PYTHON_CONFIG = ("--config", "python:mesh_middleware.servers.hypercorn", "app:app")


def only_line(server: Hypercorn) -> str:
    """What the command said, which has to be one line, before it failed."""
    code = server.wait_end()
    assert code != 0, server.output
    (line,) = server.lines
    assert line.startswith("mesh_middleware: ")
    return line


@pytest.mark.parametrize("app", ["starlette", "fastapi", "flask"])
def test_no_service_name_is_one_line(app: str, serve: Serve) -> None:
    """A ``[mesh]`` table without a service: the line tells both places for the name."""
    line = only_line(serve(APPS[app], {}, listeners=0))
    assert "no service name" in line and "[mesh]" in line and "MESH_SERVICE" in line


@pytest.mark.parametrize("app", ["fastapi", "flask"])
def test_no_service_name_is_one_line_without_a_file_too(app: str, serve: Serve) -> None:
    """The same with all settings from the environment."""
    server = serve(
        APPS[app], arguments=PYTHON_CONFIG, environment={"MESH_BIND": "127.0.0.1:0"}, listeners=0
    )
    assert "no service name" in only_line(server)


def test_no_service_name_fails_with_several_workers(serve: Serve) -> None:
    """Each worker may say it, none stays behind, and nothing else is printed."""
    server = serve(STARLETTE, {}, workers=2, listeners=0)
    assert server.wait_end() != 0
    assert {"no service name" in line for line in server.lines} == {True}


SLOW_TO_START = """
import os
import select
import sys

if "--multiprocessing-fork" in sys.orig_argv:
    try:
        os.close(os.open(os.environ["FIRST"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        select.select([os.pidfd_open(os.getppid())], [], [])
"""
"""All workers but the first start when their parent has ended."""


def test_a_worker_that_starts_too_late_is_not_heard(serve: Serve, tmp_path: Path) -> None:
    """The other has failed, and with it the command, before this one has begun."""
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(SLOW_TO_START)
    variables = {"PYTHONPATH": str(tmp_path / "late"), "FIRST": str(tmp_path / "first")}
    server = serve(STARLETTE, {}, workers=3, listeners=0, environment=variables)
    assert "no service name" in only_line(server)


def test_flask_may_name_the_service_itself(serve: Serve, agent: DevAgent) -> None:
    """``app.config["MESH_SERVICE"]`` is as good as the table."""
    named = FLASK.replace("MeshNative(app)", 'app.config["MESH_SERVICE"] = "vat"\nMeshNative(app)')
    serve(named, None)
    until(lambda: [s.name for s in agent.state.services.services.values()] == ["vat"], "vat")


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ({"service": "tax", "defualt_policy": "deny"}, "'default_policy'"),
        ({"servce": "tax"}, "'service'"),
        ({"service": "tax", "mode": "shadwo"}, "one of enforce, shadow"),
        ({"service": "tax", "port": "x"}, "port = 'x'"),
        ({"service": "tax", "agent": "localhost:8500"}, "http://"),
        ({"service": "tax", "client_cert": "a.pem"}, "client_key"),
        (
            {"service": "tax", "agent": "https://127.0.0.1:1", "ca_file": "/nowhere.pem"},
            "/nowhere.pem",
        ),
        ({"service": "tax", "keep_file": "k", "keep_key": "short"}, "keep_key: 32 bytes"),
    ],
    ids="unknown,unknown service,mode,port,agent,half a pair,missing file,keep key".split(","),
)
@pytest.mark.parametrize("app", ["starlette", "flask"])
def test_a_bad_table_is_one_line(
    app: str, mesh: Mapping[str, Any], said: str, serve: Serve
) -> None:
    """Unknown keys name the nearest known one; unusable values name what is expected."""
    environment = {"MESH_AGENT": ""} if "agent" in mesh else None
    server = serve(APPS[app], mesh, listeners=0, environment=environment)
    assert said in only_line(server)


def test_a_plaintext_listener_for_other_machines_is_one_line(serve: Serve) -> None:
    """Refused, with the way out; loopback, and what the operator allows by name, are served."""
    line = only_line(serve(STARLETTE, insecure_bind="0.0.0.0:0", listeners=0))
    assert "0.0.0.0:0" in line and "plaintext_beyond_loopback = true" in line
    allowed = {"service": "tax", "plaintext_beyond_loopback": True}
    server = serve(STARLETTE, allowed, insecure_bind="0.0.0.0:0", listeners=2, folder="allowed")
    assert knock(server.port("http"), None, tls=False).startswith(b"HTTP/1.1 403 ")


def test_trio_cannot_run_wsgi(serve: Serve) -> None:
    """One line names the workers that can."""
    line = only_line(serve(FLASK, worker_class="trio", listeners=0))
    assert "asyncio" in line and "uvloop" in line


def test_http3_is_refused(serve: Serve) -> None:
    """QUIC connections would carry no identity."""
    assert "quic_bind" in only_line(serve(quic_bind="127.0.0.1:0", listeners=0))


@pytest.mark.parametrize("app", ["starlette", "fastapi", "flask"])
@pytest.mark.parametrize("wrong", ["certfle", "cert_file"])
def test_a_misspelt_certfile_is_refused_and_told(app: str, wrong: str, serve: Serve) -> None:
    """Hypercorn then serves plaintext: the doors answer 403, and the log says what is misspelt."""
    server = serve(APPS[app], certfile=None, **{wrong: "mesh"})
    answer = knock(server.port("http"), None, tls=False)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["type"] == "urn:mesh-middleware:denied"
    server.wait_output(f"'{wrong}' for 'certfile'")
    knock(server.port("http"), None, tls=False)
    assert len(re.findall("certfile is None", server.output)) == 1


def test_a_missing_keyfile_is_refused_and_told(serve: Serve) -> None:
    """The same when one of the two is left out."""
    server = serve(keyfile=None)
    assert knock(server.port("http"), None, tls=False).startswith(b"HTTP/1.1 403 ")
    server.wait_output("keyfile is None")


def test_certificates_of_files_beside_a_mesh_table_are_one_line(serve: Serve) -> None:
    """A table promises the mesh, files promise their own TLS: both cannot be."""
    line = only_line(serve(certfile="a.pem", keyfile="a.key", listeners=0))
    assert "'a.pem'" in line and '"mesh"' in line


@pytest.mark.parametrize(
    ("app", "worker"),
    [
        ("starlette", "asyncio"),
        ("starlette", "uvloop"),
        ("starlette", "trio"),
        ("flask", "asyncio"),
    ],
)
def test_an_unreachable_agent_is_waited_for(app: str, worker: str, serve: Serve) -> None:
    """The server starts, ends handshakes, says so once, and joins when the agent comes."""
    (port,) = free_ports(1)
    server = serve(APPS[app], agent=f"http://127.0.0.1:{port}", worker_class=worker)
    with pytest.raises((ssl.SSLError, OSError)):
        shake_hands(server.port())
    assert knock(server.port(), None) == b""
    server.wait_output("until then no handshake succeeds")
    with DevAgent(port=port) as agent:
        server.wait_output("answers again")
        invoice = Identity.of(*agent.issue("invoice"))
        # More lines for who knocked too early; and a leaf without a policy, for a moment: 503.
        answer = until(lambda: knock_for_200(server.port(), invoice.pem), "an answer")
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"peer": invoice.uri, "calls": 1}
        early = ("handshake refused: not_ready", "no_policy")
        told = [line for line in server.lines if not any(word in line for word in early)]
        assert len(told) == 3, server.output
        server.stop()
    assert "Traceback" not in server.output


def knock_for_200(port: int, pem: str) -> bytes:
    """The answer, if it is the application's."""
    answer = knock(port, pem)
    return answer if answer.startswith(b"HTTP/1.1 200 ") else b""


def shake_hands(port: int) -> None:
    """Only the handshake, trusting anybody."""
    ssl.get_server_certificate(("127.0.0.1", port), timeout=10)


@pytest.mark.parametrize(
    ("token", "missing"),
    [
        (Token("nobody"), 'service:write on "tax"'),
        (Token("reader", service={"tax": "read"}), 'service:write on "tax"'),
        (Token("other", service={"vat": "write"}), 'service:write on "tax"'),
    ],
    ids=["no rights", "read only", "of another service"],
)
def test_an_acl_refusal_names_the_permission(token: Token, missing: str, serve: Serve) -> None:
    """The log says which permission is needed on which service, and never the token."""
    with DevAgent(default_policy="deny", acl={"s3cret-token": token}) as agent:
        server = serve(agent=agent.url, environment={"MESH_TOKEN": "s3cret-token"})
        server.wait_output(re.escape(f"needs {missing}"))
        assert knock(server.port(), "".join(agent.issue("invoice"))) == b""
        server.stop()
        assert "s3cret-token" not in server.output
        assert "Traceback" not in server.output


def test_an_unknown_token_is_told(serve: Serve) -> None:
    """Consul's own words are in the line."""
    with DevAgent(acl={}) as agent:
        server = serve(agent=agent.url, environment={"MESH_TOKEN": "s3cret-token"})
        server.wait_output("ACL not found")
        server.stop()
    assert "s3cret-token" not in server.output
