"""Consul's own command line and its own proxy, against both agents.

The outsiders that read an agent's answers with nobody's code but their own.
"""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh_middleware.config import load_settings
from mesh_middleware.consul.client import agent_context

from ..support.consul import find_consul, free_ports
from ..support.handshakes import Ends
from .target import PATIENCE, Target


def consul(agent: Target, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Run a command of the real binary; its exit code and all it said."""
    done = subprocess.run(
        [find_consul(), *arguments],
        env={"CONSUL_HTTP_ADDR": agent.url},
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout


def test_intention_commands(agent: Target) -> None:
    """create, check, match, get, create -replace and delete do what they do on any Consul."""
    source, target = agent.name(), agent.name()
    pair = f"{source} => {target}"
    assert consul(agent, "intention", "check", source, target) == (0, "Allowed\n")
    created = consul(agent, "intention", "create", "-deny", "-meta", "k=v", source, target)
    assert created == (0, f"Created: {pair} (deny)\n")
    assert consul(agent, "intention", "check", source, target) == (1, "Denied\n")
    code, said = consul(agent, "intention", "match", target)
    assert code == 0 and f"{pair} (deny)" in said
    code, said = consul(agent, "intention", "get", source, target)
    assert code == 0
    assert re.search(r"Action: +deny\n", said) and re.search(rf"Source: +{source}\n", said)
    assert "k" in said
    code, said = consul(agent, "intention", "create", "-allow", source, target)
    assert code == 1 and "duplicate intention found" in said
    replaced = consul(agent, "intention", "create", "-replace", "-allow", source, target)
    assert replaced[0] == 0, replaced[1]  # 1.8 prints nothing here
    assert consul(agent, "intention", "check", source, target) == (0, "Allowed\n")
    assert consul(agent, "intention", "delete", source, target) == (0, "Intention deleted.\n")
    assert consul(agent, "intention", "delete", source, target)[0] == 1


def test_service_commands(agent: Target, tmp_path: Path) -> None:
    """A service registered from a file appears in the catalog, and goes by its ID."""
    name = agent.name()
    file = tmp_path / "service.hcl"
    file.write_text(
        f'service {{ name = "{name}" port = 9090 connect {{ native = true }}'
        ' tags = ["t"] check { name = "ttl" ttl = "30s" } }'
    )
    assert consul(agent, "services", "register", str(file)) == (0, f"Registered service: {name}\n")
    assert name in consul(agent, "catalog", "services")[1].split()
    assert agent.get(f"/v1/agent/service/{name}").json()["Connect"] == {"Native": True}
    code, said = consul(agent, "services", "deregister", "-id", name)
    assert (code, said) == (0, f"Deregistered service: {name}\n")
    assert name not in consul(agent, "catalog", "services")[1].split()


def test_commands_that_look_around(agent: Target) -> None:
    """catalog, members, info and the CA's configuration are readable."""
    node = agent.get("/v1/agent/self").json()["Config"]["NodeName"]
    assert consul(agent, "catalog", "datacenters") == (0, "dc1\n")
    assert node in consul(agent, "catalog", "nodes")[1]
    code, said = consul(agent, "members")
    assert code == 0 and re.search(rf"{node} +127\.0\.0\.1:\d+ +alive +server", said)
    code, said = consul(agent, "info")
    assert code == 0 and "build:" in said
    code, said = consul(agent, "connect", "ca", "get-config")
    assert code == 0 and '"Provider": "consul"' in said


def test_config_commands(agent: Target) -> None:
    """config write, read, list and delete, the entry coming from standard input."""
    name = agent.name()
    entry = f'kind = "service-defaults"\nname = "{name}"\nprotocol = "http"\n'
    code, said = consul(agent, "config", "write", "-", stdin=entry)
    assert code == 0, said
    code, said = consul(agent, "config", "read", "-kind", "service-defaults", "-name", name)
    assert code == 0 and '"Protocol": "http"' in said
    assert name in consul(agent, "config", "list", "-kind", "service-defaults")[1].split()
    code, _ = consul(agent, "config", "delete", "-kind", "service-defaults", "-name", name)
    assert code == 0
    code, said = consul(agent, "config", "read", "-kind", "service-defaults", "-name", name)
    assert code == 1 and "404" in said


# Consul's built-in proxy


@contextmanager
def running_proxy(agent: Target, port: int, *arguments: str) -> Iterator[None]:
    """``consul connect proxy`` while the body runs; ready when *port* accepts."""
    process = subprocess.Popen(
        [find_consul(), "connect", "proxy", "-log-level=err", *arguments],
        env={"CONSUL_HTTP_ADDR": agent.url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(int(PATIENCE / 0.05)):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except ConnectionRefusedError:
                try:
                    process.wait(0.05)
                except subprocess.TimeoutExpired:
                    continue
                raise AssertionError("the proxy has ended") from None
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def context(agent: Target, service: str, directory: Path, *, server: bool) -> ssl.SSLContext:
    """A TLS context with the leaf that *agent* gives to *service*."""
    leaf = agent.get(f"/v1/agent/connect/ca/leaf/{service}").json()
    roots = agent.get("/v1/agent/connect/ca/roots").json()["Roots"]
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata="".join(root["RootCert"] for root in roots))
    pair = directory / f"{service}.pem"
    pair.write_text(leaf["CertPEM"] + leaf["PrivateKeyPEM"])
    made.load_cert_chain(pair)
    return made


def uri_of(connection: ssl.SSLSocket) -> str:
    """The URI name in the peer's certificate."""
    certificate = connection.getpeercert()
    assert certificate
    names = certificate["subjectAltName"]
    assert isinstance(names, tuple)
    return ",".join(str(value) for kind, value in names if kind == "URI")


@contextmanager
def echoing(tls: ssl.SSLContext | None) -> Iterator[int]:
    """A server that answers one line with it, and with the URI of who sent it; its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(PATIENCE)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            connection, _ = listening.accept()
            connection.settimeout(PATIENCE)
            try:
                if tls is not None:
                    connection = tls.wrap_socket(connection, server_side=True)
                if line := connection.recv(1000):
                    who = uri_of(connection) if isinstance(connection, ssl.SSLSocket) else "nobody"
                    connection.sendall(line + who.encode())
            except OSError:
                pass
            finally:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        stop.set()
        socket.create_connection(listening.getsockname(), 1).close()
        thread.join(PATIENCE)
        listening.close()


def test_built_in_proxy_calls_a_native_service(agent: Target, tmp_path: Path) -> None:
    """Roots, leaf and health from the agent are enough for Consul's proxy to reach a service."""
    client, service = agent.name(), agent.name()
    (port,) = free_ports(1)
    with echoing(context(agent, service, tmp_path, server=True)) as native:
        agent.register(Name=service, Port=native, Address="127.0.0.1", Connect={"Native": True})
        upstream = f"{service}:127.0.0.1:{port}"
        with running_proxy(agent, port, "-service", client, "-upstream", upstream):
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
                connection.sendall(b"hello ")
                answer = connection.recv(1000).decode()
        agent.put(f"/v1/agent/service/deregister/{service}")
    assert answer.startswith("hello spiffe://") and answer.endswith(f"/svc/{client}")


@pytest.mark.parametrize("action", ["allow", "deny"])
def test_built_in_proxy_asks_the_agent_who_may_come_in(
    agent: Target, tmp_path: Path, action: str
) -> None:
    """In front of a plain service Consul's proxy lets in whom authorize allows, and nobody else."""
    client, service = agent.name(), agent.name()
    identity = agent.intend(client, service, action)
    (port,) = free_ports(1)
    with echoing(None) as plain:
        arguments = ["-service", service, "-service-addr", f"127.0.0.1:{plain}",
                     "-listen", f"127.0.0.1:{port}"]  # fmt: skip
        with running_proxy(agent, port, *arguments):
            answer = call(context(agent, client, tmp_path, server=False), port)
    agent.forget(identity)
    assert answer == (b"hello nobody" if action == "allow" else b"")


def call(tls: ssl.SSLContext, port: int) -> bytes:
    """One line over TLS and its answer; nothing when the other end refuses."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        try:
            with tls.wrap_socket(plain) as connection:
                connection.sendall(b"hello ")
                return connection.recv(1000)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_certificates_of_consul_tls_are_strictly_right(tmp_path: Path) -> None:
    """Those for an ``https`` agent: Python 3.13's contexts hold them to RFC 5280."""
    for made in (["ca", "create"], ["cert", "create", "-server"]):
        subprocess.run(
            [find_consul(), "tls", *made],
            cwd=tmp_path,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=PATIENCE,
        )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = [str(tmp_path / f"dc1-server-consul-0{end}.pem") for end in ("", "-key")]
    server.load_cert_chain(*pair)
    authority = str(tmp_path / "consul-agent-ca.pem")
    client = agent_context(load_settings({"service": "tax", "ca_file": authority}))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.check_hostname = False
    ends = Ends(client, server).shake()
    assert ends.well, ends.client_error
