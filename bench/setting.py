"""
What is measured: one application in three settings, and the agent behind them.

Owns how each setting is started and that it does what it claims: the caller is served, a stranger
is refused where intentions are judged, nobody gets in without a certificate.

`limit`  Hypercorn with static mutual TLS, no mesh: the best any native integration can do.
`mesh`   the same application with our door, ``hypercorn --config mesh``, 20 intentions.
`envoy`  the same application, plain, behind Envoy with mutual TLS and the same 20 intentions.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import envoy
from .agent import CALLER, SERVICE, STRANGER
from .load import Identity
from .processes import Process, Processes

Json = dict[str, Any]
Kind = Literal["limit", "mesh", "envoy"]
KINDS: tuple[Kind, ...] = ("limit", "mesh", "envoy")

ROOT = Path(__file__).parent.parent
APPS = Path(__file__).parent / "apps"
PATH = "/rates"
WORKER_CLASS = "uvloop"

NOT_NEEDED = ("click", "rich", "pygments", "typer", "trio")
"""Packages that a checkout for development has and a service has not; httpx and httpcore import
what they find of them."""

START_SECONDS = 30.0


class SettingError(Exception):
    """A setting did not start, or does not do what it claims."""


@dataclass(frozen=True, slots=True)
class Server:
    """
    One setting of one application.

    Args:
        kind: which setting.
        port: where mutual TLS is spoken.
        processes: all that serve it.
    """

    kind: Kind
    port: int
    processes: tuple[Process, ...]

    @property
    def pids(self) -> list[int]:
        """Ids of all processes of the server's side."""
        return [pid for process in self.processes for pid in process.pids()]

    def close(self) -> None:
        """End them, the one in front first."""
        for process in reversed(self.processes):
            process.close()


@dataclass(frozen=True, slots=True)
class Backend:
    """
    The application without TLS.

    Args:
        framework: of the application.
        port: where it speaks plain HTTP.
        process: that serves it.
    """

    framework: str
    port: int
    process: Process


