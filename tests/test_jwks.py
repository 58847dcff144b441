"""Keys are read once per question, within bounds, from where the entry says and nowhere else."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh_middleware import jwks
from mesh_middleware.consul.providers import KeySource
from mesh_middleware.jwks import KeysError, fetch_keys

JWKS = json.dumps({"keys": [{"kty": "oct", "k": "MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA"}]})


class Server:
    """Answers each connection with the same bytes, and counts them."""

    def __init__(self) -> None:
        self.answer, self.close_after, self.connections = b"", True, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}/keys"
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def say(self, status: str, body: bytes, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
        self.answer = "\r\n".join(lines).encode() + body

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.recv(65536)
            try:
                connection.sendall(self.answer)
            except OSError:
                pass
            if self.close_after:
                connection.close()
            else:
                self._held.append(connection)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(5)
        for connection in self._held:
            connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def fetch(uri: str, timeout: float = 5.0) -> int:
    return len(asyncio.run(fetch_keys(KeySource(uri, timeout))).keys)


def test_keys_are_read_over_http(server: Server) -> None:
    """A 200 with a JWKS."""
    server.say("200 OK", JWKS.encode())
    assert fetch(server.uri) == 1


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        ("404 Not Found", JWKS, "status 404"),
        ("500 Oops", "", "status 500"),
        ("200 OK", "{", "no JWKS"),
        ("200 OK", "[]", "no JWKS"),
        ("200 OK", '{"keys": []}', "without a key"),
        ("200 OK", '{"keys": [{"kty": "EC", "use": "enc"}]}', "without a key"),
        ("200 OK", '{"keys": ' + "[" * 100_000, "no JWKS"),
        ("200 OK", "\udcff", "no JWKS"),
    ],
)
def test_other_answers_are_errors_that_name_the_address(
    server: Server, status: str, body: str, says: str
) -> None:
    """Nothing is guessed."""
    server.say(status, body.encode("utf-8", "surrogateescape"))
    with pytest.raises(KeysError, match=says) as caught:
        fetch(server.uri)
    assert server.uri in str(caught.value)


def test_a_redirect_is_not_followed(server: Server) -> None:
    """The control plane named this address, and no other."""
    server.say("302 Found", b"", f"location: {server.uri}2")
    with pytest.raises(KeysError, match="status 302"):
        fetch(server.uri)
    assert server.connections == 1


def test_a_large_answer_is_not_read_to_its_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the bound ends the question, whatever content-length says."""
    monkeypatch.setattr(jwks, "MAX_JWKS_BYTES", 1000)
    server.say("200 OK", b" " * 1_000_000)
    with pytest.raises(KeysError, match="over 1000 bytes"):
        fetch(server.uri)


def test_a_compressed_answer_is_not_unpacked(server: Server) -> None:
    """A bound on what is received bounds what is held."""
    server.say("200 OK", gzip.compress(b" " * 10_000_000), "content-encoding: gzip")
    with pytest.raises(KeysError, match="compressed"):
        fetch(server.uri)


def test_an_answer_that_never_ends_ends_in_time(server: Server) -> None:
    """The time is for the whole question, not for each read."""
    server.answer, server.close_after = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{", False
    with pytest.raises(KeysError, match="no answer within 0.2 s"):
        fetch(server.uri, 0.2)


def test_a_proxy_of_the_environment_is_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody in between may answer for the issuer."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    server.say("200 OK", JWKS.encode())
    assert fetch(server.uri) == 1


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/keys", "http://[", "file:///nowhere/keys"])
def test_an_address_that_does_not_answer_is_an_error(uri: str) -> None:
    """Closed, malformed, missing: one kind of error."""
    with pytest.raises(KeysError):
        fetch(uri)


def test_an_untrusted_server_is_an_error(tmp_path: Path) -> None:
    """A CA file that is none is not taken for "trust everyone"."""
    bad = tmp_path / "ca.pem"
    bad.write_text("nothing")
    source = KeySource("https://127.0.0.1:1/keys", ca_file=str(bad))
    with pytest.raises(KeysError):
        asyncio.run(fetch_keys(source))


def test_a_file_is_read(tmp_path: Path) -> None:
    """``file://`` and a path."""
    file = tmp_path / "keys.json"
    file.write_text(JWKS)
    assert fetch(f"file://{file}") == 1
