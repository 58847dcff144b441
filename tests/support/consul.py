"""
A private real Consul: one agent in dev mode, on loopback, on ports of its own.

Owns finding the binary, start and stop (by pid). Nothing of it outlives the test run: dev mode
keeps its data in memory.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0


def find_consul() -> str:
    """
    Path of a real ``consul`` binary: the one on PATH, else what ``scripts/get-consul`` finds.

    Raises:
        RuntimeError: there is none, with the line the script said.
    """
    found = shutil.which("consul")
    if found:
        return found
    done = subprocess.run(
        [ROOT / "scripts" / "get-consul"], capture_output=True, text=True, timeout=180
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout.strip()


def free_ports(count: int) -> list[int]:
    """Ports that are free for TCP and UDP at this moment."""
    held: list[socket.socket] = []
    ports = []
    try:
        while len(ports) < count:
            stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.append(stream)
            stream.bind(("127.0.0.1", 0))
            port = stream.getsockname()[1]
            datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            held.append(datagram)
            try:
                datagram.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    finally:
        for one in held:
            one.close()
    return ports


class RealConsul:
    """
    A ``consul agent -dev``; use it in ``with``.

    Args:
        binary: which one; by default what `find_consul` finds.
        hcl: further configuration.
        token: to ask it with whether it is there, where ACLs are on.
        dns: port it answers DNS at; -1 is none.
    """

    def __init__(
        self, binary: str | None = None, *, hcl: str = "", token: str = "", dns: int = -1
    ) -> None:
        self.binary = binary or find_consul()
        self._hcl = hcl
        self._token = token
        self._dns = dns
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()
        self._ports: list[int] = []
        self.url = ""
        self.version = ""

    def start(self) -> Self:
        """
        Start it and wait until it leads and has a CA.

        Raises:
            RuntimeError: it ended, or did not get there in time; with its last words.
        """
        http, server, serf = self._ports = self._ports or free_ports(3)
        self.url = f"http://127.0.0.1:{http}"
        command = [
            self.binary, "agent", "-dev", "-node=real", "-bind=127.0.0.1", "-client=127.0.0.1",
            f"-http-port={http}", f"-server-port={server}", f"-serf-lan-port={serf}",
            "-serf-wan-port=-1", f"-dns-port={self._dns}", "-grpc-port=-1", "-log-level=warn",
            "-hcl=disable_update_check = true",
        ]  # fmt: skip
        if self._hcl:
            command.append(f"-hcl={self._hcl}")
        # Without the shell's CONSUL_* variables: this one is private.
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env={"HOME": tempfile.gettempdir()}
        )
        until = time.monotonic() + START_SECONDS
        while not self._leads():
            if self._ended_within(0.05) or time.monotonic() > until:
                said = self.log()[-2000:]
                self.stop()
                raise RuntimeError(f"{self.binary} did not start:\n{said}")
        return self

    def _ended_within(self, seconds: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _leads(self) -> bool:
        try:
            self.version = self._ask("/v1/agent/self")["Config"]["Version"]
            roots = bool(self._ask("/v1/connect/ca/roots")["Roots"])
            return roots and bool(self._ask("/v1/health/service/consul?passing"))
        except (OSError, ValueError, KeyError):
            return False

    def _ask(self, path: str) -> Any:
        headers = {"X-Consul-Token": self._token} if self._token else {}
        question = urllib.request.Request(self.url + path, headers=headers)
        with urllib.request.urlopen(question, timeout=2) as answer:
            return json.load(answer)

    def log(self) -> str:
        """What it has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it without a word; it may `start` again at the same ports, and knows nothing then."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        """End it, by pid, and wait for its end."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self._log.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
