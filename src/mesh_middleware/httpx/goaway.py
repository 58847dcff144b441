"""
What a server says about streams that it does not process, on one HTTP/2 connection.

Owns the look at frames between the socket and the HTTP/2 library. Pure: bytes in, bytes out.

Theory. A server ends a connection by GOAWAY, which names the highest stream it has processed or
will: those above were not touched, those below it goes on answering (RFC 9113, 6.8). The library
(h2) takes GOAWAY for the end of everything, and would drop the answers that are still to come. So
GOAWAY is kept from it; what it is given instead, for each stream that will not be processed, is a
RST_STREAM that says so (8.7). No new stream is opened here afterwards: that is the caller's part.

A server that has answered before the request was all there may ask for no more of it, by a
RST_STREAM without error (8.1). To the library that, too, would be the end of the answer: it sends
the rest to nobody instead.
"""

from __future__ import annotations

HEAD = 9
"""Bytes of a frame's head. Source: RFC 9113, 4.1."""
MAX_KEPT = 16384
"""Bytes of a frame that is looked into at most: the largest that we allow a peer."""
DATA, HEADERS, RST_STREAM, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0x0, 0x1, 0x3, 0x7, 0x8, 0x9
NOTHING = 0xFE
"""A kind that nobody knows, and everybody ignores. Source: RFC 9113, 5.5."""
END_STREAM, END_HEADERS = 0x1, 0x4
REFUSED_STREAM, CANCEL = 0x7, 0x8
"""Error codes: nothing was processed; nobody wants it any more. Source: RFC 9113, 7."""
ROOM = 2**24
"""Bytes of a body that may go to nobody: far from the 2**31 - 1 that a window may have."""
_ID = 0x7FFFFFFF


class Frames:
    """
    What came over one connection.

    Attributes:
        last: highest stream that the server may have processed, once it has said GOAWAY.
        heard: times that bytes came.
    """

    def __init__(self) -> None:
        self.last: int | None = None
        self.heard = 0
        self._refused: set[int] = set()
        self._uploading: set[int] = set()
        self._answered: set[int] = set()
        self._given_up: set[int] = set()
        self._cancelled = self._to_cancel = b""
        self._opened = self._told = 0
        self._passing, self._rest = 0, b""
        self._in_headers = False

    def opened(self, stream: int) -> None:
        """Note that *stream* was opened: its head is on the way, its body follows."""
        self._opened = max(self._opened, stream)
        self._uploading.add(stream)

    def sent(self, stream: int) -> None:
        """Note that all of *stream* is on the way, or nothing more will be."""
        for streams in (self._uploading, self._answered, self._given_up):
            streams.discard(stream)

    def processed(self, stream: int) -> bool:
        """Whether the server may have processed *stream*."""
        refused = stream in self._refused or (self.last is not None and stream > self.last)
        return not refused

    def cancel(self, stream: int) -> None:
        """
        Note that nobody waits for *stream* any more: both ends are to forget it.

        httpcore tells neither the server nor h2, and both would count it among those that are
        open, until there are too many. What the server will not process it has forgotten already;
        there are some (Hypercorn 0.18, when it ends) that drop the connection if they hear more.
        """
        self.sent(stream)
        if not self.processed(stream):
            return
        reset = _frame(RST_STREAM, stream, CANCEL)
        self._cancelled, self._to_cancel = self._cancelled + reset, self._to_cancel + reset

    def cancelled(self) -> bytes:
        """What the server is to be told of it, once."""
        told, self._to_cancel = self._to_cancel, b""
        return told

    def take(self, data: bytes) -> bytes:
        """
        Look at what came.

        Returns:
            What the library shall see of it; empty when that has to wait for more.
        """
        self.heard += 1
        data = self._rest + data
        at = min(self._passing, len(data))
        self._passing -= at
        seen = [data[:at]]
        while len(data) - at >= HEAD:
            end = at + HEAD + int.from_bytes(data[at : at + 3])
            kind, stream = data[at + 3], int.from_bytes(data[at + 5 : at + HEAD]) & _ID
            if kind in (RST_STREAM, GOAWAY) and end - at <= HEAD + MAX_KEPT:
                if len(data) < end:
                    break
                seen.append(self._look(kind, stream, data[at:end]))
            else:
                if kind in (DATA, HEADERS) and data[at + 4] & END_STREAM:
                    self._answered |= self._uploading & {stream}
                if kind in (HEADERS, CONTINUATION):
                    self._in_headers = not data[at + 4] & END_HEADERS
                seen.append(data[at:end])
                self._passing = max(0, end - len(data))
            at = min(end, len(data))
        self._rest = data[at:]
        return b"".join(seen)

    def _look(self, kind: int, stream: int, frame: bytes) -> bytes:
        """Take note of a frame; returns what the library shall see instead."""
        body = frame[HEAD:]
        if kind == RST_STREAM:
            if int.from_bytes(body) == REFUSED_STREAM:
                self._refused.add(stream)
            if stream not in self._answered:
                return frame
            if stream in self._given_up:
                return b""  # a complaint about what still comes
            self._given_up.add(stream)
            return _frame(WINDOW_UPDATE, stream, ROOM)
        if len(body) < 8:
            return frame  # the library knows what to make of that
        last = int.from_bytes(body[:4]) & _ID
        # A server may say it twice, the second time with a lower stream; never with a higher.
        self.last = last if self.last is None else min(last, self.last)
        self._told = self.last
        return b""

    @property
    def uploading(self) -> bool:
        """Whether a body is on its way."""
        return bool(self._uploading)

    def nothing(self) -> bytes:
        """What means nothing to the library; empty where it must not stand."""
        return b"" if self._in_the_middle else _frame(NOTHING, 0, 0)

    @property
    def _in_the_middle(self) -> bool:
        # What was given last was half of a frame, or of a block of headers.
        return self._passing > 0 or self._in_headers

    def resets(self) -> bytes:
        """Tell the library of the streams that will not be answered, each once; else empty."""
        if self._in_the_middle:
            return b""
        told, self._cancelled = self._cancelled, b""
        return told + self._refusals()

    def _refusals(self) -> bytes:
        if self.last is None or self._opened <= self._told:
            return b""
        first, opened = (self._told + 1) | 1, self._opened
        self._told = opened
        return b"".join(
            _frame(RST_STREAM, stream, REFUSED_STREAM) for stream in range(first, opened + 1, 2)
        )


def _frame(kind: int, stream: int, number: int) -> bytes:
    body = number.to_bytes(4)
    return len(body).to_bytes(3) + bytes((kind, 0)) + stream.to_bytes(4) + body
