"""
Raw TCP upstreams: a Redis client library, through Consul's built-in proxy.

The library is the real redis-py and the proxy the real one; behind it a small server speaks as much
of RESP as they need.
"""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from mesh_middleware import Mesh
from mesh_middleware.exceptions import NotReadyError, PeerMismatchError, ResolveError

from ..support.consul import RealConsul, free_ports
from ..support.servers import Process, clean_environment
from .upstreams import Agent


class Resp(socketserver.StreamRequestHandler):
    """GET, SET and DEL of one dictionary; everything else is OK."""

    data: dict[bytes, bytes]

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2)[:-2])
            self.wfile.write(self.answer(*words))

    def answer(self, command: bytes, *words: bytes) -> bytes:
        name = command.upper()
        if name == b"SET":
            self.data[words[0]] = words[1]
        elif name == b"GET":
            found = self.data.get(words[0])
            return b"$-1\r\n" if found is None else b"$%d\r\n%b\r\n" % (len(found), found)
        elif name == b"DEL":
            return b":%d\r\n" % sum(self.data.pop(key, None) is not None for key in words)
        elif name == b"HELLO":
            return b"-ERR unknown command\r\n"
        return b"+OK\r\n"


@contextmanager
def resp_server() -> Iterator[int]:
    """Serve RESP on loopback, in plaintext."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    handler = type("Handler", (Resp,), {"data": {}})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The caller; ``db`` is behind Consul's proxy, ``fake`` is db's address under another name."""
    folder: Path = tmp_path_factory.mktemp("raw")
    with ExitStack() as stack:
        consul = stack.enter_context(RealConsul())
        agent = Agent(consul.url)
        server = stack.enter_context(resp_server())
        (port,) = free_ports(1)
        command = [
            consul.binary, "connect", "proxy", f"-http-addr={consul.url}", "-service=db",
            f"-service-addr=127.0.0.1:{server}", f"-listen=127.0.0.1:{port}", "-log-level=info",
        ]  # fmt: skip
        process = Process(command, folder, clean_environment())
        stack.enter_context(process).wait_output("Proxy loaded config|Starting listener")
        agent.sidecar("db", "proxy", port)
        agent.sidecar("fake", "proxy", port)
        agent.sidecar("gone", "proxy", 1)
        made = stack.enter_context(Mesh("order", agent=consul.url, register=False))
        assert made.wait_for(lambda snapshot: snapshot.joined, 20)
        yield made


def test_a_redis_client_works_over_a_socket_of_the_mesh(mesh: Mesh) -> None:
    """redis-py speaks over `Mesh.connect_socket`; the connection counts until it is gone."""

    class Connection(redis.Connection):
        def _connect(self) -> Any:
            return mesh.connect_socket("db")

    pool = redis.ConnectionPool(connection_class=Connection, protocol=2)
    with redis.Redis(connection_pool=pool) as client:
        assert client.set("a", "1")
        assert client.get("a") == b"1"
        assert client.get("b") is None
        value = b"x" * 1_000_000
        assert client.set("big", value)
        assert client.get("big") == value
        assert client.delete("a", "big") == 2
        assert mesh.upstream("db").state.outstanding == 1
    pool.disconnect()


def test_a_redis_client_works_over_streams_of_the_mesh(mesh: Mesh) -> None:
    """The same for asyncio: `Mesh.connect` gives asyncio's reader and writer."""

    class Connection(redis.asyncio.Connection):
        async def _connect(self) -> None:
            self._reader, self._writer = await mesh.connect("db.service.consul")

    async def run() -> None:
        pool = redis.asyncio.ConnectionPool(connection_class=Connection, protocol=2)
        async with redis.asyncio.Redis(connection_pool=pool) as client:
            assert await client.set("c", "3")
            assert await client.get("c") == b"3"
            assert mesh.upstream("db").state.outstanding >= 1
        await pool.aclose()

    before = mesh.upstream("db").state.outstanding
    asyncio.run(run())
    assert mesh.upstream("db").state.outstanding == before


def test_the_other_end_is_verified(mesh: Mesh) -> None:
    """A connection to who is not the upstream never comes to the caller."""
    with pytest.raises(PeerMismatchError, match="svc/db"):
        mesh.connect_socket("fake", timeout=10)
    with pytest.raises(PeerMismatchError, match="svc/db"):
        asyncio.run(mesh.connect("fake", timeout=10))
    assert mesh.upstream("fake").state.outstanding == 0


def test_what_cannot_be_reached_is_told(mesh: Mesh) -> None:
    """Nobody listens, no such service, no such name, no mesh: an error each."""
    with pytest.raises(ConnectionRefusedError):
        mesh.connect_socket("gone")
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(mesh.connect("gone"))
    with pytest.raises(ResolveError, match="no healthy instance"):
        mesh.connect_socket("nobody")
    with pytest.raises(ResolveError, match="no healthy instance"):
        asyncio.run(mesh.connect("nobody"))
    with pytest.raises(ResolveError, match="not in the mesh"):
        mesh.connect_socket("db.example.com")
    with pytest.raises(NotReadyError, match="not running"):
        Mesh("order", plugins=()).connect_socket("db")
    assert mesh.upstream("gone").state.outstanding == 0
