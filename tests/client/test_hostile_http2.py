"""An upstream that speaks HTTP/2 as it likes: the time of a call holds, and errors are httpx's."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from hpack import Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from mesh_middleware import Client, Mesh
from mesh_middleware.dev import DevAgent
from tests.support.servers import PATIENCE

TERM = 0.5
"""Seconds that a call may take."""
FLOOD = 10.0
"""Seconds that a flood goes on, where nobody ends it."""


class Upstream:
    """
    The service tax, which answers each connection with one script.

    Args:
        agent: knows it.
        script: is given the connection, after the request has come.
    """

    def __init__(self, agent: DevAgent, script: Callable[[ssl.SSLSocket], None]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        chain, key = agent.issue("tax")
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(chain + key)
            file.flush()
            os.chmod(file.name, 0o600)
            self._context.load_cert_chain(file.name)
        self._context.set_alpn_protocols(["h2"])
        self._script, self._open = script, list[socket.socket]()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        port = self._socket.getsockname()[1]
        entry = {"Name": "tax", "Port": port, "Address": "127.0.0.1", "Connect": {"Native": True}}
        agent.register(entry)

    def __enter__(self) -> Upstream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for plain in self._open:
            plain.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(plain,), daemon=True).start()
            except OSError:
                return

    def _answer(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as tls:
                self._open.append(tls)
                tls.settimeout(PATIENCE)
                tls.sendall(SettingsFrame(0).serialize())
                seen = b""
                while b"\x01\x05" not in seen:
                    seen += tls.recv(65536)
                self._script(tls)
        except (OSError, ValueError):
            return


def head(stream: int = 1, status: bytes = b"200", **more: bool) -> bytes:
    """A HEADERS frame."""
    frame = HeadersFrame(stream)
    frame.data = Encoder().encode([(b":status", status)])
    frame.flags.add("END_HEADERS")
    if more.get("end"):
        frame.flags.add("END_STREAM")
    return frame.serialize()


def forever(*frames: Frame | bytes) -> Callable[[ssl.SSLSocket], None]:
    """A script that sends these without end."""
    data = b"".join(f if isinstance(f, bytes) else f.serialize() for f in frames)

    def script(tls: ssl.SSLSocket) -> None:
        until = time.monotonic() + FLOOD
        while time.monotonic() < until:
            tls.sendall(data * 200)
        ENDED.set()

    return script


ENDED = threading.Event()
"""Set by a flood that went on to its end."""

FLOODS = {
    "PING": forever(PingFrame(0, opaque_data=b"12345678")),
    "SETTINGS": forever(SettingsFrame(0)),
    "WINDOW_UPDATE": forever(WindowUpdateFrame(0, window_increment=1)),
    "interim answers": forever(head(status=b"103")),
}


@pytest.fixture
def mesh() -> Iterator[tuple[DevAgent, Mesh]]:
    """An agent, and the service order."""
    with DevAgent() as agent, Mesh("order", agent=agent.url, plugins=()) as mesh:
        assert mesh.ready(PATIENCE)
        yield agent, mesh


@pytest.mark.parametrize("kind", FLOODS)
def test_the_time_of_a_call_holds_in_a_flood(kind: str, mesh: tuple[DevAgent, Mesh]) -> None:
    """Frames that are nothing of the call's do not prolong it."""
    agent, order = mesh
    ENDED.clear()
    with Upstream(agent, FLOODS[kind]), Client(mesh=order, http2=True) as client:
        with pytest.raises(httpx.TransportError):
            client.get("https://tax/", extensions={"mesh": {"timeout": TERM}}, timeout=PATIENCE)
        assert not ENDED.is_set(), "the call lasted as long as the flood"


def once(*parts: bytes) -> Callable[[ssl.SSLSocket], None]:
    """A script that sends these and waits."""

    def script(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"".join(parts))
        tls.recv(65536)
        tls.recv(65536)

    return script


FAULTS = {
    "data before the head": once(DataFrame(1, data=b"x").serialize()),
    "two final heads": once(head(), head()),
    "an answer on a stream that was not asked": once(head(stream=3, end=True)),
    "data after the end": once(head(end=True), DataFrame(1, data=b"x").serialize(), head()),
    "no frame": once(b"HTTP/1.1 200 OK\r\n\r\n" * 10),
    "a head that cannot be decoded": once(b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\xff"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_the_upstream_is_a_remote_one(kind: str, mesh: tuple[DevAgent, Mesh]) -> None:
    """Never a `LocalProtocolError`, which says that the caller did wrong."""
    agent, order = mesh
    with Upstream(agent, FAULTS[kind]), Client(mesh=order, http2=True, timeout=2.0) as client:
        try:
            assert client.get("https://tax/").status_code == 200
        except httpx.HTTPError as error:
            assert isinstance(
                error, httpx.RemoteProtocolError | httpx.ReadError | httpx.ReadTimeout
            )
