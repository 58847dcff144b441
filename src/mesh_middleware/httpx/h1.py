"""
An answer as HTTP/1.1 writes it, read as it arrives.

Owns the reading of response heads and bodies: usual ones as `usual` says, others by httptools where
it is installed and by h11 otherwise. All fill a `Reading`. Knows no sockets: bytes come in by
`feed` and `end`.

Theory. h11 is what httpx itself reads with, so h11 is the judge of what an answer means.
httptools is twenty times as fast and differs at the edges. Where it refuses a head, the same bytes
go to h11, whose word then counts; where it is laxer (versions, codings, statuses) it is held to
h11's rules here; and answers with a framing of their own (HEAD, CONNECT, Upgrade, any 1xx) go to
h11 at once. Each answer gets a new parser, so nothing of one can leak into the next; bytes after
its end make the connection unfit for another.

Source: RFC 9112, 4 to 7 and 9.3.
"""

from __future__ import annotations

import re
from typing import Any

import h11

from .library import httpx
from .usual import read_usual

try:
    import httptools
except ImportError:  # pragma: no cover - the suite runs with httptools, and says so of h11 by name
    httptools = None  # type: ignore[assignment, unused-ignore]

MAX_INTERIM = 100
"""Interim answers (1xx) that one request takes; an upstream could send them without end."""
MAX_HEAD_BYTES = 100 * 1024
"""Longest head, chunk header or trailer. Source: httpcore, ``MAX_INCOMPLETE_EVENT_SIZE``."""

PIECE = 64 * 1024
"""Bytes parsed at once while the head is not complete, so that its limit holds however it comes."""

_REASON = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_NO_ANSWER = "Server disconnected without sending a response."
_CUT_SHORT = "peer closed connection without sending complete message body"
_HOST = (b"host", b"x")
_END = h11.EndOfMessage()


def _asked(method: bytes, *headers: tuple[bytes, bytes]) -> h11.Request:
    return h11.Request(method=method, target=b"/", headers=[_HOST, *headers])


# h11 reads an answer in the light of the request. Only what changes the framing of the answer is
# told to it; the request itself was written, and judged, by `wire`.
_GET = _asked(b"GET")
_HEAD = _asked(b"HEAD")
_CONNECT = _asked(b"CONNECT")
_UPGRADE = _asked(b"GET", (b"connection", b"upgrade"), (b"upgrade", b"x"))


class Reading:
    """
    One answer, as far as it has come.

    Args:
        method: of the request.
        upgrades: whether the answer may turn the connection into something else.
        fast: whether anybody but h11 may read it.

    Attributes:
        status: final status, or 101; 0 before the head is complete.
        reason: phrase after the status.
        version: ``HTTP/1.1`` or ``HTTP/1.0``.
        headers: as they came.
        parts: pieces of the body not taken yet.
        size: bytes in `parts`.
        complete: whether the answer is all there.
        reusable: whether, then, the connection may carry another request.
        switched: whether the connection now speaks something else; `rest` is its beginning.
        rest: what it said since.
    """

    __slots__ = (
        "_engine",
        "_fresh",
        "_left",
        "complete",
        "headers",
        "parts",
        "reason",
        "rest",
        "reusable",
        "size",
        "status",
        "switched",
        "version",
    )

    def __init__(self, method: str = "GET", upgrades: bool = False, fast: bool = True) -> None:
        self.status = 0
        self.reason = b""
        self.version = b"HTTP/1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.size = 0
        self.complete = False
        self.reusable = False
        self.switched = False
        self.rest = b""
        self._left = 0
        self._engine: Any = None
        self._fresh = fast and not upgrades and method != "HEAD"
        if not self._fresh:
            self._engine = _H11(self, method, upgrades)

    def feed(self, data: bytes) -> None:
        """
        Take bytes from the connection.

        Raises:
            httpx.RemoteProtocolError: they are no HTTP/1.1.
        """
        if self.complete:
            self.reusable = False
        elif self._left:
            self._measure(data)
        elif self.switched:
            self.rest += data
        elif data:
            if self._fresh:
                self._fresh = False
                if self._read_usual(data):
                    return
                self._engine = _H11(self) if httptools is None else _Httptools(self)
            while len(data) > PIECE and not self.status:
                self._engine.feed(data[:PIECE])
                data = data[PIECE:]
            self._engine.feed(data)
            if self.complete:
                self._engine.close()
                self._engine = None

    def _read_usual(self, data: bytes) -> bool:
        head = read_usual(data)
        if head is None:
            return False
        self.status, self.reason, self.headers, self._left, end = head
        self._measure(data[end:])
        return True

    def _measure(self, part: bytes) -> None:
        over = len(part) > self._left
        if over:
            part = part[: self._left]
        if part:
            self._left -= len(part)
            self.parts.append(part)
            self.size += len(part)
        if not self._left:
            self.complete, self.reusable = True, not over

    def end(self) -> None:
        """
        Take the end of the connection.

        Raises:
            httpx.RemoteProtocolError: the answer was not complete.
        """
        if not self.complete and not self.switched:
            if self._fresh:
                raise httpx.RemoteProtocolError(_NO_ANSWER)
            if self._left:
                raise httpx.RemoteProtocolError(_CUT_SHORT)
            self._engine.end()
        self.reusable = False

    def take(self) -> bytes:
        """Take what there is of the body."""
        parts, self.parts, self.size = self.parts, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def whole(self) -> bytes:
        """Look at what there is of the body, without taking it."""
        parts = self.parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def add(self, part: bytes) -> None:
        """Append to the body."""
        self.parts.append(part)
        self.size += len(part)


