"""
The three example services as processes: order, invoice, tax.

Owns the command each is started with, which is the one in its README with a free port, and the
asking of the agent whether it is registered and healthy.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...exceptions import ConfigError
from .. import api as agent_api
from .processes import Process, examples_directory, free_ports, hypercorn

_EXAMPLES = {"order": "fastapi_order", "invoice": "flask_invoice", "tax": "flask_tax"}
NAMES = tuple(_EXAMPLES)
"""The services, from the caller to the called."""

CHECK_TTL = 6.0
"""Seconds of their TTL check, shorter than usual, so that the demo sees heartbeats."""


@dataclass(frozen=True, slots=True)
class Service:
    """
    One service of the demo.

    Args:
        name: in Consul, and of its module.
        port: where it listens, on loopback.
        process: runs it.
    """

    name: str
    port: int
    process: Process

    @property
    def id(self) -> str:
        """What Consul calls this instance."""
        return f"{self.name}-127.0.0.1-{self.port}"

    @property
    def command(self) -> str:
        """What a user types in the example's directory."""
        return shlex.join(["hypercorn", *self.process.command[-5:]])


def make_services(environment: Mapping[str, str], logs: Path) -> tuple[Service, ...]:
    """
    Make the services, not started.

    Args:
        environment: of each process; tells where the agent is.
        logs: directory for what they print.

    Raises:
        ConfigError: the examples, or what they are written with, is not installed.
    """
    missing = [name for name in ("fastapi", "flask", "hypercorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the demo's services need {', '.join(missing)}: "
            "pip install 'mesh-middleware[cli,fastapi,flask]'"
        )
    examples = examples_directory()
    environment = {**environment, "MESH_CHECK_TTL": f"{CHECK_TTL:g}s"}
    found = []
    for (name, directory), port in zip(_EXAMPLES.items(), free_ports(len(_EXAMPLES)), strict=True):
        arguments = ["--config", "mesh", "--bind", f"127.0.0.1:{port}", f"{name}:app"]
        process = Process(
            name,
            [*hypercorn(), *arguments],
            cwd=examples / directory,
            environment=environment,
            log=logs / f"{name}.log",
        )
        found.append(Service(name, port, process))
    return tuple(found)


def make_tax(tax: Service, name: str, version: str = "") -> Service:
    """
    Make another instance of the tax example, not started, with a configuration of its own.

    Args:
        tax: the one there is.
        name: of the service it belongs to.
        version: in its metadata; empty for none.
    """
    (port,) = free_ports(1)
    file = tax.process.beside(f"{name}-{port}.mesh")
    meta = f'meta = {{version = "{version}"}}\n' if version else ""
    file.write_text(
        f'certfile = "mesh"\nkeyfile = "mesh"\n\n[mesh]\nservice = "{name}"\n{meta}',
        encoding="utf-8",
    )
    command = [*tax.process.command]
    command[command.index("mesh")] = str(file)
    command[command.index(f"127.0.0.1:{tax.port}")] = f"127.0.0.1:{port}"
    return Service(name, port, tax.process.another(file.stem, command))


def is_healthy(api: agent_api.AgentApi, service: Service) -> bool:
    """
    Tell whether the agent knows this instance as native and passing.

    Args:
        api: the agent.
        service: whose process has to run.

    Raises:
        ProcessError: the process has ended.
        AgentError: the agent does not answer.
    """
    service.process.check()
    instances = api.get(f"/v1/health/connect/{service.name}", passing="1")
    return any(_is(instance, service.port) for instance in instances or ())


def _is(instance: Mapping[str, Any], port: int) -> bool:
    found = instance.get("Service") or {}
    return found.get("Port") == port and bool((found.get("Connect") or {}).get("Native"))
