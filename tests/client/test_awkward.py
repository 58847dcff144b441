"""
Our HTTP/1.1 held to httpx's own: every awkward server answers both, and both must agree.

The stock transport is asked first, in the same run, on the same event loop; its outcome, an answer
or the class of its error, is what ours has to give. Where we are stricter on purpose the case says
so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from mesh_middleware.httpx import h1

from .driver import OWN, Driver, Session, drivers
from .support import PATIENCE, Authority, StaticMesh, Wire, client_context, service_id, serving

READERS = ["h11"] if h1.httptools is None else ["httptools", "h11"]


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With httptools installed, and without."""
    if request.param == "h11":
        monkeypatch.setattr(h1, "httptools", None)
    return str(request.param)


driver = drivers(OWN)


def _ok(body: bytes = b"hello", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), headers, body)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = {
    "length": _ok(),
    "empty": _ok(b""),
    "long": _ok(b"x" * 1_000_000),
    "chunked": CHUNKED + b"5\r\nhello\r\n6; a=b\r\n world\r\n0\r\n\r\n".replace(b"; ", b";"),
    "chunked with trailers": CHUNKED + b"5\r\nhello\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n",
    "chunked, upper case": CHUNKED.replace(b"chunked", b"Chunked")
    + b"A\r\n0123456789\r\n0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "no content with a length": b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nETag: x\r\n\r\n",
    "continue first": b"HTTP/1.1 100 Continue\r\n\r\n" + _ok(),
    "early hints first": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + _ok(),
    "no reason": b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
    "no reason, no blank": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
    "a strange status": b"HTTP/1.1 599 Odd (really)\r\nContent-Length: 2\r\n\r\nok",
    "repeated headers": _ok(headers=b"X-A: 1\r\nx-a: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"),
    "odd values": _ok(headers=b'X-A:\r\nX-B:   b \t \r\nX-C: \xe4\xf6\r\nX_D: a,b;c="d"\r\n'),
    "many headers": _ok(headers=b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(500))),
    "a long header": _ok(headers=b"X-A: " + b"a" * 60_000 + b"\r\n"),
    "a folded header": _ok(headers=b"X-A: a\r\n b\r\n\tc\r\n"),
    "line feeds only": _ok().replace(b"\r\n", b"\n"),
    "length twice, the same": _ok(headers=b"Content-Length: 5\r\n"),
    "length as a list": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
    "close": _ok(headers=b"Connection: close\r\n"),
    "keep-alive": _ok(headers=b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"),
}
BROKEN = {
    "silence": b"",
    "half a status line": b"HTTP/1.1 2",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": _ok()[:-2],
    "no chunk": CHUNKED,
    "half a chunk": CHUNKED + b"5\r\nhel",
    "no last chunk": CHUNKED + b"5\r\nhello\r\n",
    "half a trailer": CHUNKED + b"5\r\nhello\r\n0\r\nX-T: 1\r\n",
    "only continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    "bad chunk size": CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n",
    "negative chunk size": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk size too long": CHUNKED + b"5" * 40 + b"\r\nhello\r\n",
    "a chunk without an end": CHUNKED + b"5\r\nhelloX\r\n0\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n" + b"x" * 64,
    "HTTP/0.9": b"<html>hello</html>\r\n\r\n",
    "a bad version": b"HTTP/x.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a bad status": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "a low status": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "a status in words": b"HTTP/1.1 OK 200\r\nContent-Length: 0\r\n\r\n",
    "a header without a colon": _ok(headers=b"X-A\r\n"),
    "a header without a name": _ok(headers=b": a\r\n"),
    "a blank before the colon": _ok(headers=b"X-A : a\r\n"),
    "NUL in a header": _ok(headers=b"X-A: a\x00b\r\n"),
    "CR in a header": _ok(headers=b"X-A: a\rb\r\n"),
    "lengths that differ": _ok(headers=b"Content-Length: 4\r\n"),
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "a length in words": b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
    "a length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
    "two codings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "one coding twice": CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "switching unasked": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "a head too long": _ok(headers=b"X-A: " + b"a" * 200_000 + b"\r\n"),
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * 30_000,
}
ENDED = {
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "until the end, nothing": b"HTTP/1.1 200 OK\r\n\r\n",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "HTTP/1.0 with a length": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "length and coding": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "gzip, truncated": _ok(b"\x1f\x8b\x08\x00", b"Content-Encoding: gzip\r\n"),
}


