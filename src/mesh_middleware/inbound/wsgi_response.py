"""
The response of one WSGI request, in the application's thread.

Owns ``start_response``, ``write`` and the iteration: what PEP 3333 asks of a server. It decides
what is sent; `response_queue` carries it to the event loop.

Source: PEP 3333; RFC 9110, 6.4.1, 8.6 and 9.3.2.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from wsgiref.util import is_hop_by_hop

from .response_queue import Head, ResponseQueue

_log = logging.getLogger("mesh_middleware.inbound")

Write = Callable[[bytes], None]

_STATUS = re.compile(r"[2-9][0-9]{2}(?: [\t \x21-\x7e\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t \x21-\x7e\x80-\xff]*")
_NO_BODY = frozenset({204, 304})


class _Started(NamedTuple):
    head: Head
    length: int | None
    bodiless: bool


class Response:
    """
    What an application answers to one request.

    Args:
        queue: carries it.
        method: of the request.
    """

    def __init__(self, queue: ResponseQueue, method: str) -> None:
        self._queue, self._method = queue, method
        self._started: _Started | None = None
        self._sent = 0
        self.begun = False
        """Whether anything of it was queued: its status cannot be changed any more."""
        self.complete = False
        """Whether all of it was queued."""

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Write:
        """
        ``start_response`` of PEP 3333.

        Raises:
            AssertionError: called twice without *exc_info*.
            TypeError: an argument is of a wrong type.
            ValueError: the status or a header is malformed.
        """
        if exc_info:
            try:
                if self.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # it holds this frame
        elif self._started is not None:
            raise AssertionError("start_response was called again without exc_info")
        self._started = _start(status, headers, self._method)
        return self.write

    def write(self, data: bytes, /) -> None:
        """The ``write`` callable: queue *data*, and wait until there is room for more."""
        _check_bytes(data)
        if data and not self.complete:
            self._send([data])

    def send_all(self, pieces: Iterable[bytes]) -> None:
        """
        Send what the application returned, to its end.

        Raises:
            ResponseAbortedError: the response cannot be sent any more.
            BaseException: of the application.
        """
        if isinstance(pieces, list | tuple):
            for piece in pieces:
                _check_bytes(piece)
            if held := [piece for piece in pieces if piece]:
                # In memory already: the thread does not wait for the reader.
                self._send(held, last=True)
        else:
            self._iterate(pieces)
        self._finish()

    def _iterate(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            _check_bytes(piece)
            if not piece:
                continue
            if self.complete:
                # PEP 3333: stop iterating when enough was sent. What the application does behind
                # its last piece was done before this one came.
                return
            self._send([piece])

    def _send(self, pieces: list[bytes], *, last: bool = False) -> None:
        started = self._demand_start()
        if started.bodiless:
            pieces, last = [], True
        elif started.length is not None:
            size = sum(map(len, pieces))
            left = started.length - self._sent
            if size > left:
                _log.debug("the response is longer than its Content-Length; the rest is dropped")
                pieces = _cut(pieces, left)
            elif size < left:
                last = False  # ends early: never an end that looks complete
            last = last or size >= left
            self._sent += min(size, left)
        head = None if self.begun else started.head
        self.begun = True
        self._queue.put(head, pieces, last=last)
        self.complete = last

    def _finish(self) -> None:
        if self.complete:
            return
        started = self._demand_start()
        if started.length is not None and self._sent < started.length and not started.bodiless:
            raise ShortResponseError(self._sent, started.length)
        head = None if self.begun else started.head
        self.begun = True
        self._queue.put(head, [], last=True)
        self.complete = True

    def _demand_start(self) -> _Started:
        if self._started is None:
            raise RuntimeError("the application did not call start_response")
        return self._started


class ShortResponseError(Exception):
    """The application sent less than its Content-Length says."""

    def __init__(self, sent: int, length: int) -> None:
        super().__init__(f"the response ended after {sent} of {length} bytes")


def _start(status: str, headers: list[tuple[str, str]], method: str) -> _Started:
    if not isinstance(status, str):
        raise TypeError(f"the status must be a str, not {type(status).__name__}")
    if not _STATUS.fullmatch(status):
        raise ValueError(f"malformed status {status[:100]!r}")
    code = int(status[:3])
    length, sent = None, []
    for name, value in headers:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("names and values of headers must be str")
        if not _NAME.fullmatch(name):
            raise ValueError(f"malformed header name {name[:100]!r}")
        if not _VALUE.fullmatch(value):
            # Without the value, which may be a secret.
            raise ValueError(f"malformed value of header {name}")
        lower = name.lower()
        if is_hop_by_hop(lower):
            continue
        if lower == "content-length":
            if length is not None or not (value.isascii() and value.isdigit()):
                raise ValueError("malformed or repeated Content-Length")
            length = int(value)
            if code in _NO_BODY:
                # RFC 9110, 8.6: never with 204, and optional with 304, where clients that stand on
                # the library h2 would wait for as many bytes.
                continue
        sent.append((lower.encode("ascii"), value.strip(" \t").encode("latin-1")))
    bodiless = method == "HEAD" or code in _NO_BODY
    return _Started(Head(code, sent), length, bodiless)


def _check_bytes(piece: object) -> None:
    if not isinstance(piece, bytes):
        raise TypeError(f"a piece of the response must be bytes, not {type(piece).__name__}")


def _cut(pieces: list[bytes], size: int) -> list[bytes]:
    kept = []
    for piece in pieces:
        if size <= 0:
            break
        kept.append(piece[:size])
        size -= len(piece)
    return kept
