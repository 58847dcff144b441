"""
The agent's own thread: an event loop with Hypercorn on a loopback socket.

Owns the socket, start and stop. Refuses every address that is not loopback, and requests whose Host
is no local name: a page in a browser must not get at the CA through a name that it has pointed
here. Knows nothing of Consul.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

from ..exceptions import ConfigError
from .app import AgentApp, Receive, Scope, Send

START_SECONDS = 10.0
STOP_SECONDS = 5.0


def check_loopback(host: str) -> str:
    """
    Take *host* if it is a loopback address.

    Returns:
        The address.

    Raises:
        ConfigError: it is not; the message names it.
    """
    address = "127.0.0.1" if host == "localhost" else host
    try:
        local = ipaddress.ip_address(address).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConfigError(
            f"the dev agent hands out keys to anyone who asks: it listens on loopback only,"
            f" not on {host}"
        )
    return address


def _is_local_name(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    else:
        name = name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def stop_accepting(descriptor: int) -> None:
    """
    Accept nothing more on a listening socket, and let begin what was accepted already.

    To be called before an asyncio server is closed: a connection that it accepts in that moment
    would be lost, and its socket be closed by the collector, if ever.

    Source: https://github.com/python/cpython/issues/109564.
    """
    asyncio.get_running_loop().remove_reader(descriptor)
    await asyncio.sleep(0)


class AgentServer:
    """
    Serves an app from a thread of its own.

    Args:
        app: what is served.
        host: a loopback address.
        port: 0 lets the system choose.
    """

    def __init__(self, app: AgentApp, host: str, port: int) -> None:
        self._app = app
        self.host = check_loopback(host)
        self._wanted_port = port
        self.port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not closed since."""
        return self._thread is not None

    def start(self) -> None:
        """
        Listen, and serve from now on.

        Raises:
            ConfigError: the address is taken, or the ``cli`` extra is not installed.
        """
        if self._thread is not None:
            return
        if importlib.util.find_spec("hypercorn") is None:
            raise ConfigError("the dev agent needs its extra: pip install 'mesh-middleware[cli]'")
        listening = self._bind()
        self.port = listening.getsockname()[1]
        self._ready.clear()
        self._failure = None
        self._app.on_startup = self._ready.set
        self._app.stopping = False
        self._thread = threading.Thread(
            target=self._run, args=(listening,), name="mesh-dev-agent", daemon=True
        )
        self._thread.start()
        if not self._ready.wait(START_SECONDS) or self._failure is not None:
            self.close()
            raise ConfigError(f"the dev agent did not start: {self._failure}")

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            # A restart on the same port must not wait for the connections of the last run.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self.host, self._wanted_port))
            listening.listen(256)
        except (OSError, OverflowError) as error:
            listening.close()
            why = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"the dev agent cannot listen on {self.host}:{self._wanted_port}: {why}"
            ) from None
        return listening

    def close(self) -> None:
        """Stop serving, blocked requests included, and join the thread."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._loop is not None and thread.is_alive():
            self._loop.call_soon_threadsafe(self._release)
        thread.join(STOP_SECONDS)

    def _release(self) -> None:
        self._app.stop()
        if self._stop is not None:
            self._stop.set()

    def _run(self, listening: socket.socket) -> None:
        try:
            asyncio.run(self._serve(listening))
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self, listening: socket.socket) -> None:
        from hypercorn.asyncio import serve
        from hypercorn.config import Config

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        config = Config()
        descriptor = listening.detach()
        config.bind = [f"fd://{descriptor}"]
        config.errorlog = None
        config.graceful_timeout = 1.0
        config.keep_alive_timeout = 600.0  # Consul closes no idle connection either
        serving: Callable[..., Any] = self._guarded
        await serve(serving, config, shutdown_trigger=lambda: self._stopped(descriptor))

    async def _stopped(self, descriptor: int) -> None:
        assert self._stop is not None
        await self._stop.wait()
        await stop_accepting(descriptor)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if not all(_is_local_name(host) for host in hosts):
                await _refuse(send)
                return
        await self._app(scope, receive, send)


async def _refuse(send: Send) -> None:
    body = b"The dev agent answers to loopback names only"
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
