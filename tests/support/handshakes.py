"""
TLS handshakes in memory: both ends in one thread, every byte under the test's eye.
"""

from __future__ import annotations

import ssl
from typing import Any

ROUNDS = 20
"""A handshake takes two or three; more mean that it hangs."""


class Ends:
    """
    Both ends of one connection.

    Args:
        client: context of the client's end.
        server: context of the server's end.
        session: for the client to resume.
    """

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext, session: Any = None) -> None:
        self.to_server, self.to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        options = {} if session is None else {"session": session}
        self.client = client.wrap_bio(self.to_client, self.to_server, **options)
        self.server = server.wrap_bio(self.to_server, self.to_client, server_side=True)
        self.client_error: Exception | None = None
        self.server_error: Exception | None = None

    def shake(self) -> Ends:
        """Let both ends do their handshake, until each is done or has failed."""
        waiting = {"client", "server"}
        for _ in range(ROUNDS):
            for name in sorted(waiting):
                try:
                    getattr(self, name).do_handshake()
                except ssl.SSLWantReadError:
                    continue
                except Exception as error:
                    setattr(self, f"{name}_error", error)
                    # Servers and clients close the connection then.
                    (self.to_server if name == "client" else self.to_client).write_eof()
                waiting.discard(name)
            if not waiting:
                return self
        raise AssertionError(f"the handshake hangs: {waiting}")

    @property
    def well(self) -> bool:
        """Whether both ends are content."""
        return self.client_error is None and self.server_error is None

    def say(self, text: bytes) -> bytes:
        """Send *text* from client to server, and return what arrives."""
        self.client.write(text)
        return self.server.read(65536)

    def answer(self, text: bytes) -> bytes:
        """Send *text* from server to client, and return what arrives."""
        self.server.write(text)
        return self.client.read(65536)
