"""
A request as HTTP/1.1 writes it.

Owns the head's bytes and the framing of the body, and refuses whatever would let a header, method
or target smuggle a second request in. The same for sync and async; knows no sockets.

Source: RFC 9110, 5.5 and 5.6.2; RFC 9112, 3, 6 and 7.1. As strict as h11, and stricter about
control characters; a Content-Length beside Transfer-Encoding is left out, as 6.2 demands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .drawn import Drawn
from .library import httpx

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff]+(?:[ \t]+[\x21-\x7e\x80-\xff]+)*)?")
_LENGTH = re.compile(rb"[0-9]{1,20}")
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})
"""Methods that may be sent again. Source: RFC 9110, 9.2.2."""

_FRAMING = frozenset({b"connection", b"content-length", b"host", b"transfer-encoding", b"upgrade"})
"""Headers that say where a request ends and to whom it belongs: no route changes them."""

_REMEMBERED = frozenset({b"accept", b"accept-encoding", b"accept-language", b"user-agent"})
_HARMLESS = ((b"Connection", b"keep-alive"), (b"Content-Type", b"application/json"))
MAX_PLAIN = 256
_plain: dict[tuple[bytes, bytes], bytes] = {}
"""Lines judged before: what nearly every request of a client repeats. Never one that frames a
request or may be a secret."""
MAX_HEADS = 256
MAX_HEAD_BYTES = 1024
Heads = dict[tuple[Any, ...], bytes]
"""Heads judged before, by method, target and fields: those made of such lines and one Host."""


class Outgoing:
    """
    One request, ready to be written.

    Args:
        request: as httpx made it.
        trace: headers to add, unless the request has a trace of its own.
        heads: those of earlier requests to the same upstream.

    Attributes:
        head: request line and headers, with the empty line.
        body: the whole body, framed; ``None`` when it has to be drawn from `stream`.
        stream: the body's parts, unframed; ``None`` when `body` has them.
        method: upper case.
        closes: whether the connection ends with this request.
        upgrades: whether the answer may turn the connection into something else.
        target: request target, as it was asked for.
        fields: headers, as they were asked for, and the trace's.
        aimed: headers of the head, where it was written otherwise than asked for.
        sent: whether any byte may have reached the instance tried last.
    """

    __slots__ = (
        "_chunked",
        "_heads",
        "_left",
        "aimed",
        "body",
        "closes",
        "fields",
        "head",
        "method",
        "sent",
        "stream",
        "target",
        "upgrades",
    )

    def __init__(
        self,
        request: httpx.Request,
        trace: Sequence[tuple[bytes, bytes]] = (),
        heads: Heads | None = None,
    ) -> None:
        self._heads: Heads = {} if heads is None else heads
        self.method = request.method
        self.target = request.url.raw_path
        self.fields: list[tuple[bytes, bytes]] = request.headers.raw
        if trace and "traceparent" not in request.headers:
            self.fields = [*self.fields, *trace]
        self.sent = False
        self.aimed: list[tuple[bytes, bytes]] | None = None
        self.head = self._write_head(self.target, self.fields)
        self.stream: Any = None
        self.body: bytes | None = b""
        if not isinstance(request.stream, httpx.ByteStream):
            self.stream, self.body = Drawn(request.stream), None
        elif content := b"".join(request.stream):
            self.body = self.frame(content) + self.finish()
        else:
            self.body = self.finish()

    def aim(self, target: bytes, fields: list[tuple[bytes, bytes]]) -> None:
        """
        Write the head anew, for an instance that is to get it otherwise.

        Args:
            target: request target.
            fields: headers; those that frame the body stay what they were.

        Raises:
            httpx.LocalProtocolError: they are unfit to be sent.
        """
        kept = [field for field in self.fields if field[0].lower() in _FRAMING]
        others = [field for field in fields if field[0].lower() not in _FRAMING]
        self.aimed = [*others, *kept]
        self.head = self._write_head(target, self.aimed)

    @property
    def repeatable(self) -> bool:
        """Whether it does no harm when this request reaches the upstream twice."""
        return self.stream is None and self.method in _IDEMPOTENT

    def frame(self, part: bytes) -> bytes:
        """
        Frame one part of the body.

        Raises:
            httpx.LocalProtocolError: the body is longer than the headers said.
        """
        if self._chunked:
            return b"%x\r\n%b\r\n" % (len(part), part) if part else b""
        self._left -= len(part)
        if self._left < 0:
            raise httpx.LocalProtocolError("Too much data for declared Content-Length")
        return part

    def finish(self) -> bytes:
        """
        End the body.

        Raises:
            httpx.LocalProtocolError: the body is shorter than the headers said.
        """
        if self._chunked:
            return b"0\r\n\r\n"
        if self._left:
            raise httpx.LocalProtocolError("Too little data for declared Content-Length")
        return b""

    def _write_head(self, target: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
        self.closes, self.upgrades = False, self.method == "CONNECT"
        self._chunked, self._left = False, 0
        whole = (self.method, target, *fields)
        known = self._heads.get(whole)
        if known is not None:
            return known
        method = self.method.encode("ascii", "replace")
        _demand(_TOKEN, method, "method")
        _demand(_TARGET, target, "request target")
        lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
        hosts = plain = 0
        lengths: list[bytes] = []
        for field in fields:
            line = _plain.get(field)
            if line is not None:
                plain += 1
            else:
                name = field[0].lower()
                line = _write_line(name, field)
                if name == b"host":
                    hosts += 1
                elif name == b"content-length":
                    lengths.append(line)
                elif name == b"transfer-encoding":
                    self._chunk(field[1])
                elif name == b"connection":
                    self.closes |= b"close" in field[1].lower().replace(b" ", b"").split(b",")
                elif name == b"upgrade":
                    self.upgrades = True
            lines.append(line)
        if hosts != 1:
            raise httpx.LocalProtocolError("A request has exactly one Host header")
        if self._chunked:
            lines = [line for line in lines if line not in lengths]
        elif lengths:
            self._left = _measure(lengths)
        lines.append(b"\r\n")
        head = b"".join(lines)
        if plain + 1 == len(fields) and len(head) <= MAX_HEAD_BYTES:
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[whole] = head
        return head

    def _chunk(self, value: bytes) -> None:
        if self._chunked or value.lower() != b"chunked":
            raise httpx.LocalProtocolError("Only one Transfer-Encoding is known: chunked")
        self._chunked = True


def _write_line(name: bytes, field: tuple[bytes, bytes]) -> bytes:
    if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(field[1]):
        raise httpx.LocalProtocolError(f"Illegal header {name!r}: {_shown(name, field[1])}")
    line = b"%b: %b\r\n" % field
    if (name in _REMEMBERED or field in _HARMLESS) and len(_plain) < MAX_PLAIN and len(line) < 256:
        _plain[field] = line
    return line


def _measure(lines: list[bytes]) -> int:
    values = {line.partition(b": ")[2].strip() for line in lines}
    value = values.pop()
    if values or not _LENGTH.fullmatch(value):
        raise httpx.LocalProtocolError("bad Content-Length")
    return int(value)


def _demand(rule: re.Pattern[bytes], value: bytes, what: str) -> None:
    if not rule.fullmatch(value):
        raise httpx.LocalProtocolError(f"Illegal {what}: {value!r}")


def _shown(name: bytes, value: bytes) -> str:
    # A header that carries a secret must not carry it into a log.
    secret = name.lower() in (
        b"authorization",
        b"cookie",
        b"proxy-authorization",
        b"x-consul-token",
    )
    return "[secure]" if secret else repr(value)
