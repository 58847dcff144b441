"""
An instance in a process of its own that fails in the way it is told; run as a module.

Speaks JSON lines: leaf and root in, port out; then ``{"mode": ...}`` or ``{"count": true}`` in, the
number of requests so far out.
"""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

from mesh_middleware.resolve import Endpoint

from .support import PATIENCE, Authority, ScriptServer, Wire, server_context, service_id

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
BAD = b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops"


class Behaviour:
    """What the server does with each request; changed from another thread."""

    def __init__(self) -> None:
        self.mode = "well"
        self.count = 0
        self._dice = random.Random(1)
        self._lock = threading.Lock()
        self._never = threading.Event()

    def __call__(self, wire: Wire) -> None:
        while wire.read_head():
            with self._lock:
                self.count += 1
                mode, half = self.mode, self._dice.random() < 0.5
            if not self._answer(wire, mode, half):
                return

    def _answer(self, wire: Wire, mode: str, half: bool) -> bool:
        if mode == "hang":
            self._never.wait(PATIENCE)
        elif mode == "die":
            wire.send(OK[:-2])
            os._exit(1)
        elif mode == "reset":
            linger = struct.pack("ii", 1, 0)
            wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            socket.socket.close(wire.sock)
        elif mode == "broken" or (mode == "half" and half):
            wire.send(BAD)
            return True
        else:
            wire.send(OK)
            return True
        return False


class Faulty:
    """
    The process, seen from the test; use it in ``with``.

    Args:
        authority: issues its leaf.
        leaf: another leaf than that of ``tax``.
    """

    def __init__(self, authority: Authority, leaf: str = "") -> None:
        self._first = {
            "root": authority.root_pem,
            "leaf": leaf or authority.issue(service_id("tax").uri),
        }
        self.endpoint = Endpoint("127.0.0.1", 0, service_id("tax"))

    def __enter__(self) -> Self:
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.client.faulty"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
        )  # fmt: skip
        self.endpoint = Endpoint("127.0.0.1", self.say(self._first), service_id("tax"))
        return self

    def say(self, what: dict[str, Any]) -> int:
        """Tell it something; its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline() or -1)

    def behave(self, mode: str) -> None:
        """Fail in another way, or not at all (``well``)."""
        self.say({"mode": mode})

    @property
    def count(self) -> int:
        """Requests that arrived."""
        return self.say({"count": True})

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def main() -> None:
    """Serve until standard input ends."""
    first = json.loads(sys.stdin.readline())
    behaviour = Behaviour()
    with ScriptServer(server_context(first["root"], first["leaf"]), behaviour) as server:
        print(server.port, flush=True)
        for line in sys.stdin:
            behaviour.mode = json.loads(line).get("mode", behaviour.mode)
            print(behaviour.count, flush=True)


if __name__ == "__main__":
    main()