@dataclass(frozen=True)
class Outcome:
    """What a client made of a server."""

    error: type[Exception] | None = None
    status: int = 0
    reason: str = ""
    version: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


def _ask(session: Session, url: str, method: str = "GET", **options: Any) -> Outcome:
    try:
        response = session.request(method, url, **options)
    except httpx.HTTPError as error:
        kinds = [kind for kind in type(error).__mro__ if kind.__module__.startswith("httpx")]
        return Outcome(kinds[0])
    return Outcome(
        None,
        response.status_code,
        response.reason_phrase,
        response.http_version,
        tuple(response.headers.raw),
        response.content,
    )


def _compare(
    authority: Authority,
    mesh: StaticMesh,
    driver: Driver,
    script: Callable[[Wire], None],
    **options: Any,
) -> Outcome:
    context = client_context(
        authority.root_pem, authority.issue(service_id("order").uri), service_id("tax").uri
    )
    with serving(authority, script) as server:
        with driver.plain(verify=context, trust_env=False, headers={"Host": "tax"}) as stock:
            theirs = _ask(stock, f"https://127.0.0.1:{server.port}/", **options)
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh) as client:
            ours = _ask(client, "https://tax/", **options)
    assert ours == theirs
    return ours


def _saying(data: bytes, *, slowly: bool = False) -> Callable[[Wire], None]:
    def script(wire: Wire) -> None:
        if not wire.read_request()[0]:
            return
        if slowly:
            for at in range(len(data)):
                wire.send(data[at : at + 1])
        elif data:
            wire.send(data)

    return script


@pytest.mark.parametrize("name", [*WHOLE, *ENDED])
def test_answers_are_read_as_httpx_does(
    authority: Authority, mesh: StaticMesh, driver: Driver, reader: str, name: str
) -> None:
    """Sound answers, however they look, are the same response."""
    outcome = _compare(authority, mesh, driver, _saying((WHOLE | ENDED)[name]))
    assert name.startswith("gzip") or outcome.error is None


@pytest.mark.parametrize("name", BROKEN)
def test_broken_answers_fail_as_in_httpx(
    authority: Authority, mesh: StaticMesh, driver: Driver, reader: str, name: str
) -> None:
    """Unsound answers are the same class of error, and never a response."""
    outcome = _compare(authority, mesh, driver, _saying(BROKEN[name]))
    assert outcome.error is not None


@pytest.mark.parametrize(
    "name",
    ["length", "chunked with trailers", "early hints first", "a folded header", "no content"],
)
def test_answers_may_come_byte_by_byte(
    authority: Authority, mesh: StaticMesh, driver: Driver, reader: str, name: str
) -> None:
    """Where the bytes are cut makes no difference."""
    assert _compare(authority, mesh, driver, _saying(WHOLE[name], slowly=True)).error is None


@pytest.mark.parametrize("name", ["half a body", "bad chunk size", "half a head"])
def test_broken_answers_may_come_byte_by_byte(
    authority: Authority, mesh: StaticMesh, driver: Driver, reader: str, name: str
) -> None:
    """Nor does it for errors."""
    assert _compare(authority, mesh, driver, _saying(BROKEN[name], slowly=True)).error is not None


