"""WSGI applications and responses that several tests of the bridge use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

LOGGER = "mesh_middleware.inbound"
PLAIN = [("Content-Type", "text/plain")]
KIB = 1024


class Pieces:
    """A response in pieces, which counts what becomes of it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.made = 0
        self.closed: list[threading.Thread] = []

    def __iter__(self) -> Iterator[bytes]:
        for one in self._pieces:
            self.made += len(one)
            yield one

    def close(self) -> None:
        """As PEP 3333 asks."""
        self.closed.append(threading.current_thread())


def ok(start: Callable[..., Any], *more: tuple[str, str]) -> None:
    """Start an ordinary response."""
    start("200 OK", [*PLAIN, *more])


def reads(environ: Any, start: Any) -> list[bytes]:
    """Answers the length of its whole body."""
    size = len(environ["wsgi.input"].read())
    ok(start)
    return [b"%d" % size]


def endless(answers: list[Pieces], size: int = KIB) -> Any:
    """An application whose answers have no end."""

    def app(environ: Any, start: Any) -> Any:
        ok(start)
        if environ["PATH_INFO"] == "/short":
            return [b"short"]
        answers.append(Pieces(iter(lambda: b"x" * size, None)))  # type: ignore[arg-type]
        return answers[-1]

    return app
