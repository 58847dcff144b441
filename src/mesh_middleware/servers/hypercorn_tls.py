"""
Makes ``certfile = keyfile = "mesh"`` mean our context in Hypercorn.

Touches one foreign class: ``Config.create_ssl_context``, which Hypercorn calls in the worker, with
settings and bind known, before it serves: there the mesh starts; and ``Config.create_sockets``, for
an address that is taken. (`hypercorn_mend` repairs some.) A test fails when Hypercorn changes
what this stands on.

Hypercorn runs WSGI applications by ``loop.run_in_executor``, which copies no context; the loop
gets a default executor that does, so that the peer reaches the application's thread.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import errno
import gc
import ipaddress
import multiprocessing
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import SemLock
from pathlib import Path
from typing import Any, NoReturn

from ..config import Settings, load_settings, offered_options
from ..consul.client import check_files
from ..exceptions import ConfigError
from ..hosting import (
    find_application,
    find_config,
    find_shutdown_event,
    find_sockets,
    is_marked,
    table,
)
from ..inbound.host import Host
from ..mesh import Mesh, running_mesh, set_default_mesh
from ..watcher import open_keepsake
from .hypercorn_mend import mend

NOTICE_EVERY = 0.05
"""Seconds between two looks at the event by which Hypercorn ends its workers."""

TERM_SLACK = 10.0
"""Seconds beyond Hypercorn's graceful timeout after which a worker told to end is ended."""

STREAMS_END = 0.6
"""Part of Hypercorn's graceful timeout after which live streams are ended."""

HANDSHAKE_SECONDS = 10
"""For a handshake, unless the file says otherwise; Hypercorn's own minute lets idlers pile up."""

_WHERE = "the [mesh] table"
_taught = False
_spared = False
_mistake = ""


class ContextExecutor(concurrent.futures.ThreadPoolExecutor):
    """A thread pool whose work runs in the context of who submitted it."""

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        """Submit *fn*, to run in a copy of the present context."""
        return super().submit(contextvars.copy_context().run, fn, *args, **kwargs)


def teach(make_host: Callable[[], Host]) -> None:
    """
    Teach a loaded Hypercorn what ``"mesh"`` means, once; and check the configuration it runs.

    Args:
        make_host: makes what judges before the application; called when the server starts.

    Raises:
        SystemExit: the configuration cannot work; one line says why.
    """
    global _taught
    if "hypercorn.config" not in sys.modules:
        return
    if not _taught:
        _taught = True
        _patch(make_host)
    # A Flask application may still name the service in its own configuration: MeshNative checks.
    if "flask" not in sys.modules:
        check_hosted()


def refuse_wsgi_on_trio() -> None:
    """
    End a worker that cannot run a WSGI application.

    Raises:
        SystemExit: this is Hypercorn's trio worker, which starts no WSGI application.
    """
    config = find_config()
    if config is not None and config.worker_class == "trio":
        _end(
            "Hypercorn's trio worker cannot run WSGI applications: "
            "set worker_class to asyncio or uvloop"
        )


def start_mesh(config: Any) -> ssl.SSLContext:
    """
    Start this worker's mesh and make its context.

    Args:
        config: Hypercorn's configuration.

    Returns:
        The live context, with Hypercorn's protocols to offer.
    """
    _drain_on_shutdown(config)
    mend()
    if _mistake:
        _end(_mistake)
    settings = _settings(config)
    before = running_mesh()
    if before is not None and before.settings.service != settings.service:
        # Doors judge by the one mesh of their process: the other's requests would be, too.
        _end(
            f"this process is the service {before.settings.service!r} already, and cannot be "
            f"{settings.service!r} as well: each needs a process of its own"
        )
    try:
        mesh = Mesh(settings=settings).start()
    except ConfigError as error:
        _end(str(error))
    mesh.server = _streams()
    set_default_mesh(mesh)
    _withdraw_on_shutdown(mesh, STREAMS_END * config.graceful_timeout)
    if config.ssl_handshake_timeout == type(config).ssl_handshake_timeout:
        config.ssl_handshake_timeout = HANDSHAKE_SECONDS
    # With a reachable agent this takes some 50 ms; without one the server starts anyway.
    mesh.ready(settings.ready_timeout)
    context = mesh.server_context()
    context.set_alpn_protocols(config.alpn_protocols)
    _carry_context()
    _spare_collector()
    return context


