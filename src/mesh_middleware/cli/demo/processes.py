"""
Child processes of the demo: started clean, watched, and always taken away again.

Owns how a child starts (its own session, an environment without the shell's Consul), how it stops
(asked, waited for, killed as the last resort, by its own id) and where its output goes. Knows
nothing of what the children are.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from ...exceptions import ConfigError, MeshError

_STOP_TIMEOUT = 10.0
"""Seconds a child has to end by itself: Hypercorn's drain (3 s) and our deregistration."""


class ProcessError(MeshError):
    """A child process did not start, or ended when it should not."""


class Process:
    """
    One child process.

    Args:
        name: what people call it.
        command: program and arguments.
        cwd: directory it runs in.
        environment: all of its environment.
        log: file that takes its output, appended to.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        log: Path,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.cwd = cwd
        self._environment = dict(environment)
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    def another(self, name: str, command: Sequence[str]) -> Process:
        """Make one like it, not started, with another command and a log of its own."""
        log = self._log.with_name(f"{name}.log")
        return Process(name, command, cwd=self.cwd, environment=self._environment, log=log)

    def beside(self, name: str) -> Path:
        """The file of that name in the directory of its log."""
        return self._log.with_name(name)

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return self._child.pid if self._child else 0

    def start(self) -> None:
        """
        Start it.

        Raises:
            ProcessError: the program cannot be run.
        """
        with self._log.open("ab") as output:
            try:
                # A session of its own: a Ctrl-C at the terminal is the demo's to handle.
                self._child = subprocess.Popen(
                    self.command,
                    cwd=self.cwd,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ProcessError(f"{self.name} cannot be started: {error}") from None

    def check(self) -> None:
        """
        See that it still runs.

        Raises:
            ProcessError: it was never started, or has ended; the message says how.
        """
        if self._child is None:
            raise ProcessError(f"{self.name} was not started")
        code = self._child.poll()
        if code is not None:
            raise ProcessError(f"{self.name} (pid {self.pid}) ended with exit code {code}")

    def ask_to_stop(self) -> None:
        """Send it SIGTERM, and do not wait."""
        if self._child is not None and self._child.poll() is None:
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGTERM)

    def stop(self, timeout: float = _STOP_TIMEOUT) -> None:
        """
        Ask it to end, wait, and kill it when it does not; stopping twice is fine.

        Args:
            timeout: seconds it has.
        """
        if self._child is None or self._child.poll() is not None:
            return
        self.ask_to_stop()
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            # The whole session it leads: a server's workers do not outlive it.
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()

    def tail(self, lines: int = 15) -> str:
        """The last lines of its output."""
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def log_size(self) -> int:
        """How much it has printed so far, in bytes."""
        try:
            return self._log.stat().st_size
        except OSError:
            return 0

    def said_since(self, size: int) -> str:
        """What it has printed after the first *size* bytes."""
        with self._log.open("rb") as file:
            file.seek(size)
            return file.read().decode("utf-8", "replace")


def clean_environment(**more: str) -> dict[str, str]:
    """
    This process's environment without anything that names a Consul or sets the mesh.

    Args:
        more: variables to add.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CONSUL_", "MESH_"))
    }
    return kept | {"PYTHONUNBUFFERED": "1"} | more


def free_ports(count: int) -> list[int]:
    """
    Find ports that nobody listens on at loopback, all different.

    Args:
        count: how many.
    """
    with ExitStack() as held:
        found = []
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            found.append(int(listener.getsockname()[1]))
        return found


def hypercorn() -> list[str]:
    """The ``hypercorn`` command of this Python, as an absolute path."""
    script = Path(sys.executable).with_name("hypercorn")
    return [str(script)] if script.exists() else [sys.executable, "-m", "hypercorn"]


def examples_directory() -> Path:
    """
    Find the example services: beside a checkout's sources, or inside an installed package.

    Raises:
        ConfigError: they are at neither place.
    """
    here = Path(__file__).resolve()
    for candidate in (here.parents[1] / "_examples", here.parents[4] / "examples"):
        if (candidate / "flask_tax" / "mesh").exists():
            return candidate
    raise ConfigError("the example services are not installed with this package")
