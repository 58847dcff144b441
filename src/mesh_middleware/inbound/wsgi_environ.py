"""
The environ of one WSGI request, made from an ASGI scope.

Owns the translation of the request line, the addresses and the headers. The environ says what the
connection and the request line say: no header can set any other key than its own ``HTTP_`` one.

Source: PEP 3333, "environ Variables"; RFC 3875, 4.1.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

from .judgement import JUDGEMENT

Environ = dict[str, Any]
Headers = Iterable[tuple[bytes, bytes]]

_MAX_DIGITS = 18
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_ALWAYS: Environ = {
    "wsgi.version": (1, 0),
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
    "wsgi.file_wrapper": FileWrapper,
    "SERVER_SOFTWARE": "mesh_middleware",
}


class RequestRefusedError(Exception):
    """
    The request cannot be given to a WSGI application.

    Args:
        status: of the response.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"refused with {status}")
        self.status = status


def build_environ(scope: Mapping[str, Any]) -> Environ:
    """
    Make the environ of one request, without ``wsgi.input``.

    Args:
        scope: of an HTTP request.

    Raises:
        RequestRefusedError: 400, the target or the content length is malformed; 404, the path is
            not below the server's ``root_path``.
    """
    script, path = _split_path(scope)
    query = scope.get("query_string", b"").decode("latin-1")
    scheme = scope.get("scheme", "http")
    environ = {
        **_ALWAYS,
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": script,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "wsgi.url_scheme": scheme,
        "wsgi.errors": sys.stderr,
    }
    _add_addresses(environ, scope, scheme)
    _add_raw_target(environ, scope, query)
    _add_headers(environ, scope.get("headers", ()))
    if JUDGEMENT in scope:
        environ[JUDGEMENT] = scope[JUDGEMENT]
    return environ


def content_length(environ: Environ) -> int | None:
    """
    How long the request's body is.

    Returns:
        ``None`` when only its end will tell.
    """
    if (said := environ.get("CONTENT_LENGTH")) is not None:
        return int(said)
    if environ["SERVER_PROTOCOL"] in ("HTTP/1.1", "HTTP/1.0"):
        # RFC 9112, 6.3: without either header there is no body.
        return None if "HTTP_TRANSFER_ENCODING" in environ else 0
    return None


def _split_path(scope: Mapping[str, Any]) -> tuple[str, str]:
    raw = scope.get("raw_path")
    path = scope["path"].encode() if raw is None else unquote_to_bytes(raw)
    root = scope.get("root_path")
    if not root or root == "/":
        if not path.startswith(b"/") and path != b"*":
            raise RequestRefusedError(400)
        return "", path.decode("latin-1")
    prefix = root.rstrip("/").encode()
    rest = path[len(prefix) :]
    if not path.startswith(prefix) or rest[:1] not in (b"", b"/"):
        raise RequestRefusedError(404)
    return prefix.decode("latin-1"), rest.decode("latin-1")


def _add_addresses(environ: Environ, scope: Mapping[str, Any], scheme: str) -> None:
    # Neither is known of a Unix socket.
    host, port = scope.get("server") or ("localhost", None)
    environ["SERVER_NAME"] = host
    environ["SERVER_PORT"] = str(port) if port is not None else _DEFAULT_PORTS.get(scheme, "80")
    if scope.get("client"):
        host, port = scope["client"][:2]
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = host, str(port)


def _add_raw_target(environ: Environ, scope: Mapping[str, Any], query: str) -> None:
    raw = scope.get("raw_path")
    if raw is not None:
        target = raw.decode("latin-1")
        # As Gunicorn, and as uWSGI and Werkzeug call it.
        environ["RAW_URI"] = environ["REQUEST_URI"] = f"{target}?{query}" if query else target


def _add_headers(environ: Environ, headers: Headers) -> None:
    repeated: dict[str, list[str]] = {}
    for name, value in headers:
        key = _environ_key(name)
        if not key:
            continue
        text = value.decode("latin-1")
        if key in environ:
            # Joined once, below: one by one would copy the growing value each time.
            repeated.setdefault(key, [environ[key]]).append(text)
        else:
            environ[key] = text
    for key, values in repeated.items():
        # HTTP/2 splits cookies; RFC 9113, 8.2.3.
        environ[key] = ("; " if key == "HTTP_COOKIE" else ",").join(values)
    if "CONTENT_LENGTH" in environ:
        length = set(repeated.get("CONTENT_LENGTH", (environ["CONTENT_LENGTH"],)))
        if len(length) > 1 or not _MAX_DIGITS >= len(said := length.pop()) > 0:
            raise RequestRefusedError(400)
        if not (said.isascii() and said.isdigit()):
            raise RequestRefusedError(400)
        environ["CONTENT_LENGTH"] = said
        if "HTTP_TRANSFER_ENCODING" in environ and environ["SERVER_PROTOCOL"].startswith("HTTP/1"):
            del environ["CONTENT_LENGTH"]  # overridden; RFC 9112, 6.3


@lru_cache(maxsize=512)
def _environ_key(name: bytes) -> str:
    """The key of a header; empty when it is dropped: ``X_Role`` would shadow ``X-Role``."""
    if b"_" in name:
        return ""
    key = name.upper().decode("latin-1").replace("-", "_")
    return key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"
