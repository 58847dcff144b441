"""
A wire between a mesh and its agent that can go wrong: a TCP relay with a switch.

Owns the listening socket, in a thread of its own, and counts what is tried while it is broken. It
can end TLS, ask for a client certificate, and listen on a unix socket, as proxies before an agent
do.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from .listening import close_server
from .steps import yield_once

Mode = Literal["pass", "reset", "swallow"]
"""Relay; reset every connection at once; take everything and say nothing, for good."""

_REQUEST = re.compile(rb"(?:GET|PUT|POST) /")


class Wire:
    """
    A relay to an agent; use it in ``with``.

    Args:
        target: address of the agent.
        tls: ends TLS with this context.
        path: listens on a unix socket instead of a port.
    """

    def __init__(
        self, target: str, *, tls: ssl.SSLContext | None = None, path: Path | None = None
    ) -> None:
        parts = urlsplit(target)
        self._target = (str(parts.hostname), parts.port or 80)
        self._tls, self._path = tls, path
        self._mode: Mode = "pass"
        self.attempts: list[float] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self.url = ""

    @property
    def mode(self) -> Mode:
        """What it does with connections."""
        return self._mode

    def set(self, mode: Mode) -> None:
        """
        Change what it does, with open connections, too.

        Those that it swallowed stay dead when it passes again: nobody will ever answer them.
        """
        done = threading.Event()

        def change() -> None:
            self._mode = mode
            if mode == "reset":
                for writer in list(self._writers):
                    _reset(writer)
            elif mode == "swallow":
                self._dead |= self._writers
            done.set()

        self._loop.call_soon_threadsafe(change)
        assert done.wait(10)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._path is not None:
            server = await asyncio.start_unix_server(self._relay, self._path)
            self.url = f"unix://{self._path}"
        else:
            server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._tls)
            port = server.sockets[0].getsockname()[1]
            self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        self._ready.set()
        await self._stop.wait()
        await close_server(server)
        for _ in range(5):
            # Once more: what was accepted a moment ago begins in the next rounds of the loop, in
            # which transports close, too.
            for task in list(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5)
            await yield_once()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._mode == "reset":
            self.attempts.append(time.monotonic())
            _reset(writer)
            return
        self._writers.add(writer)
        writers = [writer]
        try:
            back, there = await asyncio.open_connection(*self._target)
            writers.append(there)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(back, writer, writer))
                await self._pump(reader, there, writer)
                there.close()
        except (OSError, asyncio.CancelledError):
            pass  # cancelled at the end of the loop, which Python 3.11 would print
        finally:
            self._writers.discard(writer)
            self._dead.discard(writer)
            for each in writers:
                each.transport.abort()
            await yield_once()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, outer: asyncio.StreamWriter
    ) -> None:
        if self._mode == "swallow":
            self._dead.add(outer)
        with suppress(OSError):
            while data := await source.read(65536):
                if outer in self._dead:
                    if sink is not outer and _REQUEST.match(data):
                        self.attempts.append(time.monotonic())
                    continue
                sink.write(data)
                await sink.drain()
        with suppress(OSError):
            sink.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    plain: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError, AttributeError):
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
