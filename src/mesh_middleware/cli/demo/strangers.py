"""
Callers that are not of the mesh: without a certificate, or with a foreign one.

Owns one raw TLS connection and the reading of how it ended. Uses none of this package's own client:
what a stranger sees is OpenSSL's word.
"""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import time
from datetime import UTC, datetime

from .evidence import Call

_REQUEST = b"GET /tax HTTP/1.1\r\nHost: tax\r\nConnection: close\r\n\r\n"


def call_as_stranger(step: int, caller: str, port: int, pair_pem: str | None) -> Call:
    """
    Send one request to a service, as nobody the mesh knows.

    Args:
        step: number of the step, for the evidence.
        caller: what this stranger is called in the evidence.
        port: the service's, on loopback.
        pair_pem: certificate and key to show; ``None`` shows none.

    Returns:
        The call; its status is ``None`` when the connection ended without an answer.
    """
    at, started = datetime.now(UTC), time.perf_counter()
    status: int | None = None
    try:
        answer = _send(port, _context(pair_pem))
        status, says = _read(answer)
    except (ssl.SSLError, ConnectionError) as error:
        says = f"connection ended, no HTTP status: {error.__class__.__name__}: {error}"
    ms = (time.perf_counter() - started) * 1000
    url = f"https://127.0.0.1:{port}/tax"
    return Call(at, step, caller, "GET", url, status, round(ms, 3), says)


def _read(answer: bytes) -> tuple[int | None, str]:
    first = answer.split(b"\r\n", 1)[0].split(b" ")
    if len(first) > 1 and first[0].startswith(b"HTTP/") and first[1].isdigit():
        return int(first[1]), answer.split(b"\r\n\r\n", 1)[-1].decode("utf-8", "replace")
    return None, "connection ended, no HTTP status: end of file"


def _send(port: int, context: ssl.SSLContext) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        with context.wrap_socket(plain) as tls:
            tls.sendall(_REQUEST)
            parts = []
            while part := tls.recv(65536):
                parts.append(part)
            return b"".join(parts)


def _context(pair_pem: str | None) -> ssl.SSLContext:
    # A stranger does not care whom it talks to: nothing of the server's certificate is verified.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if pair_pem is not None:
        # OpenSSL takes a chain from a file only; this one is 0600 and gone at once.
        descriptor, path = tempfile.mkstemp()
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(pair_pem)
            context.load_cert_chain(path)
        finally:
            os.unlink(path)
    return context