def _patch(make_host: Callable[[], Host]) -> None:
    from hypercorn.config import Config

    original = Config.create_ssl_context

    def create_ssl_context(self: Config) -> ssl.SSLContext | None:
        if not is_marked(self):
            return original(self)
        context = start_mesh(self)
        _host_application(find_application(), make_host())
        return context

    Config.create_ssl_context = create_ssl_context  # type: ignore[method-assign]
    _tell_bound(Config)


def _streams() -> Any:
    from ._hypercorn.streams import HypercornStreams

    return HypercornStreams()


def _host_application(wrapper: Any, host: Host) -> None:
    """Have every request judged before the application that Hypercorn has wrapped."""
    from hypercorn.app_wrappers import ASGIWrapper, WSGIWrapper

    from ._hypercorn.streams import HostedApplication

    try:
        if type(wrapper) is ASGIWrapper:
            wrapper.app = host.host_asgi(wrapper.app)
        elif type(wrapper) is WSGIWrapper:
            refuse_wsgi_on_trio()
            wrapper.app = host.host_wsgi(wrapper.app, max_body=wrapper.max_body_size)
        else:
            _end(f"the application that is served cannot be judged: {type(wrapper).__name__}")
    except ConfigError as error:
        _end(str(error))
    wrapper.__class__ = HostedApplication


def _tell_bound(kind: Any) -> None:
    # Only with `--config python:...` is this package there when Hypercorn opens its sockets.
    original = kind.create_sockets

    def create_sockets(self: Any) -> Any:
        try:
            return original(self)
        except (OSError, OverflowError) as error:
            if not is_marked(self):
                raise
            places = ", ".join((*self.bind, *self.insecure_bind))
            why = getattr(error, "strerror", None) or str(error)
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            way = "stop what does, or name" if taken else "name"
            _end(f"cannot listen at {places}: {why}; {way} another address by MESH_BIND or --bind")

    kind.create_sockets = create_sockets


def check_hosted() -> None:
    """
    Check the configuration of the Hypercorn that imports the application, if one does.

    Raises:
        SystemExit: it cannot work, a missing service name included; one line says why.
    """
    config = find_config()
    if config is None:
        return
    if not is_marked(config):
        if table(config) and config.ssl_enabled:
            _end(
                f"there is a [mesh] table, but certfile is {config.certfile!r} and keyfile is "
                f'{config.keyfile!r}: both have to be "mesh"'
            )
        return
    if config.quic_bind:
        _end("HTTP/3 (quic_bind) has no mesh identity: leave it out")
    try:
        # Here, since an error in create_ssl_context would print a hundred lines.
        settings = _settings(config)
        _demand_loopback(config, settings)
        check_files(settings)
        open_keepsake(settings)
    except ConfigError as error:
        _end(str(error))


def end_before_serving(error: ConfigError) -> None:
    """
    End a worker whose application is made wrongly; one that serves already goes on.

    Middleware of Starlette is made in the lifespan, where an exit would print a hundred lines, and
    any other error is swallowed: there the worker ends a moment later, when its TLS is asked for.

    Raises:
        SystemExit: this is a Hypercorn that imports the application.
    """
    global _mistake
    config = find_config(remembered=False)
    if config is None or not is_marked(config) or running_mesh() is not None:
        return
    if find_application() is None:
        _end(str(error))
    _mistake = str(error)


def _settings(config: Any) -> Settings:
    try:
        file = {**offered_options(), **table(config)}
        known = load_settings(file=file, where=_WHERE)
        host, port = _bound(config)
        placed = {"port": known.port or port, "address": known.address or _reachable(host)}
        return load_settings(placed, file=file, where=_WHERE)
    except ConfigError as error:
        _end(str(error))


def _bound(config: Any) -> tuple[str, int]:
    sockets = find_sockets()
    for each in sockets.secure_sockets if sockets else ():
        name = each.getsockname()
        if isinstance(name, tuple):
            return str(name[0]), int(name[1])
    host, _, port = config.bind[0].rpartition(":")
    return host.strip("[]"), int(port) if port.isdigit() else 0


