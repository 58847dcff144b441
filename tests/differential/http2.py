"""
The same questions over HTTP/2: to the real Envoy, and to us as Hypercorn hands requests over.

Owns the frames and Hypercorn's reading of them, by its own functions. A case is sent with what
HTTP/2 has in another form: pseudo headers, a Host beside the authority, a cookie in pieces.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, RequestReceived, ResponseReceived, StreamReset
from h2.exceptions import ProtocolError
from hypercorn.utils import filter_pseudo_headers

from . import envoy

Json = dict[str, Any]
Pairs = list[tuple[bytes, bytes]]

_OF_HTTP1 = frozenset(
    b"connection content-length http2-settings keep-alive proxy-connection te transfer-encoding"
    b" upgrade".split()
)
SECONDS = 5.0


def head(case: Json, rnd: random.Random) -> Pairs:
    """Write a case's request as the header block of a stream."""
    request = case["request"]
    lines = [(a.lower().encode("latin-1"), b.encode("latin-1")) for a, b in request["headers"]]
    host = next((value for name, value in lines if name == b"host"), b"web")
    rest = [(name, value) for name, value in lines if name not in _OF_HTTP1 | {b"host"}]
    pairs = [
        (b":method", request["method"].encode("latin-1")),
        (b":scheme", b"https"),
        (b":path", request["target"].encode("latin-1")),
    ]
    way = rnd.random()
    pairs.append((b"host" if way < 0.1 else b":authority", host))
    if way > 0.9:
        rest.append((b"host", b"other"))
    if rnd.random() < 0.2:
        rest += [(b"cookie", b"a=b"), (b"cookie", b"role=admin")]
    return pairs + rest


def ask_envoy(running: envoy.Envoy, policy: str, source: str, pairs: Pairs) -> int:
    """
    Send a request on a connection of its own.

    Returns:
        The status; 0 when Envoy ended stream or connection without one.
    """
    plain = socket.create_connection(("127.0.0.1", running.port), SECONDS)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    context = running.authority.context(source)
    with context.wrap_socket(plain, server_hostname=f"{policy}.test") as sock:
        client = _connection(client_side=True)
        client.send_headers(1, pairs, end_stream=True)
        try:
            sock.sendall(client.data_to_send())
            while data := sock.recv(65536):
                for event in client.receive_data(data):
                    if isinstance(event, ResponseReceived):
                        return int(dict(event.headers)[b":status"])  # type: ignore[index]
                    if isinstance(event, StreamReset | ConnectionTerminated):
                        return 0
                sock.sendall(client.data_to_send())
        except (OSError, ProtocolError):
            pass
    return 0


def scope(pairs: Pairs) -> Json | None:
    """Make the ASGI scope that Hypercorn makes; ``None`` where it refuses the stream."""
    client, server = _connection(client_side=True), _connection(client_side=False)
    client.send_headers(1, pairs, end_stream=True)
    try:
        events: Sequence[Any] = server.receive_data(client.data_to_send())
    except ProtocolError:
        return None
    [found] = [event for event in events if isinstance(event, RequestReceived)]
    headers = [(bytes(name), bytes(value)) for name, value in found.headers]
    pseudo = dict(headers)
    path, _, query = pseudo[b":path"].partition(b"?")
    if not path.isascii():
        return None
    return {
        "method": pseudo[b":method"].decode("ascii").upper(),
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "headers": filter_pseudo_headers(headers),
    }


def _connection(*, client_side: bool) -> H2Connection:
    # Of what we send nothing is checked: whoever attacks does not check it either.
    config = H2Configuration(
        client_side=client_side,
        header_encoding=None,
        validate_outbound_headers=False,
        normalize_outbound_headers=False,
        validate_inbound_headers=not client_side,
    )
    connection = H2Connection(config)
    connection.initiate_connection()
    return connection
