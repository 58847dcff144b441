"""The time of a whole call, to the end of its body, over every carrier."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest

from .driver import Driver
from .support import PATIENCE, Authority, StaticMesh, Wire, serving
from .test_http2_ends import Server, Talk

TIME = 0.3
WISHES = {"mesh": {"timeout": TIME}}
Ends = Callable[[], bool]


def drip(wire: Wire, ends: Ends) -> None:
    """Answer over HTTP/1.1, without an end of its own."""
    wire.read_head()
    wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not ends():
        wire.send(b"400\r\n" + b"x" * 1024 + b"\r\n")


def drip_h2(talk: Talk, ends: Ends) -> None:
    """Answer over HTTP/2, without an end of its own."""
    for stream in talk.requests():
        talk.frames.send_headers(stream, [(":status", "200")])
        while not ends():
            talk.frames.send_data(stream, b"x")
            talk.flush()


class Endless:
    """A body without end."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return b"x" * 1024


class AsyncEndless:
    """A body without end."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return b"x" * 1024


def take_all(wire: Wire) -> None:
    """Read as fast as can be, and answer nothing."""
    while wire._recv():
        pass


@pytest.mark.parametrize("carrier", ["ours", "stock", "HTTP/2"])
@pytest.mark.parametrize("pace", ["slow", "fast"])
def test_a_body_without_end_ends_with_the_time_of_its_call(
    authority: Authority, mesh: StaticMesh, driver: Driver, carrier: str, pace: str
) -> None:
    """However fast it comes, and though no single read takes long."""
    over = threading.Event()

    def ends() -> bool:
        # Slow is less than the call's time, which no silence is to use up.
        slow = pace == "slow" or carrier == "HTTP/2"
        return over.wait(0.02) if slow else over.is_set()

    if carrier == "HTTP/2":
        script: Callable[[Wire], None] = Server(lambda talk: drip_h2(talk, ends))
    else:
        script = lambda wire: drip(wire, ends)  # noqa: E731
    alpn = ("h2",) if carrier == "HTTP/2" else ("http/1.1",)
    with (
        serving(authority, script, alpn=alpn) as server,
        driver.client(mesh, http2=carrier != "ours", timeout=PATIENCE) as client,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        began = time.monotonic()
        try:
            with pytest.raises(httpx.ReadTimeout):
                client.get("https://tax/", extensions=WISHES)
        finally:
            over.set()
        assert TIME * 0.9 < time.monotonic() - began < PATIENCE / 2


@pytest.mark.parametrize("http2", [False, True], ids=["ours", "stock"])
def test_an_upload_without_end_ends_with_the_time_of_its_call(
    authority: Authority, mesh: StaticMesh, driver: Driver, http2: bool
) -> None:
    """Though the other end takes every byte of it at once."""
    with (
        serving(authority, take_all) as server,
        driver.client(mesh, http2=http2, timeout=PATIENCE) as client,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        began = time.monotonic()
        content = AsyncEndless() if driver.is_async else Endless()
        with pytest.raises(httpx.WriteTimeout):
            client.request("POST", "https://tax/", content=content, extensions=WISHES)
        assert TIME * 0.9 < time.monotonic() - began < PATIENCE / 2


@pytest.mark.parametrize("http2", [False, True], ids=["ours", "stock"])
def test_files_are_sent_within_the_time_of_their_call(
    authority: Authority, mesh: StaticMesh, driver: Driver, http2: bool
) -> None:
    """Their body is one for threads and for tasks at once."""
    came: list[bytes] = []

    def script(wire: Wire) -> None:
        while (got := wire.read_request())[0]:
            came.append(got[1])
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    wishes = {"mesh": {"timeout": PATIENCE}}
    with (
        serving(authority, script) as server,
        driver.client(mesh, http2=http2, timeout=PATIENCE) as client,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        files = {"rates": ("rates.csv", b"1,2,3")}
        answer = client.request("POST", "https://tax/", files=files, extensions=wishes)
        assert answer.text == "ok"
    assert [b"1,2,3" in body for body in came] == [True]