def _demand_loopback(config: Any, settings: Settings) -> None:
    # Design: plaintext is loopback's, unless the operator says otherwise by name.
    for bind in () if settings.plaintext_beyond_loopback else config.insecure_bind:
        if bind.startswith(("unix:", "fd:")):
            continue
        host = bind.rpartition(":")[0].strip("[]") if ":" in bind else bind
        if host != "localhost" and not _is_loopback(host):
            raise ConfigError(
                f"insecure_bind = {bind!r} serves plaintext to other machines: bind 127.0.0.1, or "
                "set plaintext_beyond_loopback = true in [mesh]"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reachable(host: str) -> str:
    """The address to register: empty, the agent's own, where *host* names no one place."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return "" if address.is_unspecified else host


def _carry_context() -> None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    loop.set_default_executor(ContextExecutor(thread_name_prefix="wsgi"))


def _spare_collector() -> None:
    # What a worker has loaded by now, it keeps. Under load Python's collector would look through
    # all of it some times per second, and stop the loop each time for as long as that takes: 10 ms
    # without much in it, more with every intention. (Python 3.12 has some frozen from its start:
    # how many are frozen does not tell whether this was done.)
    global _spared
    if not _spared:
        _spared = True
        gc.freeze()


def _drain_on_shutdown(config: Any) -> None:
    # Hypercorn's parent sends SIGTERM to all workers as soon as one has ended, and what the others
    # have in flight would die with them. They follow its shutdown event, so the signal only sets
    # them a term.
    if multiprocessing.parent_process() is None:
        return
    term = config.graceful_timeout + TERM_SLACK

    def give_term(*_: object) -> None:
        timer = threading.Timer(term, os._exit, (1,))
        timer.daemon = True
        timer.start()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, give_term)


def _withdraw_on_shutdown(mesh: Mesh, streams_end: float) -> None:
    # The earliest notice there is: callers are sent elsewhere before the drain begins. What still
    # streams near the drain's end is ended by us: Python 3.12 and 3.13 would wait for it for ever.
    event = find_shutdown_event()
    if event is None:
        return
    # A worker that ends by itself (max_requests) is replaced: no gap between the two.
    mesh.hand_over_if(lambda: not event.is_set())

    # It is asked again and again, as Hypercorn does, and never waited for: a worker that ends while
    # it waits for this event does not take notice of it any more, and the parent, which sets it,
    # would wait for that for ever. Asked in the loop where that can be: a thread that asks takes
    # the interpreter from a busy loop twenty times a second, which costs about 1 % of the requests.
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # trio
        work = (mesh, event, streams_end)
        name = "mesh_middleware-shutdown"
        threading.Thread(target=_watch_shutdown, args=work, name=name, daemon=True).start()
        return

    def look() -> None:
        if event.is_set():
            mesh.withdraw()
            loop.call_later(streams_end, mesh.end_streams)
        elif mesh.running:
            loop.call_later(NOTICE_EVERY, look)

    look()


def _watch_shutdown(mesh: Mesh, event: Any, streams_end: float) -> None:
    while not event.is_set():
        time.sleep(NOTICE_EVERY)
        if not mesh.running:
            return
    mesh.withdraw()
    time.sleep(streams_end)
    mesh.end_streams()


def _end(message: str) -> NoReturn:
    event = find_shutdown_event()
    if event is None or not event.is_set():
        print(f"mesh_middleware: {message}", file=sys.stderr, flush=True)
    if event is not None:
        event.set()
        _fail_parent(event)
    if multiprocessing.parent_process() is not None and find_application() is not None:
        # Its loop runs: trio would wrap an exit in groups and print those, and on asyncio a
        # lifespan that is under way prints how it was cancelled.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(1)
    raise SystemExit(1)


def _fail_parent(event: Any) -> None:
    """
    Make the ``hypercorn`` command fail.

    Hypercorn (0.18) exits with 0 whatever became of its only worker, so that a service manager
    takes a configuration error for a clean stop. A signal it does not handle ends it as failed.
    Only the command itself is ended so, never a program that calls Hypercorn as a library.
    """
    parent = multiprocessing.parent_process()
    command = os.path.basename(sys.argv[0]) == "hypercorn"
    if parent is None or not command or os.getppid() != parent.pid:
        return
    others = _siblings(parent.pid)
    os.kill(parent.pid, signal.SIGUSR1)
    for pid in others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    _forget_semaphores(event)


def _siblings(parent: int) -> list[int]:
    # The other workers of the command. One that is slow to start would find no semaphores any more,
    # and say so in ten lines; those that have started know what this signal means.
    try:
        told = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    except OSError:
        return []
    return [pid for pid in map(int, told.split()) if pid != os.getpid()]


def _forget_semaphores(event: Any) -> None:
    # The parent cannot unlink them any more; without this the resource tracker, which does, would
    # print warnings below our one line.
    condition = event._cond
    held = (event._flag, condition._lock, condition._sleeping_count, condition._woken_count)
    for each in (*held, condition._wait_semaphore):
        with contextlib.suppress(OSError, AttributeError):
            SemLock._cleanup(each._semlock.name)  # type: ignore[attr-defined]
