"""A request part of which was sent has been sent: what may not arrive twice does not."""

from __future__ import annotations

import socket
import struct
import threading

import httpx
import pytest

from .driver import OWN, Driver, drivers
from .support import PATIENCE, Authority, StaticMesh, Wire, serving

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LONG = b"x" * 16_000_000


driver = drivers(OWN)


def test_a_request_that_was_not_taken_to_its_end_goes_to_nobody_else(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A WriteTimeout in the middle of a POST is told; the other instance never hears of it."""
    heads: list[bytes] = []
    over = threading.Event()

    def script(wire: Wire) -> None:
        heads.append(wire.read_head())
        assert over.wait(PATIENCE)

    with (
        serving(authority, script) as one,
        serving(authority, script) as other,
        driver.client(mesh, timeout=httpx.Timeout(PATIENCE, write=0.2)) as client,
    ):
        mesh.tell("tax", one.endpoint("tax"), other.endpoint("tax"))
        with pytest.raises(httpx.WriteTimeout):
            client.request("POST", "https://tax/", content=LONG)
        over.set()
    assert len(heads) == 1


def test_a_request_that_was_cut_off_in_the_middle_is_not_sent_again(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A connection, used before, that is reset in the middle of a POST has carried it already."""
    heads: list[bytes] = []

    def script(wire: Wire) -> None:
        while head := wire.read_head():
            heads.append(head)
            if head.startswith(b"POST"):
                linger = struct.pack("ii", 1, 0)
                wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            wire.send(OK)

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        assert client.get("https://tax/").text == "ok"
        with pytest.raises((httpx.NetworkError, httpx.RemoteProtocolError)):
            client.request("POST", "https://tax/", content=LONG)
        assert server.connections == 1
    assert [head.partition(b" ")[0] for head in heads] == [b"GET", b"POST"]