class _H11:
    def __init__(self, reading: Reading, method: str = "GET", upgrades: bool = False) -> None:
        self._reading = reading
        self._interim = 0
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        asked = _GET
        if method == "HEAD":
            asked = _HEAD
        elif method == "CONNECT":
            asked = _CONNECT
        elif upgrades:
            asked = _UPGRADE
        self._connection.send(asked)
        self._connection.send(_END)

    def feed(self, data: bytes) -> None:
        self._receive(data)

    def end(self) -> None:
        if not self._reading.status:
            raise httpx.RemoteProtocolError(_NO_ANSWER)
        self._receive(b"")

    def close(self) -> None:
        pass

    def _receive(self, data: bytes) -> None:
        try:
            self._connection.receive_data(data)
            while not self._reading.complete and not self._reading.switched:
                event = self._connection.next_event()
                if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                    return
                self._apply(event)
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error

    def _apply(self, event: Any) -> None:
        reading, connection = self._reading, self._connection
        if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise httpx.RemoteProtocolError(f"more than {MAX_INTERIM} interim answers")
        elif isinstance(event, h11.Data):
            reading.add(bytes(event.data))
        elif isinstance(event, h11.Response) or (
            isinstance(event, h11.InformationalResponse) and event.status_code == 101
        ):
            reading.status = event.status_code
            reading.reason = event.reason
            reading.version = b"HTTP/" + event.http_version
            reading.headers = event.headers.raw_items()
            if connection.their_state is h11.SWITCHED_PROTOCOL:
                reading.switched = True
                reading.rest = connection.trailing_data[0]
        elif isinstance(event, h11.EndOfMessage):
            reading.complete = True
            reading.reusable = (
                connection.their_state is h11.DONE
                and not connection.trailing_data[0]
                and not _is_framed_twice(reading.headers)
            )


def _is_framed_twice(headers: list[tuple[bytes, bytes]]) -> bool:
    # h11 believes the coding and goes on; what a proxy between believed is unknown (RFC 9112, 6.3).
    names = {name.lower() for name, _ in headers}
    return b"content-length" in names and b"transfer-encoding" in names


class _Httptools:
    """The callbacks' names are httptools'."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._parser: Any = httptools.HttpResponseParser(self)
        self._raw: list[bytes] = []
        self._held = 0
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._coding: bytes | None = None
        self._measured = False
        self._barren = 0
        self._to_the_end = False
        self._over = False

    def feed(self, data: bytes) -> None:
        reading = self._reading
        began, had = bool(reading.status), reading.size
        if not began:
            self._raw.append(data)
            self._held += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if reading.complete:
                reading.reusable = False
            elif reading.status:
                raise httpx.RemoteProtocolError(str(error)) from error
            else:
                self._give_up()
            return
        if not reading.status:
            self._limit(self._held)
        elif began and not reading.complete:
            # Chunk headers and trailers are held in C as long as they like: not here.
            self._barren = 0 if reading.size > had else self._barren + len(data)
            self._limit(self._barren)

    def _limit(self, held: int) -> None:
        if held > MAX_HEAD_BYTES:
            raise httpx.RemoteProtocolError("Receive buffer too long")

    def _give_up(self) -> None:
        judge = self._reading._engine = _H11(self._reading)
        judge.feed(b"".join(self._raw))

    def end(self) -> None:
        reading = self._reading
        if not reading.status:
            raise httpx.RemoteProtocolError(_NO_ANSWER)
        if not self._to_the_end:
            raise httpx.RemoteProtocolError(_CUT_SHORT)
        reading.complete = True

    def close(self) -> None:
        # The parser holds our callbacks and we hold the parser: without this every answer would
        # be left to the garbage collector.
        self._parser = None

    def on_message_begin(self) -> None:
        # Bytes after the answer look like another one: llhttp goes on, we do not.
        if self._reading.complete:
            self._over = True
            self._reading.reusable = False

    def on_status(self, phrase: bytes) -> None:
        if not self._reading.status:
            self._reason += phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._reading.status:
            # llhttp keeps blanks after a value; they are no part of it (RFC 9112, 5.1).
            length = len(name)
            if length == 14 and name.lower() == b"content-length":
                self._measured = True
            elif length == 17 and name.lower() == b"transfer-encoding":
                value = value.lower()
                self._coding = value if self._coding is None else b"%b, %b" % (self._coding, value)
            self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self._over:
            return
        status, version = self._parser.get_status_code(), self._parser.get_http_version()
        # Raising here makes h11 judge the same bytes: these are the places where llhttp is laxer.
        if not _REASON.fullmatch(self._reason) or not b"".join(self._raw).startswith(b"HTTP/"):
            raise ValueError("a status line h11 may refuse")
        self._check(status, version)
        reading = self._reading
        reading.status, reading.reason, reading.headers = status, self._reason, self._headers
        reading.version = b"HTTP/1.1" if version == "1.1" else b"HTTP/1.0"
        self._raw.clear()

    def _check(self, status: int, version: str) -> None:
        if status < 200 or version not in ("1.1", "1.0"):
            raise ValueError("an interim answer, or none to an ordinary request")
        if self._coding not in (None, b"chunked"):
            raise ValueError("only one coding is known: chunked")
        self._to_the_end = self._coding is None and not self._measured

    def on_body(self, part: bytes) -> None:
        if not self._reading.complete:
            self._reading.add(part)

    def on_message_complete(self) -> None:
        reading = self._reading
        if reading.status and not reading.complete:
            reading.complete = True
            reading.reusable = reading.version == b"HTTP/1.1" and self._parser.should_keep_alive()
