"""
What a decision may look at: one request, as lazily as possible.

Owns how a request's parts are found in an ASGI scope, a WSGI environ or plain values. Nothing is
read before it is asked for, so that a decision about identity alone costs nothing here. Knows
nothing of rules, and changes nothing in what it reads.

Where the raw request target is known (`target` is not ``None``) it is what proxies see. Where a
server hides it, what the application will see is all there is: `path`, percent-decoded.

Source: ASGI 3.0 HTTP and WebSocket scopes; PEP 3333.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from .paths import has_nul
from .wire import split_target

Header = tuple[bytes, bytes]

_RAW_TARGETS = ("RAW_URI", "REQUEST_URI")
"""Keys under which WSGI servers offer the raw target: Gunicorn and Werkzeug, in this order."""

_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_is_unescaped = re.compile(rb"/[!\"$&->@-~]*").fullmatch
_is_plain_query = re.compile(rb"[!\"$-~]*").fullmatch

KNOWN_TARGETS = 1024
"""Raw paths remembered as sound, none longer than `KNOWN_LENGTH`: a service has few of them."""

KNOWN_LENGTH = 128

LONG_QUERY = 60_000
"""Bytes from which on a query can make a target too long, whatever the path."""

_known: set[bytes] = set()

_CGI_HEADERS = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}


def _remember(raw: bytes) -> bool:
    if len(raw) <= KNOWN_LENGTH:
        if len(_known) >= KNOWN_TARGETS:
            _known.clear()
        _known.add(raw)
    return True


class RequestFacts(ABC):
    """
    One request, as far as rules can see it.

    Subclasses read from what their server offers; every property may be asked several times.
    """

    __slots__ = ()

    names_lowered: bool = True
    """Whether header names are in lower case already."""

    dashes_known: bool = True
    """Whether ``-`` and ``_`` in header names can be told apart; not so in a WSGI environ."""

    @property
    @abstractmethod
    def method(self) -> bytes:
        """Request method, as it was sent; ``GET`` for a WebSocket."""

    @property
    @abstractmethod
    def target(self) -> bytes | None:
        """Raw request target with its query; ``None`` where the server hides it."""

    @property
    @abstractmethod
    def path(self) -> bytes:
        """Path the application routes by, percent-decoded, without query."""

    @property
    @abstractmethod
    def query(self) -> bytes:
        """Query without its ``?``; empty when there is none."""

    @property
    @abstractmethod
    def headers(self) -> Sequence[Header]:
        """All headers in order, repeats apart where the server keeps them so."""

    @property
    def odd_query(self) -> bool:
        """Whether the query has ``#``, space, control or non-ASCII bytes: no sound client's."""
        query = self.query
        return query != b"" and _is_plain_query(query) is None

    @property
    def sound(self) -> bool:
        """
        Whether a sound client may have sent this target: if not, it is refused by any policy.

        Source: design 3.3; Envoy refuses the same before its rules are asked.
        """
        target = self.target
        if target is not None:
            parts = split_target(target)
            return parts is not None and not has_nul(parts.path)
        path = self.path
        return path.startswith(b"/") and b"\0" not in path and not self.odd_query

    @property
    def key(self) -> Hashable:
        """Everything that a rule on method and path can see: equal keys, equal answers."""
        return (self.method, self.target, self.path)


class HttpFacts(RequestFacts):
    """
    A request from plain values, as it stood on the wire: for tests and for explaining.

    Args:
        method: request method.
        target: request target, with its query.
        headers: names and values in order; names in any case.
    """

    __slots__ = ("_headers", "_method", "_target")
    names_lowered = False

    def __init__(self, method: bytes, target: bytes, headers: Sequence[Header] = ()) -> None:
        self._method = method
        self._target = target
        self._headers = headers

    def __repr__(self) -> str:
        return f"HttpFacts({self._method!r}, {self._target!r}, {len(self._headers)} headers)"

    @property
    def method(self) -> bytes:
        return self._method

    @property
    def target(self) -> bytes | None:
        return self._target

    @property
    def path(self) -> bytes:
        found = _ABSOLUTE.match(self._target)
        path = self._target[found.end() :] if found else self._target
        return unquote_to_bytes(path.partition(b"?")[0]) or b"/"

    @property
    def query(self) -> bytes:
        return self._target.partition(b"?")[2]

    @property
    def headers(self) -> Sequence[Header]:
        return self._headers


