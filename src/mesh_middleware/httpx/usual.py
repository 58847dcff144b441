"""
The head of a usual answer, read at once.

Owns what counts as usual: HTTP/1.1, no status without a body, plain lines, one Content-Length, and
nothing else that says where the answer ends or what becomes of the connection. Such a head means
the same to every reader, so two regular expressions may read it; a parser that is called back for
each of its parts costs four times as much. All else is `h1`'s.

Source: RFC 9112, 4, 5 and 6.3; possessive quantifiers, so that no head is looked at twice.
"""

from __future__ import annotations

import re

_LINE = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++: ?[\x21-\x7e][\x20-\x7e]*+(?<! )\r\n"
_HEAD = re.compile(rb"HTTP/1\.1 ([2-5][0-9]{2}) ([\x20-\x7e]*+)\r\n((?:%b)*+)\r\n" % _LINE)
_FIELD = re.compile(rb"([^:]++): ?([^\r]++)\r\n")
_BODILESS = frozenset({204, 304})
_UNUSUAL = frozenset({b"transfer-encoding", b"proxy-connection", b"upgrade"})
_LENGTHS = frozenset(map(len, (b"content-length", b"connection", *_UNUSUAL)))
MAX_DIGITS = 15


Head = tuple[int, bytes, list[tuple[bytes, bytes]], int, int]
"""Status, reason, headers, length of the body, and where it begins."""


def read_usual(data: bytes) -> Head | None:
    """
    Read the head that *data* begins with.

    Returns:
        ``None`` when it is not usual, or not all there.
    """
    found = _HEAD.match(data)
    if found is None:
        return None
    status, length = int(found[1]), -1
    headers = _FIELD.findall(found[3])
    for name, value in headers:
        if len(name) not in _LENGTHS:
            continue
        name = name.lower()
        if name == b"content-length":
            if length >= 0 or not value.isdigit() or len(value) > MAX_DIGITS:
                return None
            length = int(value)
        elif name in _UNUSUAL or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
    if length < 0 or status in _BODILESS:
        return None
    return status, found[2], headers, length, found.end()