@pytest.mark.parametrize("headers", [b"Content-Length: 500\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_an_answer_to_head_has_no_body(
    authority: Authority, mesh: StaticMesh, driver: Driver, reader: str, headers: bytes
) -> None:
    """The headers of an answer to HEAD tell of a body that does not come."""
    head = b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n"
    assert _compare(authority, mesh, driver, _saying(head), method="HEAD").body == b""


@pytest.mark.parametrize(
    "options",
    [
        {"content": b"hello"},
        {"content": b""},
        {"content": b"x" * 1_000_000},
        {"json": {"a": 1}},
        {"data": {"a": "1"}},
        {"files": {"f": b"hello"}},
        {"content": b"hello", "headers": {"Transfer-Encoding": "chunked"}},
        {"headers": [("X-A", "1"), ("X-A", "2"), ("x-b", "")]},
        {"headers": {"Expect": "100-continue"}, "content": b"hello"},
        {"headers": {"Connection": "close"}, "content": b"hello"},
        {"cookies": {"a": "1"}},
    ],
    ids=lambda options: str(options)[:50],
)
@pytest.mark.filterwarnings("ignore:Setting per-request cookies:DeprecationWarning")
def test_requests_are_written_as_httpx_does(
    authority: Authority, mesh: StaticMesh, driver: Driver, options: dict[str, Any]
) -> None:
    """The same bytes reach the server, but for the boundary of a form."""
    seen: list[tuple[bytes, bytes]] = []

    def script(wire: Wire) -> None:
        seen.append(wire.read_request())
        wire.send(_ok())

    _compare(authority, mesh, driver, script, method="POST", **options)
    (their_head, their_body), (our_head, our_body) = seen
    if "files" in options:
        assert len(our_body) == len(their_body)
        return
    theirs, ours = their_head.split(b"\r\n"), our_head.split(b"\r\n")
    if "Transfer-Encoding" in options.get("headers", {}):
        # RFC 9112, 6.2: no Content-Length beside it. httpx sends both.
        theirs = [line for line in theirs if not line.startswith(b"Content-Length")]
    assert sorted(ours) == sorted(theirs)
    assert our_body == their_body


def _used_again(
    authority: Authority, mesh: StaticMesh, driver: Driver, first: bytes, **options: Any
) -> int:
    """Ask twice, *first* being the first answer, and count the connections that took."""

    def script(wire: Wire) -> None:
        if wire.read_request()[0]:
            wire.send(first)
        while wire.read_request()[0]:
            wire.send(_ok(b"second"))

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        client.request(options.pop("method", "GET"), "https://tax/", **options)
        client.get("https://tax/")
        return server.connections


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "close"])
def test_a_sound_answer_leaves_the_connection_in_use(
    authority: Authority, mesh: StaticMesh, driver: Driver, reader: str, name: str
) -> None:
    """After a complete answer the next request takes the same connection."""
    assert _used_again(authority, mesh, driver, WHOLE[name]) == 1


@pytest.mark.parametrize(
    ("first", "options"),
    [
        (WHOLE["close"], {}),
        (_ok(headers=b"Connection: x, Close\r\n"), {}),
        (ENDED["HTTP/1.0 with a length"], {}),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", {}),
        (ENDED["length and coding"], {}),
        (_ok() + _ok(b"smuggled"), {}),
        (_ok() + b"garbage", {}),
        (CHUNKED + b"0\r\n\r\nHTTP/1.1 200 OK\r\n", {}),
        (_ok(), {"headers": {"Connection": "close"}}),
    ],
    ids=range(9),
)
def test_after_some_answers_a_connection_is_not_used_again(
    authority: Authority,
    mesh: StaticMesh,
    driver: Driver,
    reader: str,
    first: bytes,
    options: dict[str, Any],
) -> None:
    """
    Asked to close, framed twice, or followed by bytes nobody asked for: the connection ends, and
    what came too much is nobody's answer.
    """
    assert _used_again(authority, mesh, driver, first, **options) == 2


def test_bytes_that_come_between_requests_end_the_connection(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """An answer that nobody asked for is not taken for that of the next request."""

    sent = threading.Event()

    def script(wire: Wire) -> None:
        if wire.read_request()[0]:
            wire.send(_ok(b"first"))
            wire.send(_ok(b"smuggled"))
            sent.set()
        wire.read_to_end()

    def second(wire: Wire) -> None:
        while wire.read_request()[0]:
            wire.send(_ok(b"second"))

    scripts = iter([script, second])
    with serving(authority, lambda wire: next(scripts)(wire)) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh) as client:
            assert client.get("https://tax/").text == "first"
            assert sent.wait(PATIENCE)
            assert client.get("https://tax/").text == "second"
