"""Options that several subcommands share, and how they print data."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

PROTOCOLS = ("http", "http2", "grpc", "tcp")
"""Protocols of a service. Source: Consul, service-defaults."""

Agent = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Address of the agent; else MESH_AGENT, CONSUL_HTTP_ADDR, http://127.0.0.1:8500.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")]


def print_json(data: Any) -> None:
    """Print *data* as indented JSON on standard output."""
    json.dump(data, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
