"""Reading answers: what is faster held to h11, wherever the bytes are cut."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_middleware.httpx.h1 import MAX_HEAD_BYTES, Reading

SEEDS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b c \r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b c\r\n\r\nhello",
    b"HTTP/1.1 503 \r\nconnection: keep-alive\r\nserver: x\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nabc",
    b"HTTP/1.1 204 No\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\na",
    b"HTTP/1.1 200 OK\nContent-Length: 1\n\na",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\na\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 1\r\n\r\na",
    b"HTTP/1.1 101 Sw\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 304 NM\r\nContent-Length: 10\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
]
PIECES = [
    b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\x00", b"\x01", b"\x7f", b"\xff", b"\x0b", b"0",
    b"5", b"A", b",", b"-", b"+", b"chunked", b"close", b"HTTP/1.1 ", b"Content-Length: 3\r\n",
]  # fmt: skip


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A sound answer with up to three accidents before the body's framing."""
    data = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 2))
        data = data[:at] + draw(st.sampled_from([b"", *PIECES])) + data[at + cut :]
    return data


def _read(data: bytes, cuts: list[int], ends: bool, fast: bool) -> tuple[Reading, bool]:
    reading, at = Reading(fast=fast), 0
    try:
        for cut in [*sorted(cuts), len(data)]:
            reading.feed(data[at:cut])
            at = max(at, cut)
        if ends:
            reading.end()
    except httpx.RemoteProtocolError:
        return reading, True
    return reading, False


@given(mangled(), st.lists(st.integers(0, 120), max_size=3), st.booleans())
@settings(max_examples=600, deadline=None)
def test_the_fast_readers_read_no_more_into_an_answer_than_h11(
    data: bytes, cuts: list[int], ends: bool
) -> None:
    """
    What the fast readers accept h11 accepts too, and reads the same: status, reason, headers,
    body, end. They may refuse more, within chunks and trailers.
    """
    fast, fast_failed = _read(data, cuts, ends, True)
    slow, slow_failed = _read(data, cuts, ends, False)
    if fast_failed:
        assert fast.status in (0, slow.status)
        return
    if not fast.status:
        # Blank lines before the head: llhttp waits for more where h11 has made up its mind.
        assert not slow.status
        return
    assert not slow_failed
    assert (fast.status, fast.reason, fast.version) == (slow.status, slow.reason, slow.version)
    assert fast.headers == slow.headers
    assert fast.complete == slow.complete
    assert fast.take() == slow.take()
    if fast.reusable and not slow.reusable:
        # llhttp swallows line ends after an answer; anything else would have been noticed.
        assert data.endswith((b"\r", b"\n"))


@given(mangled(), st.lists(st.integers(0, 120), max_size=5), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_where_bytes_are_cut_makes_no_difference(
    data: bytes, cuts: list[int], ends: bool, fast: bool
) -> None:
    """In pieces or at once: the same answer, or an error both times."""
    whole, failed = _read(data, [], ends, fast)
    pieces, pieces_failed = _read(data, cuts, ends, fast)
    assert failed == pieces_failed
    assert (whole.status, whole.headers) == (pieces.status, pieces.headers)
    assert whole.complete == pieces.complete


@pytest.mark.parametrize("fast", [False, True], ids=["h11", "fast"])
@pytest.mark.parametrize(
    "begin",
    [
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nT: ",
    ],
    ids=["head", "chunk", "trailer"],
)
def test_heads_and_their_like_have_a_limit(fast: bool, begin: bytes) -> None:
    """A header, a chunk's or a trailer, that does not end is an error before memory is gone."""
    reading = Reading(fast=fast)
    reading.feed(begin)
    with pytest.raises(httpx.RemoteProtocolError):
        for _ in range(2 * MAX_HEAD_BYTES // 1024):
            reading.feed(b"a" * 1024)


@pytest.mark.parametrize("fast", [False, True], ids=["h11", "fast"])
def test_a_limit_is_not_for_bodies(fast: bool) -> None:
    """Bodies are as long as they are, chunked or not."""
    for head, piece in (
        (b"Content-Length: 1024000", b"x" * 1024),
        (b"Transfer-Encoding: chunked", b"400\r\n" + b"x" * 1024 + b"\r\n"),
    ):
        reading, size = Reading(fast=fast), 0
        reading.feed(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        for _ in range(1000):
            reading.feed(piece)
            size += len(reading.take())
        assert size == 1_024_000


def test_the_end_of_a_complete_answer_is_no_error() -> None:
    """But nothing more can be sent."""
    reading = Reading()
    reading.feed(SEEDS[0])
    assert reading.complete and reading.reusable
    reading.end()
    assert not reading.reusable
