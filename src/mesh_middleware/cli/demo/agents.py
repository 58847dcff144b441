"""
The agent under the demo: the dev agent, a private Consul, or one that already runs.

Owns starting and stopping the first two, each with state that outlives a stop, and what each can
be asked to do. A cluster that the shell names is touched only when `existing` was asked for.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...exceptions import AgentError, ConfigError
from .. import api as agent_api
from .processes import Process, clean_environment, free_ports
from .waiting import until


@dataclass(frozen=True, slots=True)
class Agent:
    """
    An agent the demo stands on.

    Args:
        title: for people.
        api: how the demo asks it.
        environment: how the services find it.
        process: ours to stop and start; ``None`` for one that was there before.
        start_timeout: seconds until it answers after a start.
        leaf_timeout: seconds until every service has a new leaf after a rotation.
    """

    title: str
    api: agent_api.AgentApi
    environment: dict[str, str]
    process: Process | None
    start_timeout: float = 30.0
    leaf_timeout: float = 30.0

    def start(self) -> None:
        """
        Start it when it is ours, and wait until it issues certificates.

        Raises:
            TooLateError: it does not answer in time.
            ProcessError: it ended at once.
        """
        if self.process:
            self.process.start()
        until(self._ready, timeout=self.start_timeout, every=0.05, what=f"{self.title} answers")

    def stop(self) -> None:
        """Stop it when it is ours."""
        if self.process:
            self.process.stop()

    def _ready(self) -> bool | None:
        if self.process:
            self.process.check()
        try:
            roots = self.api.get("/v1/agent/connect/ca/roots")
            # A server without a leader still serves roots from its cache.
            leader = self.api.get("/v1/status/leader")
        except AgentError:
            return None
        return True if leader and roots.get("Roots") else None


def dev_agent(directory: Path) -> Agent:
    """
    Make the dev agent, as a process of its own.

    Args:
        directory: takes its state and its log.
    """
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mesh_middleware.cli", "agent"]
    command += ["--port", str(port), "--state", str(directory / "agent.json")]
    return _private("the dev agent", command, url, directory)


def private_consul(program: Path, directory: Path) -> Agent:
    """
    Make a single-server Consul that keeps its state, on free ports of loopback.

    Args:
        program: the ``consul`` binary.
        directory: takes its configuration, its data and its log.

    Raises:
        ConfigError: *program* cannot be run, or is no Consul.
    """
    program = program.expanduser().resolve()
    version = consul_version(program)
    http, server, serf = free_ports(3)
    configuration = _consul_configuration(directory, http, server, serf)
    if version >= (1, 14):
        configuration["ports"]["grpc_tls"] = -1
        configuration["peering"] = {"enabled": False}
    file = directory / "consul.json"
    file.write_text(json.dumps(configuration))
    command = [str(program), "agent", "-config-file", str(file)]
    title = f"a private Consul {'.'.join(map(str, version))}"
    return _private(title, command, f"http://127.0.0.1:{http}", directory, 60.0)


def consul_version(program: Path) -> tuple[int, ...]:
    """
    Ask a ``consul`` binary for its version.

    Raises:
        ConfigError: it cannot be run, or is no Consul.
    """
    try:
        answer = subprocess.run(
            [program, "version"],
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{program} cannot be run: {error}") from None
    found = re.search(r"Consul v(\d+)\.(\d+)\.(\d+)", answer.stdout)
    if not found:
        raise ConfigError(f"{program} is no Consul: 'consul version' says nothing of one")
    return tuple(int(part) for part in found.groups())


def existing(address: str | None = None) -> Agent:
    """
    Take the agent that the environment names: asked for by ``--use-existing``, never by default.

    Args:
        address: another one than the environment names.
    """
    api = agent_api.connect(address)
    kept = ("MESH_AGENT", "MESH_TOKEN", "MESH_TOKEN_FILE")
    environment = clean_environment(
        **{
            name: value
            for name, value in os.environ.items()
            if name.startswith("CONSUL_") or name in kept
        }
    )
    return Agent("the agent already running", api, environment, None, leaf_timeout=60.0)


def _private(
    title: str, command: Sequence[str], url: str, directory: Path, leaf_timeout: float = 30.0
) -> Agent:
    process = Process(
        title, command, cwd=directory, environment=clean_environment(), log=directory / "agent.log"
    )
    environment = clean_environment(MESH_AGENT=url)
    api = agent_api.AgentApi(url)
    return Agent(title, api, environment, process, leaf_timeout=leaf_timeout)


def _consul_configuration(directory: Path, http: int, server: int, serf: int) -> dict[str, Any]:
    return {
        "server": True,
        "bootstrap": True,
        "node_name": "mesh-demo",
        "datacenter": "dc1",
        "data_dir": str(directory / "consul"),
        "bind_addr": "127.0.0.1",
        "client_addr": "127.0.0.1",
        "connect": {"enabled": True},
        # Off: DNS, gossip over the WAN and gRPC. The demo needs none of them.
        "ports": {
            "http": http,
            "server": server,
            "serf_lan": serf,
            "dns": -1,
            "serf_wan": -1,
            "grpc": -1,
        },
        "performance": {"raft_multiplier": 1},
        "disable_update_check": True,
        # Requests are logged at this level, which is how step 7 sees who registers.
        "log_level": "debug",
    }