class AsgiFacts(RequestFacts):
    """
    A request in an ASGI scope of type ``http`` or ``websocket``.

    Args:
        scope: the scope; only read.
        key: its `asgi_key`, where that is known already.

    Source: ASGI, "HTTP Connection Scope" and "Websocket Connection Scope"; ``raw_path``,
    ``headers`` and, for WebSockets, ``query_string`` are optional there.
    """

    __slots__ = ("_key", "scope")

    def __init__(self, scope: Mapping[str, Any], key: Hashable | None = None) -> None:
        self.scope = scope
        self._key = key

    def __repr__(self) -> str:
        return f"AsgiFacts({self.method!r}, {self.target or self.path!r})"

    @property
    def method(self) -> bytes:
        method: str = self.scope.get("method", "GET")
        return method.encode("latin-1", "replace")

    @property
    def target(self) -> bytes | None:
        raw: bytes | None = self.scope.get("raw_path")
        if not raw:
            return None
        query = self.scope.get("query_string")
        return raw + b"?" + query if query else raw

    @property
    def path(self) -> bytes:
        path: str = self.scope["path"]
        try:
            return path.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # half of a surrogate pair: no server makes one
            return path.encode("utf-8", "surrogatepass")

    @property
    def query(self) -> bytes:
        query: bytes = self.scope.get("query_string", b"")
        return query

    @property
    def headers(self) -> Sequence[Header]:
        headers: Sequence[Header] = self.scope.get("headers", ())
        return headers

    @property
    def sound(self) -> bool:
        scope = self.scope
        raw = scope.get("raw_path")
        # What nearly every request is takes one look.
        if raw in _known or (raw and _is_unescaped(raw) and _remember(raw)):
            query = scope.get("query_string")
            if not query or _is_plain_query(query):
                return True
        return RequestFacts.sound.fget(self)  # type: ignore[attr-defined,no-any-return]

    @property
    def key(self) -> Hashable:
        return self._key or asgi_key(self.scope)


def asgi_key(scope: Mapping[str, Any]) -> Hashable:
    """Find `RequestFacts.key` of an ASGI scope; by itself, as each request asks for it first."""
    query, odd = scope.get("query_string"), 0
    if query:
        # The length of one that is so long that it may decide.
        odd = 1 if _is_plain_query(query) is None else len(query) * (len(query) > LONG_QUERY)
    return (scope.get("method"), scope.get("raw_path"), scope["path"], odd)


class WsgiFacts(RequestFacts):
    """
    A request in a WSGI environ.

    The environ is what the application sees, so it is what is judged: paths are decoded, ``_``
    and ``-`` in header names are one, repeats are joined. A raw target that the server offers
    beside it is one more reading.

    Args:
        environ: the environ; only read.

    Source: PEP 3333; Gunicorn's ``RAW_URI``, Werkzeug's and uWSGI's ``REQUEST_URI``.
    """

    __slots__ = ("environ",)
    dashes_known = False

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self.environ = environ

    def __repr__(self) -> str:
        return f"WsgiFacts({self.method!r}, {self.target or self.path!r})"

    @property
    def method(self) -> bytes:
        method: str = self.environ["REQUEST_METHOD"]
        return method.encode("latin-1", "replace")

    @property
    def target(self) -> bytes | None:
        for key in _RAW_TARGETS:
            if raw := self.environ.get(key):
                return str(raw).encode("latin-1", "replace")
        return None

    @property
    def path(self) -> bytes:
        path = self.environ.get("SCRIPT_NAME", "") + self.environ.get("PATH_INFO", "")
        return path.encode("latin-1", "replace") or b"/"

    @property
    def sound(self) -> bool:
        # Routers put a slash before a PATH_INFO without one: /api and admin are no /apiadmin then.
        info, script = self.environ.get("PATH_INFO", ""), self.environ.get("SCRIPT_NAME", "")
        if info and not info.startswith("/") and not script.endswith("/"):
            return False
        return RequestFacts.sound.fget(self)  # type: ignore[attr-defined,no-any-return]

    @property
    def query(self) -> bytes:
        return str(self.environ.get("QUERY_STRING", "")).encode("latin-1", "replace")

    @property
    def headers(self) -> Sequence[Header]:
        found = []
        for key, value in self.environ.items():
            if key.startswith("HTTP_"):
                name = key[5:].replace("_", "-").lower().encode("latin-1", "replace")
            elif key in _CGI_HEADERS and value:
                name = _CGI_HEADERS[key]
            else:
                continue
            found.append((name, str(value).encode("latin-1", "replace")))
        return found

    @property
    def key(self) -> Hashable:
        get = self.environ.get
        return (
            get("REQUEST_METHOD"),
            get("RAW_URI"),
            get("REQUEST_URI"),
            get("SCRIPT_NAME"),
            get("PATH_INFO"),
            self.odd_query,
        )