@dataclass(slots=True)
class Stage:
    """
    The agent, its certificates, and how servers are started beside it.

    Args:
        folder: temporary; holds configurations, certificates and logs.
        started: owns the processes.
        agent: address of the dev agent.
        trust_domain: of everyone in this run.
        agent_process: changes leaf and roots as it is told.
        lean: whether servers started from now on find only what a service has installed.
    """

    folder: Path
    started: Processes
    agent: str
    trust_domain: str
    agent_process: Process
    lean: bool = False
    _number: int = field(default=0, repr=False)

    @classmethod
    def open(cls, folder: Path, started: Processes) -> Stage:
        """Start the agent."""
        process = started.start(
            "agent", [sys.executable, "-m", "bench.agent", str(folder)], folder, _importable()
        )
        told = folder / "agent.json"
        _wait(process, told.exists)
        said = json.loads(told.read_text())
        return cls(folder, started, said["url"], said["trust_domain"], process)

    def identity(self, name: str) -> Identity:
        """The files of one caller."""
        files = (self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return Identity(*files, self.folder / "roots.pem")

    def context(self, name: str | None) -> ssl.SSLContext:
        """A client's TLS context; without a certificate when there is no name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # mesh certificates name services, not hosts
        context.load_verify_locations(self.folder / "roots.pem")
        if name is not None:
            who = self.identity(name)
            context.load_cert_chain(who.certificate, who.key)
        return context

    def hypercorn(self, app: str, config: str, port: int, *, workers: int = 1) -> Process:
        """
        Start Hypercorn as a user would: ``hypercorn --config mesh app.py:app``.

        Args:
            app: module in ``bench/apps``.
            config: lines of the TOML file besides bind and workers.
            port: bound on loopback.
            workers: processes that serve.
        """
        self._number += 1
        name = f"{app}-{self._number}"
        folder = self.folder / name
        folder.mkdir()
        head = f'bind = "127.0.0.1:{port}"\nworkers = {workers}\n'
        (folder / "mesh").write_text(f'{head}worker_class = "{WORKER_CLASS}"\n{config}')
        command = [_beside("hypercorn"), "--config", "mesh", f"{APPS / app}.py:app"]
        return self.started.start(name, command, folder, self._leaner() if self.lean else None)

    def _leaner(self) -> dict[str, str]:
        folder = self.folder / "not-needed"
        folder.mkdir(exist_ok=True)
        for name in NOT_NEEDED:
            (folder / f"{name}.py").write_text('raise ImportError("left out by the bench")\n')
        return {"PYTHONPATH": str(folder)}

    def limit(self, framework: str, *, workers: int = 1) -> Server:
        """Start `limit`."""
        port = free_port()
        lines = [
            f'certfile = "{self.folder / SERVICE}.pem"',
            f'keyfile = "{self.folder / SERVICE}.key"',
            f'ca_certs = "{self.folder / "roots.pem"}"',
            f"verify_mode = {ssl.CERT_REQUIRED.value}",
        ]
        process = self.hypercorn(f"{framework}_app", "\n".join(lines), port, workers=workers)
        return Server("limit", port, (process,))

    def mesh(self, framework: str, *, workers: int = 1) -> Server:
        """Start `mesh`. Installed plugins are left out: a machine that develops them has some."""
        port = free_port()
        lines = [
            'certfile = "mesh"',
            'keyfile = "mesh"',
            "[mesh]",
            f'service = "{SERVICE}"',
            f'agent = "{self.agent}"',
            "plugins = false",
        ]
        process = self.hypercorn(f"{framework}_mesh", "\n".join(lines), port, workers=workers)
        return Server("mesh", port, (process,))

    def plain(self, framework: str) -> Backend:
        """Start the application without TLS, for Envoy to stand in front of."""
        port = free_port()
        return Backend(framework, port, self.hypercorn(f"{framework}_app", "", port))

    def envoy(self, backend: Backend, *, threads: int) -> Server:
        """Start `envoy` with as many worker threads."""
        port = free_port()
        config = envoy.bootstrap(
            port, backend.port, self.folder, SERVICE, self.intentions(), self.trust_domain
        )
        name = f"envoy-{backend.framework}-{threads}"
        (self.folder / f"{name}.json").write_text(json.dumps(config))
        command = [
            _beside("envoy"), "-c", str(self.folder / f"{name}.json"), "-l", "error",
            "--concurrency", str(threads), "--disable-hot-restart",
        ]  # fmt: skip
        proxy = self.started.start(name, command, self.folder)
        return Server("envoy", port, (backend.process, proxy))

    def intentions(self) -> list[Json]:
        """The intentions about the service, as the agent tells them."""
        query = f"/v1/connect/intentions/match?by=destination&name={SERVICE}"
        found: list[Json] = self.ask("GET", query)[SERVICE]
        return found

    def ask(self, method: str, path: str, body: Json | None = None) -> Any:
        """Ask the agent."""
        host, _, port = self.agent.removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=START_SECONDS)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise SettingError(f"the agent answers {answer.status} to {path}: {text!r}")
            return json.loads(text)
        finally:
            connection.close()

    def check(self, server: Server) -> None:
        """
        Wait until a server serves the caller, then see that it refuses whom it must.

        Raises:
            SettingError: it does not.
        """
        _wait(server.processes[-1], lambda: self._status(server, CALLER) == 200)
        for process in server.processes:
            process.settle()
        expected = 200 if server.kind == "limit" else 403
        if (status := self._status(server, STRANGER)) != expected:
            raise SettingError(f"{server.kind} answers {status} to a stranger, not {expected}")
        if (status := self._status(server, None)) is not None:
            raise SettingError(f"{server.kind} answers {status} without a certificate")

    def _status(self, server: Server, name: str | None) -> int | None:
        address = ("127.0.0.1", server.port)
        connection = http.client.HTTPSConnection(*address, context=self.context(name), timeout=5)
        try:
            connection.request("GET", PATH)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _beside(program: str) -> str:
    """The program of this interpreter's environment."""
    found = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    if found is None:
        raise SettingError(f"no program {program!r}: make install")
    return found


def _importable() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT)}


def _wait(process: Process, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if not process.alive:
            break
        with contextlib.suppress(OSError):
            if done():
                return
        time.sleep(0.02)
    raise SettingError(f"{process.name} did not start:\n{process.log()}")
